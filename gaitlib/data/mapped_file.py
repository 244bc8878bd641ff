"""All sequences of a data set in one memory-mapped file: a clip reads only its own pages.

Each sequence is read and checked once, when the file is made. Processes share the pages that the
system keeps in memory. Opening the file again reads only its index. A whole file is never written
to or removed, because a run may have it open: sequences that have changed get another file.
"""

import glob
import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaitlib.data.sequence_file import read_all, try_to_read
from gaitlib.system.errors import UserError
from gaitlib.system.files import read_json, replacing

log = logging.getLogger(__name__)

FORMAT = 3  # of the index; files of another format are made again


class MappedSequences:
    """Sequences of one file, by position. A pickle of this holds the file's name, not its content.

    Args:
        path: of the file, which holds the readable sequences one after another.
        shapes: (T, H, W) of each; () if it cannot be read.
        faults: why a sequence cannot be read; "" if it can.

    Raises:
        UserError: if the size of the file does not match the shapes.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, ...]], faults: list[str]) -> None:
        self.path, self.shapes, self.faults = path, shapes, faults
        self._ends = np.cumsum([math.prod(shape) if shape else 0 for shape in shapes]).tolist()
        size = path.stat().st_size
        if size != (self._ends[-1] if shapes else 0):
            raise UserError(f"{path} has {size} bytes, not those of its sequences")
        self._content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)

    def __getitem__(self, position: int) -> np.ndarray:
        """Return one readable sequence, ``(T, H, W)`` uint8, read-only."""
        shape, end = self.shapes[position], self._ends[position]
        return self._content[end - math.prod(shape) : end].reshape(shape).view(np.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedSequences, (self.path, self.shapes, self.faults)


def map_sequences(folder: Path, paths: Sequence[str]) -> MappedSequences:
    """Open the file of some sequences; make it first if it is missing, or if one of them changed.

    Its name follows from the paths, and from the size and the times of modification and change of
    each sequence file. Its index is written last, so an unfinished file is made again. Processes
    that make it at the same time write the same. The log names files that are out of date.

    Args:
        folder: of the file; made if needed.
        paths: of the sequences.

    Raises:
        OSError: if the file cannot be written; the message gives the size it needs.
    """
    names = [os.path.abspath(path) for path in paths]
    name = f"{Path(os.path.commonpath(names)).name if names else ''}-{_digest(names)}"
    index = folder / f"{name}-{_digest([FORMAT, *map(_size_and_time, names)])}.json"
    if (found := _open_if_complete(index, names)) is not None:
        return found
    log.info("writing %d sequences into one file in %s, once", len(names), folder)
    if old := sorted(path.name for path in folder.glob(f"{glob.escape(name)}-*.json")):
        log.warning(
            "%s: out of date and no longer used; `gaitlib clean` removes the files of that name in "
            "%s when no run has them open", ", ".join(Path(one).stem for one in old), folder,
        )  # fmt: skip
    content = _content_of(index)
    try:
        shapes, faults = _write(content, names)
        with replacing(index, durable=True) as part:
            part.write_text(json.dumps([shapes, faults]))
    except OSError as error:
        needed = sum(os.path.getsize(path) for path in names if os.path.exists(path))
        raise OSError(
            error.errno,
            f"data_cfg.cache: mapped needs {needed / 1e6:.0f} MB in {folder} "
            f"({error.strerror}): make room, or write cache: false",
        ) from error
    return MappedSequences(content, shapes, faults)


def superseded_files(folder: Path) -> list[Path]:
    """Return the files of a folder of mapped files that no later start opens.

    Those are the files of sequences that have changed, and what killed processes left.
    """
    indices = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    newest = {index.stem.rpartition("-")[0]: index for index in indices}
    used = {*newest.values(), *map(_content_of, newest.values())}
    return [path for path in (*indices, *folder.glob("*.bin")) if path not in used]


def _content_of(index: Path) -> Path:
    return index.with_name(f"{index.stem}.bin")


def _open_if_complete(index: Path, names: Sequence[str]) -> MappedSequences | None:
    """Return the sequences of an index.

    None if the file is incomplete, or if a sequence that could not be read now can.
    """
    try:
        shapes, faults = read_json(index)
        found = MappedSequences(_content_of(index), list(map(tuple, shapes)), faults)
    except (OSError, ValueError, TypeError):
        return None
    faulty = [name for name, fault in zip(names, faults, strict=True) if fault]
    return None if any(not try_to_read(name)[1] for name in faulty) else found


def _write(path: Path, names: Sequence[str]) -> tuple[list[tuple[int, ...]], list[str]]:
    """Write all readable sequences, one after another; return shapes and faults."""
    with replacing(path, durable=True) as part, part.open("wb") as file:
        return read_all(names, lambda frames: frames is None or file.write(frames.data))


def _size_and_time(path: str) -> str:
    """Return a file's size and times as text.

    The time of change is the system's own: a file that is put in another's place cannot keep it.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
