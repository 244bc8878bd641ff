"""One silhouette sequence on disk: a pickled numpy array, read without trusting the pickle.

The files are those of OpenGait's CASIA-B-pkl: ``pickle.dump`` of a ``(T, H, W)`` uint8 array. A
pickle is a small program, and a downloaded data set is a program from a stranger. So the reader
replaces numpy's functions by stand-ins that only store their arguments, and refuses every other
name. Nothing in a file can run. Even ``numpy.ndarray`` is replaced, because it can make Python
objects from raw bytes.
"""

import io
import math
import pickle
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gaitlib.data.pickle_scan import scan_pickle
from gaitlib.data.silhouettes import mask_fault
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing

MAX_BYTES = 1 << 30  # of a file; 4 kB are a frame
SEQUENCES_PER_BLOCK = 64  # in memory at a time while many are read


class SequenceError(UserError):
    """A sequence file cannot be used; the message names the file and the reason."""


class _Dtype:
    """Replaces ``numpy.dtype``: stores the name."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment: a uint8 has neither."""


class _Array:
    """Replaces ``numpy.ndarray``: stores shape, dtype, order and bytes."""

    content: tuple[Any, Any, Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.content = (shape, dtype, "F" if fortran else "C", data)


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.content = (shape, dtype, order, data)
    return array


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how protocols 0-2 write bytes


STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,  # protocol 5
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no array needs; none of it was run"
            )
        return STAND_INS[module, name]


def read_sequence(path: str | Path) -> np.ndarray:
    """Read one sequence.

    Args:
        path: a pickle of a ``(T, H, W)`` uint8 array, T >= 1, of any numpy and pickle protocol.

    Returns:
        ``(T, H, W)`` uint8, writable and C-contiguous.

    Raises:
        SequenceError: the file is missing, damaged or empty, or does not hold such an array.
    """
    try:
        content = _read_regular(Path(path))
        if not content:
            raise SequenceError(f"{path} is empty: 0 bytes")
        scan_pickle(content)
        loaded = _ArrayUnpickler(io.BytesIO(content)).load()
    except SequenceError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        reason = f"{type(error).__name__}: {error}"
        raise SequenceError(f"cannot read the sequence {path}: {reason}") from error
    if not isinstance(loaded, _Array) or loaded.content is None:
        kind = type(loaded).__name__
        raise SequenceError(f"{path} holds a {kind}, not a pickled (T, H, W) uint8 array")
    shape, dtype, order, data = loaded.content
    dtype = dtype.name if isinstance(dtype, _Dtype) else dtype
    sizes = isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int for n in shape)
    if dtype not in ("u1", "|u1") or not sizes:
        raise SequenceError(
            f"{path} holds dtype {dtype!r} of shape {shape}, so it is no silhouette sequence: "
            "those are uint8 ('u1') of (T, H, W)"
        )
    if min(shape) < 1:
        raise SequenceError(f"{path} is empty: shape {shape}")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape):
        raise SequenceError(f"{path} is damaged: its bytes do not fill the shape {shape}")
    frames = np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")
    return np.array(frames, order="C")  # (T, H, W)


def _read_regular(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block, or never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise SequenceError(f"{path} is no regular file: remove it")
    if found.st_size > MAX_BYTES:
        raise SequenceError(f"{path} has {found.st_size:,} bytes, more than any sequence")
    return path.read_bytes()


def try_to_read(path: str | Path) -> tuple[np.ndarray | None, str]:
    """Return a sequence and "", or None and the reason why it cannot be used.

    Frames that are no silhouettes are a reason too: `gaitlib.data.silhouettes.mask_fault`.
    """
    try:
        frames = read_sequence(path)
    except SequenceError as error:
        return None, str(error)
    if fault := mask_fault(frames):
        return None, f"{path} holds {fault}"
    return frames, ""


def read_all(
    paths: Sequence[str], keep: Callable[[np.ndarray | None], Any] | None = None
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Read sequences in threads; return their shapes and their faults, as :func:`try_to_read`.

    Args:
        paths: of the sequences.
        keep: called with each in order; with None, and the shape is (), where there is a fault.
    """
    paths, shapes, faults = list(paths), [], []
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(paths), SEQUENCES_PER_BLOCK):
            block = paths[first : first + SEQUENCES_PER_BLOCK]
            for frames, fault in pool.map(try_to_read, block):
                shapes.append(() if frames is None else frames.shape)
                faults.append(fault)
                if keep is not None:
                    keep(frames)
    return shapes, faults


def write_sequence(path: str | Path, frames: np.ndarray) -> None:
    """Write one sequence in the format that this project and OpenGait read.

    Args:
        path: of the file; its folder is made. A temporary file is written beside it and renamed, so
            that no reader sees half a file.
        frames: ``(T, H, W)`` uint8.

    Raises:
        SequenceError: ``frames`` are something else.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8 or not frames.size:
        raise SequenceError(
            f"{path}: a sequence is (T, H, W) uint8, got {frames.shape} {frames.dtype}"
        )
    with replacing(path) as part, part.open("wb") as file:
        pickle.dump(np.ascontiguousarray(frames), file, protocol=4)
