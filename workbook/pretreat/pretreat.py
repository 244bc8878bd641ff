"""Turn raw masks into the CASIA-B-pkl tree that OpenGait reads, and report what was not taken."""

import functools
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
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
from workbook.pretreat.mask_layouts import GALLERY, Key, number_galleries
from workbook.pretreat.mask_set import (
    Understanding,
    frames_of,
    prepare_file,
    set_name,
    sort_by_walk,
    understand,
)
from workbook.pretreat.masks import MaskReading

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
        short: sequences with fewer valid frames than ``min_frames``, columns subject, type, view
            and frames. A sequence with 0 frames has no file; the others have one.
        lost: subjects without one sequence, and top folders or archives with masks of no walk.
    """

    written: int
    kept: int
    skipped: pd.DataFrame
    short: pd.DataFrame
    lost: tuple[str, ...] = ()

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
    min_frames: int = MIN_FRAMES,
    overwrite: bool = False,
    size: int = SIZE,
    layout: str | None = None,
    invert: bool | None = None,
    threshold: int | None = None,
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
        min_frames: a sequence with fewer valid frames is reported as short.
        overwrite: make finished sequences again.
        size: rows and columns of a frame. Finished sequences of another size are made again.
        layout: see `understand`, like the following.
        invert: whether the background is bright.
        threshold: values above it are the person.

    Raises:
        UserError: ``size`` is not a positive multiple of 16, which heads of 16 strips need; the
            masks do not say how they are read; or ``dst`` was made from masks read otherwise.
        FileNotFoundError: ``src`` is absent, or holds nothing that can be used.
        WorkerError: a process was killed. Written files are kept, and a second call continues.
    """
    src, dst = Path(src), Path(dst)
    if size < 16 or size % 16:
        raise UserError(f"size is {size}: give 64, 128 or another multiple of 16")
    try:
        understood = understand(src, layout, invert, threshold, without=dst)
    except FileNotFoundError:
        if not src.exists():
            raise
        understood = Understanding(layout or "id/type/view", MaskReading(), "none can be read")
    if understood.samples:
        _check_read_alike(dst, understood, overwrite)
    logger.info("%s: %s", src, understood)
    parts = divide(src, without=dst)
    workers = min(workers or os.cpu_count() or 1, len(parts))
    work = partial(
        _pretreat_part,
        dst=dst,
        overwrite=overwrite,
        size=size,
        understood=replace(understood, samples=()),  # each part is sent it
        top=set_name(src),
    )
    written, kept, skipped, lengths = 0, 0, [], {}
    has_masks, has_walks = set(), set()  # by top folder or archive
    with _mapper(workers) as mapper:
        results = mapper(work, parts)
        bar = tqdm(results, total=len(parts), unit="part", disable=not progress)
        try:
            for part, result in zip(parts, bar, strict=True):
                written += result.written
                kept += result.kept
                skipped += result.skipped
                for key in sorted(lengths.keys() & result.lengths):
                    skipped.append((str(part.path), f"{'/'.join(key)} is also elsewhere in {src}"))
                lengths |= result.lengths
                top = part.folders[0] if part.folders else part.path.name
                if result.masks:
                    (has_walks if result.lengths else has_masks).add(top)
        except BrokenProcessPool as error:
            raise WorkerError(
                f"one of {workers} processes that pretreat {src} died {describe_exit(None)}. What "
                f"was written to {dst} is kept: run again to continue, with fewer workers"
            ) from error
    most: dict[str, int] = {}
    for (subject, _, _), frames in lengths.items():
        most[subject] = max(most.get(subject, 0), frames)
    lost = (
        *sorted(subject for subject, frames in most.items() if not frames),
        *sorted(has_masks - has_walks),
    )
    short = [(*key, frames) for key, frames in sorted(lengths.items()) if frames < min_frames]
    report = PretreatReport(written, kept, *_write_report(dst, skipped, short), lost)
    if not any(lengths.values()):
        first = f"the first is: {report.skipped['reason'].iloc[0]}" if skipped else "there are none"
        raise FileNotFoundError(
            f"{src} holds no mask that can be used, in layout {understood.layout}; {report}; "
            f"reasons are in {dst / SKIPPED}, {first}"
        )
    write_atomically(dst / READ_AS, json.dumps(understood.record(), indent=1) + "\n")
    (logger.warning if skipped or short else logger.info)("%s -> %s: %s", src, dst, report)
    return report


def _write_report(
    dst: Path, skipped: list[tuple[str, str]], short: list[tuple[str, str, str, int]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write both tables of the report, and return them."""
    tables = (
        pd.DataFrame(sorted(skipped), columns=["path", "reason"], dtype=str),
        pd.DataFrame(short, columns=["subject", "type", "view", "frames"]),
    )
    for name, table in zip((SKIPPED, SHORT), tables, strict=True):
        write_atomically(dst / name, table.to_csv(index=False))
    return tables


def _check_read_alike(dst: Path, understood: Understanding, overwrite: bool) -> None:
    """Refuse to add sequences to a tree whose masks were read in another way."""
    if overwrite or not (dst / READ_AS).exists():
        return
    before, now = read_json(dst / READ_AS), understood.record()
    if before != now:
        raise UserError(
            f"{dst} was made from masks read as {before}, and now they are read as {now}: make it "
            "again with --overwrite, or give another folder"
        )


@dataclass
class _Outcome:
    """The result of one part; small, because it is sent to the parent process."""

    written: int = 0
    kept: int = 0
    masks: int = 0  # files that could be masks
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    lengths: dict[Key, int] = field(default_factory=dict)


def _pretreat_part(
    part: Part, dst: Path, overwrite: bool, size: int, understood: Understanding, top: str
) -> _Outcome:
    outcome = _Outcome()

    @functools.cache
    def frames_there(key: Key) -> int:
        """Return the length of a finished sequence, 0 if it has to be made."""
        path = _path_of(dst, key)
        if overwrite or not path.exists():
            return 0
        try:
            finished = read_sequence(path)
            if finished.shape[1:] == (size, size):
                return len(finished)
            logger.info("%s has frames of %s: making it again", path, finished.shape[1:])
        except SequenceError:
            logger.warning("%s is damaged: making it again", path)
        return 0

    def is_there(key: Key) -> bool:
        return key[1] != GALLERY and frames_there(key) > 0

    prepare = partial(prepare_file, reading=understood.reading, size=size)
    files, outcome.masks = sort_by_walk(
        part, outcome.skipped, understood.layout, is_there, prepare, top
    )
    final = number_galleries(files)
    for found, key in sorted((found, key) for found, key in final.items()):
        if there := frames_there(key):
            outcome.lengths[key] = there
            outcome.kept += 1
            continue
        frames = list(frames_of(files[found], outcome.skipped, prepare))
        outcome.lengths[key] = len(frames)
        if frames:
            write_sequence(_path_of(dst, key), np.stack(frames))
            outcome.written += 1
    return outcome


def _path_of(dst: Path, key: Key) -> Path:
    return dst.joinpath(*key, f"{key[2]}.pkl")


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[_Outcome]]]:
    """Yield a ``map`` function: the built-in one, or one that runs in processes."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork copies locks that cv2 and torch hold
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        yield pool.map
