"""The project's folder, and what may be the name of a file or folder."""

import contextlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

#: The project's folder, and the folder of its experiments.
ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"


def name_fault(name: str, longest: int = 255) -> str:
    """Return why a text cannot be the name of a file or folder, as "it ..."; "" if it can.

    Args:
        name: the text.
        longest: the most bytes that it may have in UTF-8.
    """
    if not name or name != name.strip():
        return "it is empty, or begins or ends with a space"
    if set("/\\") & set(name):
        return "it has a / or \\, which separate folders"
    if name.startswith("."):
        return "it begins with a ."
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "it has a control character"
    return f"it is longer than {longest} bytes" if len(name.encode()) > longest else ""


def files_in_use(folders: Iterable[Path]) -> set[Path]:
    """Return the files below some folders that a process of this machine has open or mapped.

    Only Linux tells, and only of this user's processes.
    """
    roots = [str(folder.resolve()) + os.sep for folder in folders]
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            lines = (process / "maps").read_text(errors="replace").splitlines()
            names |= {line.partition("/")[2] for line in lines if "/" in line}
            for file in list((process / "fd").iterdir()):
                with contextlib.suppress(OSError):  # closed meanwhile
                    names.add(os.readlink(file)[1:])
    return {Path(f"/{name}") for name in names if any(f"/{name}".startswith(r) for r in roots)}
