"""Write a file as a whole or not at all, and read it back."""

import contextlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gaitlib.system.errors import UserError

#: The end of the name of a file that is being written; it begins with a dot.
PART = ".part"


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` at the end.

    The folder is made if needed. If the block raises, ``path`` does not change and the temporary
    file is deleted. A killed process may leave behind a hidden ``.part`` file, which nothing reads.
    With ``durable`` the content reaches the disk before the rename, in case the power fails. The
    umask says who may read the file; with ``private`` only its owner may (mode 0600).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    part.touch(mode=0o600 if private else 0o666, exist_ok=False)
    try:
        yield part
        if durable:
            with part.open("r+b") as stream:
                os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file, UTF-8, so that no reader sees half of it; return its path."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if it is not JSON, or nested too deeply; the message has the file.
        OSError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error


def tensor_bytes(value: Any) -> bytes:
    """Return the content of the file that torch.save writes.

    torch.save writes to memory. So a full disk raises an ordinary OSError when the content is
    written, and the content does not depend on the file's name, which torch.save would store in it.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
