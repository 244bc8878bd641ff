"""Turn raw masks into the CASIA-B-pkl tree that OpenGait reads, and report what was not taken."""

import functools
import json
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from gaitlib.data.alignment import SIZE
from gaitlib.data.sequence_file import SequenceError, read_sequence, write_sequence
from gaitlib.system.errors import UserError
from gaitlib.system.files import read_json, write_atomically
from gaitlib.system.processes import WorkerError, describe_exit
from workbook.pretreat.mask_files import Part, divide
from workbook.pretreat.mask_layouts import Key
from workbook.pretreat.mask_options import NOTHING_TOLD, MaskOptions
from workbook.pretreat.mask_set import PartReader, Understanding, understand

logger = logging.getLogger(__name__)

MIN_FRAMES = 5  # a sequence with fewer is reported as short
#: What `pretreat_tree` writes beside the subjects' folders.
SKIPPED, SHORT, READ_AS = "pretreat_skipped.csv", "pretreat_short.csv", "pretreat_read_as.json"


@dataclass(frozen=True)
class PretreatReport:
    """What :func:`pretreat_tree` did.

    Attributes:
        written: sequences written by this call.
        kept: sequences that were already finished, and were not changed.
        skipped: every file and folder (and damaged archive) that this call did not take, columns
            path and reason.
        short: sequences with fewer than MIN_FRAMES valid frames, columns subject, type, view and
            frames. A sequence with 0 frames has no file; the others have one.
        lost: subjects without one sequence, and top folders or archives with masks of no walk.
    """

    written: int
    kept: int
    skipped: pd.DataFrame
    short: pd.DataFrame
    lost: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.written} sequences written, {self.kept} already there; "
            f"{len(self.skipped)} files and folders skipped, {len(self.short)} sequences short"
            + (f"; LOST, without one sequence: {', '.join(self.lost)}" if self.lost else "")
        )


def pretreat_tree(
    src: str | Path,
    dst: str | Path,
    *,
    workers: int | None = None,
    progress: bool = False,
    overwrite: bool = False,
    size: int = SIZE,
    masks: MaskOptions = NOTHING_TOLD,
) -> PretreatReport:
    """Turn a raw data set into a CASIA-B-pkl tree; a second call continues where the first stopped.

    What is understood of the masks (`understand`) is logged first. ``dst`` gets the report too, as
    `SKIPPED` and `SHORT`, also when nothing could be used.

    Args:
        src: a folder of masks (PNG, JPEG, BMP, TIFF, or sequences in pickles) in a layout of
            `workbook.pretreat.mask_layouts`, of archives that hold the same (with or without the
            folder of the archive's name), or of both; or one such archive.
        dst: the folder for ``<subject>/<type>/<view>/<view>.pkl``.
        workers: processes; one per core by default. 1 works in this process.
        progress: show a bar, one step per part of the set.
        overwrite: make finished sequences again.
        size: rows and columns of a frame. Finished sequences of another size are made again.
        masks: what is not to be found out.

    Raises:
        UserError: ``size`` is not a positive multiple of 16, which heads of 16 strips need; the
            masks do not say how they are read; or ``dst`` was made from masks read otherwise.
        FileNotFoundError: ``src`` is absent, or holds nothing that can be used.
        WorkerError: a process was killed. Written files are kept, and a second call continues.
    """
    src, dst = Path(src), Path(dst)
    if size < 16 or size % 16:
        raise UserError(f"size is {size}: give 64, 128 or another multiple of 16")
    understood = understand(src, masks, without=dst)
    now = understood.record()
    if understood.samples and not overwrite and (dst / READ_AS).exists():
        if (before := read_json(dst / READ_AS)) != now:
            raise UserError(
                f"{dst} was made from masks read as {before}, and now they are read as {now}: make "
                "it again with --overwrite, or give another folder"
            )
    logger.info("%s: %s", src, understood.words)
    parts = divide(src, without=dst)
    understood = replace(understood, samples=())  # each part is sent it
    work = functools.partial(_pretreat_part, dst, overwrite, size, understood)
    workers = min(workers or os.cpu_count() or 1, len(parts))
    context = multiprocessing.get_context("spawn")  # a fork copies locks that cv2 and torch hold
    pool = ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) if workers > 1 else None
    try:
        with pool or nullcontext():
            results = pool.map(work, parts) if pool else map(work, parts)
            outcomes = list(tqdm(results, total=len(parts), unit="part", disable=not progress))
    except BrokenProcessPool as error:
        raise WorkerError(
            f"one of {workers} processes that pretreat {src} died {describe_exit(None)}. What was "
            f"written to {dst} is kept: run again to continue, with fewer workers"
        ) from error
    report = _write_report(src, dst, outcomes)
    if not report.written + report.kept:
        first = next(iter(report.skipped["reason"]), "there are none")
        raise FileNotFoundError(
            f"{src} holds no mask that can be used, in layout {understood.layout}; {report}; "
            f"reasons are in {dst / SKIPPED}, the first is: {first}"
        )
    write_atomically(dst / READ_AS, json.dumps(now, indent=1) + "\n")
    has_gaps = len(report.skipped) or len(report.short)
    logger.log(logging.WARNING if has_gaps else logging.INFO, "%s -> %s: %s", src, dst, report)
    return report


#: What is known of a part: its reader, and the lengths of sequences made and of those kept.
Outcome = tuple[PartReader, dict[Key, int], dict[Key, int]]


def _pretreat_part(
    dst: Path, overwrite: bool, size: int, understood: Understanding, part: Part
) -> Outcome:
    def path_of(key: Key) -> Path:
        return dst.joinpath(*key, f"{key[2]}.pkl")

    @functools.cache
    def frames_there(key: Key) -> int:
        """Return the length of a finished sequence, 0 if it has to be made."""
        path = path_of(key)
        if overwrite or not path.exists():
            return 0
        try:
            frames, *shape = read_sequence(path).shape
        except SequenceError:
            logger.warning("%s is damaged: making it again", path)
            return 0
        return frames if shape == [size, size] else 0

    reader, made, kept = PartReader(part, understood, size), {}, {}
    for key, frames in reader.walks(frames_there):
        if frames is None:
            kept[key] = frames_there(key)
        else:
            made[key] = len(frames)
        if frames:
            write_sequence(path_of(key), np.stack(frames))
    return reader, made, kept


def _write_report(src: Path, dst: Path, outcomes: list[Outcome]) -> PretreatReport:
    skipped, lengths = [], {}
    has_masks, has_walks = set(), set()  # by top folder or archive
    for reader, made, kept in outcomes:
        path = reader.part.path
        skipped += reader.skipped
        for key in lengths.keys() & (made | kept).keys():
            skipped.append((str(path), f"{'/'.join(key)} is also elsewhere in {src}"))
        lengths |= made | kept
        if reader.masks:
            top = (*path.relative_to(src).parts, path.name)[0]
            (has_walks if made or kept else has_masks).add(top)
    skipped = pd.DataFrame(sorted(skipped), columns=["path", "reason"], dtype=str)
    rows = [(*key, frames) for key, frames in sorted(lengths.items())]
    table = pd.DataFrame(rows, columns=["subject", "type", "view", "frames"])
    short = table[table["frames"] < MIN_FRAMES]
    for name, listed in ((SKIPPED, skipped), (SHORT, short)):
        write_atomically(dst / name, listed.to_csv(index=False))
    most = table.groupby("subject")["frames"].max()
    lost = (*most.index[most == 0], *sorted(has_masks - has_walks))
    written = sum(frames > 0 for _, made, _ in outcomes for frames in made.values())
    return PretreatReport(written, sum(len(kept) for *_, kept in outcomes), skipped, short, lost)
