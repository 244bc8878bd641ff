"""Files of raw masks in folders and archives, listed and read within limits.

Archives are ``.tar``, ``.tar.gz``, ``.tgz`` and ``.zip``. One in a folder counts as a folder of its
name; if its members are in such a folder already, that is the same one. Nothing is unpacked to
disk, and what an archive claims cannot fill the memory.
"""

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gaitlib.system.errors import UserError
from workbook.pretreat.masks import MAX_IMAGE_BYTES

MAX_ARCHIVE_BYTES = 1 << 31  # unpacked; those of CASIA-B's subjects have about 20 MB
MAX_MEMBERS = 200_000  # of one archive; those of CASIA-B's subjects have about 10,000
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
PARTS = 8  # a tree of fewer folders is divided further, so that processes can share it
DIVIDED = 3  # at most as deep, which keeps the folders of one GREW subject together

#: What reading an archive may raise; the last if it is encrypted or packed in an unknown way.
DAMAGE = tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError

Skipped = list[tuple[str, str]]  # path of what is not taken, and why


@dataclass(frozen=True)
class MaskFile:
    """A file below a data set's folder.

    Attributes:
        label: its path, for people.
        folders: names of its folders below the data set's, outermost first.
        name: of the file.
        archive: that it is a member of; None for a file on disk.
        read: returns its content; may raise OSError or ValueError with the reason. A member can be
            read only until the next file is listed.
    """

    label: str
    folders: tuple[str, ...]
    name: str
    archive: Path | None
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Part:
    """A part of a data set that one process reads.

    Attributes:
        src: the data set's folder or archive.
        path: a folder or an archive in it, or itself.
        deep: whether the folders inside belong to it too.
        without: a folder inside that does not belong to it: that of the results.
    """

    src: Path
    path: Path
    deep: bool = True
    without: Path | None = None


def archive_stem(name: str) -> str | None:
    """Return an archive's name without its ending; None if it has another ending, or is hidden."""
    for ending in ARCHIVES:
        if name.lower().endswith(ending) and not name.startswith("."):
            return name[: -len(ending)]
    return None


def divide(src: Path, without: Path | None = None) -> list[Part]:
    """Return the parts of a data set: an archive itself, or a folder's entries, sorted.

    While there are few, folders are divided into theirs. The folder ``without`` is left out.
    """
    parts = [Part(src, src, without=without and without.absolute())]
    for _ in range(DIVIDED):
        if len(parts) < PARTS:
            parts = [inner for part in parts for inner in _inside(part)]
    return sorted(parts, key=lambda part: str(part.path))


def _inside(part: Part) -> list[Part]:
    """Return a folder's folders and archives, and the folder without them for its other files."""
    if not part.deep or not part.path.is_dir():
        return [part]
    found, others = [], False
    for entry in sorted(part.path.iterdir()):
        if entry.absolute() == part.without:
            continue
        is_folder = entry.is_dir() and not entry.name.startswith(".")
        if is_folder or archive_stem(entry.name) is not None:
            found.append(replace(part, path=entry))
        else:
            others = True  # files, and hidden folders
    return [*found, replace(part, deep=False)] if others or not found else found


def list_files(part: Part, skipped: Skipped, damaged: set[Path]) -> Iterator[MaskFile]:
    """Yield the files of a part, folder by folder.

    Args:
        part: of `divide`.
        skipped: receives what is not yielded.
        damaged: receives the archives that are damaged, or unpack to too much, also those whose
            members turn out so when they are read. What they yielded is not to be used.
    """

    def not_listed(error: OSError) -> None:
        skipped.append((str(error.filename), f"it cannot be listed: {error.strerror}"))

    if not part.path.is_dir():
        yield from _list_archive(part.path, part.src, skipped, damaged)
        return
    for folder, names, files in os.walk(part.path, onerror=not_listed):
        here = Path(folder)
        names[:] = [n for n in names if (here / n).absolute() != part.without]
        skipped += [(str(here / n), "a hidden folder") for n in names if n.startswith(".")]
        if not names and not files:
            skipped.append((folder, "an empty folder"))
        names[:] = sorted(n for n in names if not n.startswith(".")) if part.deep else []
        for name in sorted(files):
            path = here / name
            if name.startswith("."):
                skipped.append((str(path), "a hidden file"))
            elif archive_stem(name) is None:
                folders = here.relative_to(part.src).parts
                yield MaskFile(str(path), folders, name, None, partial(_content, path))
            elif part.deep:  # else it is a part of its own
                yield from _list_archive(path, part.src, skipped, damaged)


def _content(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block, or never end."""
    if not path.is_file():
        raise UserError("no regular file")
    if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise UserError(f"{size} bytes, too large for a frame")
    return path.read_bytes()


def _list_archive(
    archive: Path, src: Path, skipped: Skipped, damaged: set[Path]
) -> Iterator[MaskFile]:
    def refuse(error: BaseException) -> str:
        reason = f"damaged archive, none of it was used: {error}"
        if archive not in damaged:
            damaged.add(archive)
            skipped.append((str(archive), reason))
        return reason

    def content(read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except DAMAGE as error:
            raise UserError(refuse(error)) from error

    stem, total = archive_stem(archive.name), 0
    folders = () if archive == src else (*archive.parent.relative_to(src).parts, stem)
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    try:
        if not archive.is_file():
            raise OSError("no regular file")
        for number, (name, size, read) in enumerate(members(archive)):
            if number >= MAX_MEMBERS:
                raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members: unpack it")
            total += size
            if total > MAX_ARCHIVE_BYTES:
                raise tarfile.ReadError(f"it unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes")
            label, parts = f"{archive}:{name}", PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or not parts:
                skipped.append((label, "its path leaves the archive"))
            elif any(part.startswith(".") for part in parts):
                skipped.append((label, "a hidden file"))
            elif read is None:
                skipped.append((label, "no regular file"))
            elif size > MAX_IMAGE_BYTES:
                skipped.append((label, f"{size} bytes, too large for a frame"))
            else:
                own = parts[1:-1] if parts[0] == stem and len(parts) > 1 else parts[:-1]
                read = partial(content, read)
                yield MaskFile(label, (*folders, *own), parts[-1], archive, read)
    except DAMAGE as error:
        refuse(error)


Member = tuple[str, int, Callable[[], bytes] | None]  # name, size, and how it is read


def _tar_members(archive: Path) -> Iterator[Member]:
    with open(archive, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as content:
            with tarfile.open(fileobj=_Bounded(content), mode="r:") as tar:
                for member in tar:
                    tar.members = []  # it would keep them all
                    if not member.isdir():
                        file = tar.extractfile(member) if member.isfile() else None
                        yield member.name, member.size, file and file.read


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size, partial(content.read, member)


class _Bounded:
    """An unpacked archive, as tarfile reads it, that refuses what a small file can unpack to.

    Args:
        file: it gives the unpacked content.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._read = file.tell, file.seek, file.read

    def read(self, size: int) -> bytes:
        """Return the next bytes; tarfile asks for a block of a header, or for a member."""
        end = self.tell() + size
        if not 0 <= size <= MAX_IMAGE_BYTES or end > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f"a part of {size:,} bytes, up to {end:,}, is too large")
        return self._read(size)
