"""One silhouette sequence on disk: a pickled numpy array, read without trusting the pickle.

The files are those of OpenGait's CASIA-B-pkl: ``pickle.dump`` of a ``(T, H, W)`` uint8 array. A
pickle is a small program, and a downloaded data set is somebody else's program; so the reader gives
it inert stand-ins instead of numpy's own functions, and refuses every other name. Nothing in a file
can run, whatever its author intended: even ``numpy.ndarray`` is kept from it, because that can make
Python objects of raw bytes.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gaitlib.system.files import replacing


class SequenceError(ValueError):
    """A sequence file cannot be used; the message names the file and the reason."""


class _Dtype:
    """Stands in for ``numpy.dtype``: remembers the name."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Drop byte order and alignment: a uint8 has neither."""


class _Array:
    """Stands in for ``numpy.ndarray``: remembers shape, dtype, order and bytes."""

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


ADMITTED = {
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
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no array needs; nothing of it was run"
            )
        return ADMITTED[module, name]


def read_sequence(path: str | Path) -> np.ndarray:
    """Read one sequence.

    Args:
        path: a pickle of a ``(T, H, W)`` uint8 array, T >= 1, of any numpy and pickle protocol.

    Returns:
        ``(T, H, W)`` uint8, writable and C-contiguous.

    Raises:
        SequenceError: the file is missing, damaged, empty, or holds anything but such an array.
    """
    try:
        content = Path(path).read_bytes()
        if not content:
            raise SequenceError(f"{path} is empty: 0 bytes")
        loaded = _ArrayUnpickler(io.BytesIO(content)).load()
    except SequenceError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise SequenceError(f"cannot read the sequence {path}: {reason}") from error
    if not isinstance(loaded, _Array) or loaded.content is None:
        kind = type(loaded).__name__
        raise SequenceError(f"{path} holds a {kind}, not a pickled (T, H, W) uint8 array")
    shape, dtype, order, data = loaded.content
    dtype = dtype.name if isinstance(dtype, _Dtype) else dtype
    if dtype not in ("u1", "|u1"):
        raise SequenceError(f"{path} holds dtype {dtype!r}; silhouettes are uint8 ('u1'), 0 to 255")
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int for n in shape)):
        raise SequenceError(f"{path} holds an array of shape {shape}; a sequence is (T, H, W)")
    if min(shape) < 1:
        raise SequenceError(f"{path} is empty: shape {shape}")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape):
        raise SequenceError(f"{path} is damaged: its bytes do not fill the shape {shape}")
    frames = np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")
    return np.array(frames, order="C")  # (T, H, W)


def try_to_read(path: str | Path) -> tuple[np.ndarray | None, str]:
    """Return a sequence, or None and why it cannot be read."""
    try:
        return read_sequence(path), ""
    except SequenceError as error:
        return None, str(error)


def write_sequence(path: str | Path, frames: np.ndarray) -> None:
    """Write one sequence so that this project and OpenGait read it; never half a file.

    Args:
        path: where to; its folder is made. The file is written beside it and renamed.
        frames: ``(T, H, W)`` uint8.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8 or not frames.size:
        raise SequenceError(
            f"{path}: a sequence is (T, H, W) uint8, got {frames.shape} {frames.dtype}"
        )
    with replacing(path) as part, part.open("wb") as file:
        pickle.dump(np.ascontiguousarray(frames), file, protocol=4)
