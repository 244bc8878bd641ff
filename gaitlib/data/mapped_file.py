"""All sequences of a data set in one memory-mapped file: a clip costs the pages that it shows.

Each sequence is read and checked once, when the file is made. Processes share what of it the
system keeps in memory, and opening it again reads its index alone. A file that is there is never
written to, replaced or removed: a run may have it open.
"""

import glob
import hashlib
import json
import logging
import math
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gaitlib.data.sequence_file import try_to_read
from gaitlib.system.files import replacing

log = logging.getLogger(__name__)

FORMAT = 1  # of the index; a file of another one is made anew
BLOCK = 64  # sequences in memory at a time while the file is made


class MappedSequences:
    """Sequences of one file, by position. Pickled, it is the file's name; processes share the file.

    Args:
        path: of the file, in which those that can be read stand one after another.
        shapes: (T, H, W) of each; () of one that cannot be read.
        faults: why a sequence cannot be read; "" of one that can.

    Raises:
        ValueError: if the file has not the size of these sequences.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, ...]], faults: list[str]) -> None:
        self.path, self.shapes, self.faults = path, shapes, faults
        self._ends = np.cumsum([math.prod(shape) if shape else 0 for shape in shapes]).tolist()
        size = path.stat().st_size
        if size != (self._ends[-1] if shapes else 0):
            raise ValueError(f"{path} has {size} bytes, not those of its sequences")
        self._content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)

    def __getitem__(self, position: int) -> np.ndarray:
        """Return one that can be read, ``(T, H, W)`` uint8, read-only."""
        shape, end = self.shapes[position], self._ends[position]
        return self._content[end - math.prod(shape) : end].reshape(shape).view(np.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedSequences, (self.path, self.shapes, self.faults)


def map_sequences(folder: Path, paths: Sequence[str], workers: int = 2) -> MappedSequences:
    """Open the file of some sequences; make it first if it is not there, or older than one of them.

    It is found by the paths, and by the size and the time of change of each file. Its index is
    written last, so one that was begun and not finished is begun again. Processes that make it at
    the same time do not disturb each other. A file that is out of date is named in the log.

    Args:
        folder: where it is, or will be.
        paths: of the sequences.
        workers: reading threads.

    Raises:
        OSError: if the file cannot be written, with its size.
    """
    names = [os.path.abspath(path) for path in paths]
    name = f"{Path(os.path.commonpath(names)).name if names else ''}-{_digest(names)}"
    index = folder / f"{name}-{_digest([FORMAT, *map(_state, names)])}.json"
    if (found := _opened(index, names)) is not None:
        return found
    log.info("%d sequences are gathered in %s, once", len(names), folder)
    if old := sorted(path.name for path in folder.glob(f"{glob.escape(name)}-*.json")):
        log.warning(
            "%s: out of date, and no longer used; remove what is called so in %s when no run has "
            "it open", ", ".join(Path(one).stem for one in old), folder,
        )  # fmt: skip
    content = index.with_name(f"{index.stem}-{uuid.uuid4().hex[:8]}.bin")  # each maker's own
    try:
        shapes, faults = _write(content, names, workers)
        if (found := _opened(index, names)) is not None:  # another process was quicker
            content.unlink()
            return found
        with replacing(index, durable=True) as part:
            part.write_text(json.dumps([content.name, shapes, faults]))
    except OSError as error:
        content.unlink(missing_ok=True)
        needed = sum(os.path.getsize(path) for path in names if os.path.exists(path))
        raise OSError(
            error.errno,
            f"data_cfg.cache: mapped needs {needed / 1e6:.0f} MB in {folder} "
            f"({error.strerror}): make room, or write cache: false",
        ) from error
    return MappedSequences(content, shapes, faults)


def _opened(index: Path, names: Sequence[str]) -> MappedSequences | None:
    """Return what the index describes: if it is whole, and what could not be read still cannot."""
    try:
        content, shapes, faults = json.loads(index.read_text())
        found = MappedSequences(index.with_name(content), list(map(tuple, shapes)), faults)
    except (OSError, ValueError, TypeError):
        return None
    faulty = [name for name, fault in zip(names, faults, strict=True) if fault]
    return None if any(not try_to_read(name)[1] for name in faulty) else found


def _write(
    path: Path, names: Sequence[str], workers: int
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Write all sequences that can be read, one after another; return shapes and faults."""
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
    return shapes, faults


def _state(path: str) -> str:
    """Return what changes when a file does."""
    try:
        stat = os.stat(path)
    except OSError:
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
