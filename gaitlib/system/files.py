"""The project's folder, and files that a reader never sees half of."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: The project's folder, and its experiments.
ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Give a path to write to, and put what was written there in ``path``'s place at the end.

    The folder is made if need be. If the block raises, ``path`` stays as it was and nothing is
    left beside it; a killed process may leave a hidden ``.part`` file, which no reader looks at.
    With ``durable`` the content is on the disk before the name is, in case the power fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        if durable:
            with part.open("r+b") as stream:
                os.fsync(stream.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file such that no reader sees half of it; return its path."""
    with replacing(path) as part:
        part.write_text(text)
    return path
