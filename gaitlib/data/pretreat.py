"""Turn raw silhouette frames into the CASIA-B-pkl tree that OpenGait reads.

``align_frame`` holds all of the geometry: it scales the person to the full height and centres them.
It follows OpenGait's ``datasets/pretreatment.py``. ``pretreat_tree`` pretreats a whole data set.
"""

import functools
import gzip
import io
import logging
import multiprocessing
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from gaitlib.data.sequence_file import SequenceError, read_sequence, write_sequence
from gaitlib.system.processes import WorkerError, describe_exit

logger = logging.getLogger(__name__)

NO_DATA_SUM = 10_000  # OpenGait: a frame whose pixels sum to no more than this holds no person
SIZE = 64  # rows and columns of a frame
MAX_PNG_BYTES = 1 << 24  # of one frame; CASIA-B's have about 1,500
MAX_PIXELS = 1 << 24  # of one frame; CASIA-B's have 76,800
MAX_ARCHIVE_BYTES = 1 << 31  # of one subject's archive, unpacked; CASIA-B's have about 20 MB
MAX_MEMBERS = 200_000  # of one subject's archive; CASIA-B's have about 10,000
PNG = b"\x89PNG\r\n\x1a\n"
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
Key = tuple[str, str, str]  # subject, type, view
Prepared = tuple[np.ndarray | None, str]  # an aligned frame, or None and why there is none
Files = dict[Key, list[tuple[int, str, Path | Prepared]]]  # frame number, name, path or frame


def align_frame(frame: np.ndarray, height: int = SIZE) -> np.ndarray | None:
    """Crop, scale and centre one raw mask.

    1. Remove the rows above the head and below the feet.
    2. Scale the rest (cubic) to ``height``.
    3. Cut a square window around the column that splits the silhouette's mass in half. Zeros fill
       the part of the window outside the image.

    Args:
        frame: ``(h0, w0)`` uint8, 0 background to 255 person.
        height: rows and columns of the result.

    Returns:
        ``(height, height)`` uint8, or None if the frame holds no person (pixel sum up to 10000).

    Raises:
        ValueError: the frame is not two-dimensional uint8.
    """
    if frame.ndim != 2 or frame.dtype != np.uint8:
        raise ValueError(
            f"a frame is (h, w) uint8, got {frame.shape} {frame.dtype}; read it as a grey image"
        )
    if not frame.size or cv2.sumElems(frame)[0] <= NO_DATA_SUM:
        return None
    rows = frame.any(axis=1).nonzero()[0]
    body = frame[rows[0] : rows[-1] + 1]
    width = max(1, int(height * body.shape[1] / body.shape[0]))
    body = cv2.resize(body, (width, height), interpolation=cv2.INTER_CUBIC)
    mass = body.sum(axis=0).cumsum()
    if not mass[-1]:
        return None  # scaling lost all of the silhouette: it was too thin
    left = int(np.argmax(mass > mass[-1] / 2)) - height // 2
    aligned = np.zeros((height, height), np.uint8)
    first, last = max(left, 0), min(left + height, width)
    aligned[:, first - left : last - left] = body[:, first:last]
    return aligned


@dataclass(frozen=True)
class PretreatReport:
    """What :func:`pretreat_tree` did.

    Attributes:
        written: sequences written by this call.
        kept: sequences that were already finished, and were not changed.
        skipped: frames (and damaged archives) that this call skipped, columns path and reason.
        short: sequences with fewer valid frames than ``min_frames``, columns subject, type, view
            and frames. A sequence with 0 frames has no file; the others have one.
    """

    written: int
    kept: int
    skipped: pd.DataFrame
    short: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"{self.written} sequences written, {self.kept} already there; "
            f"{len(self.skipped)} frames skipped, {len(self.short)} sequences short"
        )


def pretreat_tree(
    src: str | Path,
    dst: str | Path,
    *,
    workers: int | None = None,
    progress: bool = False,
    min_frames: int = 5,
    overwrite: bool = False,
    size: int = SIZE,
) -> PretreatReport:
    """Turn a raw data set into a CASIA-B-pkl tree; a second call continues where the first stopped.

    Args:
        src: a folder of ``<subject>/<type>/<view>/*.png``, of ``<subject>.tar.gz`` archives that
            hold the same (with or without the subject's folder), or of both.
        dst: the folder for ``<subject>/<type>/<view>/<view>.pkl``.
        workers: processes; one per core by default. 1 works in this process.
        progress: show a bar, one step per subject.
        min_frames: a sequence with fewer valid frames is reported as short.
        overwrite: make finished sequences again.
        size: rows and columns of a frame. Finished sequences of another size are made again.

    Raises:
        ValueError: ``size`` is not a positive multiple of 16, which heads of 16 strips need.
        FileNotFoundError: ``src`` is absent, or holds neither subject folders nor archives.
        WorkerError: a process was killed. Written files are kept, and a second call continues.
    """
    src, dst = Path(src), Path(dst)
    if size < 16 or size % 16:
        raise ValueError(f"size is {size}: give 64, 128 or another multiple of 16")
    if not src.is_dir():
        raise FileNotFoundError(f"no raw data set at {src}; unpack CASIA-B's silhouettes there")
    subjects = sorted(
        path
        for path in src.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith(".tar.gz"))
    )
    if not subjects:
        raise FileNotFoundError(f"{src} holds no <subject> folder and no <subject>.tar.gz")
    workers = min(workers or os.cpu_count() or 1, len(subjects))
    work = partial(_pretreat_subject, dst=dst, overwrite=overwrite, size=size)
    written, kept, skipped, lengths = 0, 0, [], {}
    with _mapper(workers) as mapper:
        results = mapper(work, subjects)
        bar = tqdm(results, total=len(subjects), unit="subject", disable=not progress)
        try:
            for result in bar:
                written += result.written
                kept += result.kept
                skipped += result.skipped
                lengths |= result.lengths
        except BrokenProcessPool as error:
            raise WorkerError(
                f"one of {workers} processes that pretreat {src} died {describe_exit(None)}. What "
                f"was written to {dst} is kept: run again to continue, with fewer workers"
            ) from error
    short = [(*key, frames) for key, frames in sorted(lengths.items()) if frames < min_frames]
    report = PretreatReport(
        written,
        kept,
        pd.DataFrame(sorted(skipped), columns=["path", "reason"], dtype=str),
        pd.DataFrame(short, columns=["subject", "type", "view", "frames"]),
    )
    if not lengths:
        raise FileNotFoundError(f"{src} holds no <subject>/<type>/<view>/<frame>.png; {report}")
    (logger.warning if skipped or short else logger.info)("%s -> %s: %s", src, dst, report)
    return report


@dataclass
class _Outcome:
    """The result of one subject; small, because it is sent to the parent process."""

    written: int = 0
    kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    lengths: dict[Key, int] = field(default_factory=dict)


def _pretreat_subject(source: Path, dst: Path, overwrite: bool, size: int) -> _Outcome:
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

    if source.is_dir():
        files = _list_folder(source, outcome.skipped)
    else:
        files = _read_archive(source, outcome.skipped, frames_there, size)
    for key, found in sorted(files.items()):
        if there := frames_there(key):
            outcome.lengths[key] = there
            outcome.kept += 1
            continue
        frames = []
        for _, name, data in sorted(found, key=lambda file: file[:2]):
            frame, reason = _prepare(data, size) if isinstance(data, Path) else data
            if frame is None:
                outcome.skipped.append((name, reason))
            else:
                frames.append(frame)
        outcome.lengths[key] = len(frames)
        if frames:
            write_sequence(_path_of(dst, key), np.stack(frames))
            outcome.written += 1
    return outcome


def _path_of(dst: Path, key: Key) -> Path:
    return dst.joinpath(*key, f"{key[2]}.pkl")


def _list_folder(folder: Path, skipped: list[tuple[str, str]]) -> Files:
    """List the frames of one subject's folder; they are read later, one sequence at a time."""
    files: Files = {}
    for path in folder.glob("*/*/*.png"):
        name = path.relative_to(folder.parent).as_posix()
        _add_frame(files, skipped, name, folder.name, str(path), path)
    return files


def _read_archive(
    archive: Path,
    skipped: list[tuple[str, str]],
    frames_there: Callable[[Key], int],
    size: int,
) -> Files:
    """Read and align the frames of one subject's archive, one after another, in memory alone."""
    files: Files = {}
    subject = archive.name.removesuffix(".tar.gz")
    try:
        if not archive.is_file():
            raise OSError("no regular file")
        with gzip.open(archive) as content, _Bounded(content) as bounded:
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                for number, member in enumerate(tar):
                    tar.members = []  # it would keep them all
                    if number >= MAX_MEMBERS:
                        raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members")
                    label = f"{archive}:{member.name}"
                    if not member.isfile() or not member.name.endswith(".png"):
                        continue
                    if member.size > MAX_PNG_BYTES:
                        skipped.append((label, f"{member.size} bytes, too large for a frame"))
                        continue
                    key = _add_frame(files, skipped, member.name, subject, label, (None, ""))
                    if key is not None and not frames_there(key):
                        prepared = _prepare(tar.extractfile(member).read(), size)
                        files[key][-1] = (*files[key][-1][:2], prepared)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        skipped.append((str(archive), f"damaged archive, none of it was used: {error}"))
        return {}  # the next call would take half a sequence for a finished one
    return files


class _Bounded(io.RawIOBase):
    """An unpacked archive that refuses what a small file can unpack to.

    Args:
        file: it gives the unpacked content.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; tarfile asks for a block of a header, or for a member."""
        if not 0 <= size <= MAX_PNG_BYTES:
            raise tarfile.ReadError(f"a part of {size:,} bytes, too large for a frame")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; reads what lies before it in small parts."""
        self._check(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes")


def _add_frame(
    files: Files,
    skipped: list[tuple[str, str]],
    name: str,
    subject: str,
    label: str,
    data: Path | Prepared,
) -> Key | None:
    """Add one frame to the files of its sequence and return that, or to ``skipped`` and why."""
    parts = PurePosixPath(name).parts
    folders = parts[-4:-1] if len(parts) > 3 else (subject, *parts[:-1])
    stem = PurePosixPath(name).stem
    number = re.search(r"[0-9]+$", stem)
    if stem.startswith("."):
        return None  # a hidden file, as file managers make them
    if len(folders) != 3 or name.startswith("/") or ".." in parts:
        skipped.append((label, "not in <subject>/<type>/<view>/"))
    elif not all(FOLDER_NAME.fullmatch(folder) for folder in folders):
        skipped.append((label, f"{'/'.join(folders)} is not <subject>/<type>/<view>"))
    elif number is None:
        skipped.append((label, "no frame number at the end of its name"))
    else:
        files.setdefault(folders, []).append((int(number[0]), label, data))
        return folders
    return None


def _prepare(data: Path | bytes, size: int) -> Prepared:
    """Read, decode and align one frame; instead of it return why it cannot be used."""
    try:
        if isinstance(data, Path):
            if not data.is_file():
                return None, "no regular file"
            if data.stat().st_size > MAX_PNG_BYTES:
                return None, f"{data.stat().st_size} bytes, too large for a frame"
            data = data.read_bytes()
        if data[:8] != PNG or len(data) < 24:
            return None, "not an image"
        width, height = struct.unpack_from(">II", data, 16)  # of its first chunk, IHDR
        if width * height > MAX_PIXELS:
            return None, f"{width} x {height} pixels, too large for a frame"
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        return None, f"not an image: {' '.join(str(error).split())}"
    if image is None:
        return None, "not an image"
    frame = align_frame(image, size)
    return frame, "" if frame is not None else "no person in it"


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[_Outcome]]]:
    """Yield a ``map`` function: the built-in one, or one that runs in processes."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork copies locks that cv2 and torch hold
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        yield pool.map
