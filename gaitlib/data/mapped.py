"""All sequences of a data set in one memory-mapped file: a clip costs the pages that it shows.

Each sequence is read and checked once, when the file is made. Processes share what of it the
system keeps in memory, and opening it again reads its index alone.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gaitlib.data.sequence_file import SequenceError, read_sequence
from gaitlib.files import replacing

log = logging.getLogger(__name__)

FORMAT = 1  # of the index; a file of another one is made anew
BLOCK = 64  # sequences in memory at a time while the file is made


class MappedSequences:
    """Sequences of one file, by position. Pickled, it is the file's name; processes share the file.

    Attributes:
        shapes: (T, H, W) of each; () of one that cannot be read.
        faults: why a sequence cannot be read; "" of one that can.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, ...]], faults: list[str]) -> None:
        self.path, self.shapes, self.faults = path, shapes, faults
        sizes = [math.prod(shape) if shape else 0 for shape in shapes]
        self._ends = np.cumsum(sizes).tolist()
        self._content: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes of all sequences."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> np.ndarray:
        """Return one that can be read, ``(T, H, W)`` uint8, read-only."""
        if self._content is None:
            self._content = np.memmap(self.path, np.uint8, "r")
        shape, end = self.shapes[position], self._ends[position]
        return self._content[end - math.prod(shape) : end].reshape(shape).view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_content": None}


def map_sequences(folder: Path, paths: Sequence[str], workers: int = 2) -> MappedSequences:
    """Open the file of some sequences; make it first if it is not there, or older than one of them.

    It is named after the paths, and after the size and the time of change of each file. The index,
    which is what opens, is written last: a file that was begun and not finished is begun again.
    Files of the same paths that are out of date are removed.

    Args:
        folder: where it is, or will be.
        paths: of the sequences.
        workers: reading threads.

    Raises:
        OSError: if the file cannot be written, with its size.
    """
    names = [os.path.abspath(path) for path in paths]
    name = f"{Path(os.path.commonpath(names)).name}-{_digest(names)}"
    key = _digest([FORMAT, *map(_state, names)])
    index, content = (folder / f"{name}-{key}.{kind}" for kind in ("json", "bin"))
    found = _opened(index, content)
    if found is None:
        log.info("%d sequences are gathered in %s, once", len(names), content)
        try:
            found = _made(content, names, workers)
            entries = list(zip(found.shapes, found.faults, strict=True))
            with replacing(index, durable=True) as part:
                part.write_text(json.dumps(entries))
        except OSError as error:
            needed = sum(os.path.getsize(path) for path in names if os.path.exists(path))
            raise OSError(
                error.errno,
                f"data_cfg.cache: mapped needs {needed / 1e6:.0f} MB in {folder} "
                f"({error.strerror}): make room, or write cache: false",
            ) from error
        for old in set(folder.glob(f"{name}-*")) - {index, content}:
            with contextlib.suppress(OSError):  # another process has it open, on Windows
                old.unlink()
    return found


def _opened(index: Path, content: Path) -> MappedSequences | None:
    """Return what the index describes, if both files are there and whole."""
    try:
        entries = json.loads(index.read_text())
        shapes, faults = zip(*((tuple(shape), fault) for shape, fault in entries), strict=True)
        found = MappedSequences(content, list(shapes), list(faults))
        return found if content.stat().st_size == found.size else None
    except (OSError, ValueError, TypeError):
        return None


def _made(path: Path, names: Sequence[str], workers: int) -> MappedSequences:
    """Write all sequences that can be read, one after another."""
    shapes, faults = [], []
    with (
        replacing(path, durable=True) as part,
        part.open("wb") as file,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        for first in range(0, len(names), BLOCK):
            for frames, fault in pool.map(try_to_read, names[first : first + BLOCK]):
                shapes.append(() if frames is None else frames.shape)
                faults.append(fault)
                if frames is not None:
                    file.write(frames.data)
    return MappedSequences(path, shapes, faults)


def try_to_read(path: str) -> tuple[np.ndarray | None, str]:
    """Return a sequence, or None and why it cannot be read."""
    try:
        return read_sequence(path), ""
    except SequenceError as error:
        return None, str(error)


def _state(path: str) -> str:
    """Return what changes when a file does."""
    try:
        stat = os.stat(path)
    except OSError:
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
