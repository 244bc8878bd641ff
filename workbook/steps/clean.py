"""Find and remove what killed processes and earlier versions of the data have left behind."""

import logging
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gaitlib.data.mapped_file import superseded_files
from gaitlib.system.files import PART
from workbook.runs import STAGES, data_folder, figures_folder, runs_folder
from workbook.system.folders import files_in_use

log = logging.getLogger(__name__)

#: Seconds since it was last written after which an unfinished file counts as left behind.
UNTOUCHED = 3600.0
#: The time at the end of the name of a compressed network, the same for the files of one.
TIME = re.compile(r"_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)\.\w+")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing reads any more.

    Attributes:
        path: of it.
        reason: why nothing does.
        size: its bytes.
    """

    path: Path
    reason: str
    size: int


def find_leftovers() -> list[Leftover]:
    """Return what may be removed from the workspace's runs, data and figures.

    - unfinished files, and folders of jobs that were started from a notebook, which nobody has
      written to for an hour;
    - mapped files whose sequences have changed, or that were never finished;
    - compressed networks of a stage before its newest one.

    Files that a process of this machine has open are left out, and so are finished runs: those that
    a new start has moved to ``previous`` are the user's.
    """
    found: dict[Path, str] = {}
    folders = [runs_folder(), data_folder(), figures_folder()]
    for folder in folders:
        unfinished = folder.rglob(f".*{PART}") if folder.is_dir() else ()
        found |= {path: "a killed process left it" for path in unfinished if _untouched(path)}
    for path in runs_folder().glob(".launch-*"):
        if _untouched(path):
            found[path] = "a killed process left it"
    for path in superseded_files(data_folder() / "mapped"):
        if _untouched(path):
            found[path] = "its sequences have changed, or it was never finished"
    found |= dict.fromkeys(_earlier_networks(), "the stage has a newer network")
    in_use = files_in_use(folders)
    places = {path: path.resolve() for path in found}  # a folder may be a link
    return [
        Leftover(path, reason, _size(path))
        for path, reason in sorted(found.items())
        if not any(places[path] in (used, *used.parents) for used in in_use)
    ]


def remove_leftovers(leftovers: list[Leftover]) -> None:
    """Remove them; one that cannot be removed is a warning."""
    for leftover in leftovers:
        try:
            if leftover.path.is_dir():
                shutil.rmtree(leftover.path)
            else:
                leftover.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s stays: %s", leftover.path, error.strerror)


def _untouched(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > UNTOUCHED
    except OSError:  # it is gone
        return False


def _earlier_networks() -> Iterator[Path]:
    """Yield the files of compressed networks that have a newer one beside them."""
    for folder in runs_folder().rglob("compressed"):
        if folder.parent.name not in STAGES or "previous" in folder.parts:
            continue
        files = {path: match[1] for path in folder.iterdir() if (match := TIME.search(path.name))}
        newest = max(
            (time for path, time in files.items() if path.name.startswith("compressed_")),
            default="",
        )
        yield from (path for path, time in files.items() if time < newest and path.is_file())


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
