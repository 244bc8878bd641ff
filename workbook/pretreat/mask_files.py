"""Files of raw masks in folders and archives, listed and read within limits.

Archives are ``.tar``, ``.tar.gz``, ``.tgz`` and ``.zip``. One in a folder counts as a folder of its
name; if its members are in such a folder already, that is the same one. Nothing is unpacked to
disk, and what an archive claims cannot fill the memory.
"""

from __future__ import annotations

import gzip
import io
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
NOT_USED = "damaged archive, none of it was used"
PARTS = 8  # a tree of fewer folders is divided further, so that processes can share it
DIVIDED = 3  # at most as deep, which keeps the folders of one GREW subject together

#: What reading a damaged archive may raise; a method of packing that is not known is the last.
DAMAGE = tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError


class DamagedArchiveError(Exception):
    """A member cannot be read, so none of its archive is to be used."""


@dataclass(frozen=True)
class MaskFile:
    """A file below a data set's folder.

    Attributes:
        label: its path, for people.
        folders: names of its folders below the data set's, outermost first.
        name: of the file.
        path: of the file, or of the archive that it is a member of.
        is_member: of an archive.
        read: returns its content; may raise OSError or ValueError with the reason, and of a member
            DamagedArchiveError. A member can be read only until the next file is listed.
    """

    label: str
    folders: tuple[str, ...]
    name: str
    path: Path
    is_member: bool
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Part:
    """A part of a data set that one process reads.

    Attributes:
        path: a folder or an archive.
        folders: the folder's name and those above it, or those above the archive; below the data
            set's, outermost first.
        deep: whether the folders inside belong to it too.
        without: a folder inside that does not belong to it: that of the results.
        is_set: it is the whole data set, whose name is no folder of its files.
    """

    path: Path
    folders: tuple[str, ...] = ()
    deep: bool = True
    without: Path | None = None
    is_set: bool = False


def archive_stem(name: str) -> str | None:
    """Return an archive's name without its ending; None if it has another ending, or is hidden."""
    for ending in sorted(ARCHIVES, key=len, reverse=True):
        if name.lower().endswith(ending) and not name.startswith("."):
            return name[: -len(ending)]
    return None


def divide(src: Path, without: Path | None = None) -> list[Part]:
    """Return the parts of a data set: an archive itself, or a folder's entries, sorted.

    While there are few, folders are divided into theirs. The folder ``without`` is left out.
    """
    without = None if without is None else without.absolute()
    parts = [Part(src, without=without, is_set=True)]
    for _ in range(DIVIDED):
        if len(parts) >= PARTS:
            break
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
        if entry.is_dir() and not entry.name.startswith("."):
            found.append(Part(entry, (*part.folders, entry.name), without=part.without))
        elif archive_stem(entry.name) is not None:
            found.append(Part(entry, part.folders))
        else:
            others = True  # files, and hidden folders
    return [*found, replace(part, deep=False)] if others or not found else found


def list_files(
    part: Part, leave_out: Callable[[str, str], None], damaged: set[Path]
) -> Iterator[MaskFile]:
    """Yield the files of a part, folder by folder.

    Args:
        part: of `divide`.
        leave_out: is told the path of what is not yielded, and why.
        damaged: receives the archives that are damaged, or unpack to too much; what they yielded
            before is not to be used.
    """

    def archive(path: Path, above: tuple[str, ...]) -> Iterator[MaskFile]:
        try:
            yield from _list_archive(path, above, part.is_set and path == part.path, leave_out)
        except DAMAGE as error:
            if path not in damaged:
                damaged.add(path)
                leave_out(str(path), f"{NOT_USED}: {error}")

    def not_listed(error: OSError) -> None:
        leave_out(str(error.filename), f"it cannot be listed: {error.strerror}")

    if not part.path.is_dir():
        yield from archive(part.path, part.folders)
        return
    for folder, names, files in os.walk(part.path, onerror=not_listed):
        here = Path(folder)
        folders = (*part.folders, *here.relative_to(part.path).parts)
        names[:] = [n for n in names if (here / n).absolute() != part.without]
        for name in [n for n in names if n.startswith(".")]:
            leave_out(str(here / name), "a hidden folder")
        if not names and not files:
            leave_out(folder, "an empty folder")
        names[:] = sorted(n for n in names if not n.startswith(".")) if part.deep else []
        for name in sorted(files):
            path = here / name
            if name.startswith("."):
                leave_out(str(path), "a hidden file")
            elif archive_stem(name) is None:
                yield MaskFile(str(path), folders, name, path, False, partial(_content, path))
            elif part.deep:  # else it is a part of its own
                yield from archive(path, folders)


def _content(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block, or never end."""
    if not path.is_file():
        raise UserError("no regular file")
    if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise UserError(f"{size} bytes, too large for a frame")
    return path.read_bytes()


def _list_archive(
    archive: Path, above: tuple[str, ...], is_set: bool, leave_out: Callable[[str, str], None]
) -> Iterator[MaskFile]:
    stem = archive_stem(archive.name) or archive.stem
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    if not archive.is_file():
        raise OSError("no regular file")
    for number, (name, size, read) in enumerate(members(archive)):
        if number >= MAX_MEMBERS:
            raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members: unpack it")
        label, parts = f"{archive}:{name}", PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts:
            leave_out(label, "its path leaves the archive")
        elif any(part.startswith(".") for part in parts):
            leave_out(label, "a hidden file")
        elif read is None:
            leave_out(label, "no regular file")
        elif size > MAX_IMAGE_BYTES:
            leave_out(label, f"{size} bytes, too large for a frame")
        else:
            own = parts[1:-1] if parts[0] == stem and len(parts) > 1 else parts[:-1]
            own = own if is_set else (stem, *own)
            yield MaskFile(label, (*above, *own), parts[-1], archive, True, partial(_member, read))


def _member(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except DAMAGE as error:
        raise DamagedArchiveError(str(error)) from error


Member = tuple[str, int, Callable[[], bytes] | None]  # name, size, and how it is read


def _tar_members(archive: Path) -> Iterator[Member]:
    with open(archive, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as content, _Bounded(content) as bounded:
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # it would keep them all
                    if member.isdir():
                        continue
                    read = partial(_read_member, tar, member) if member.isfile() else None
                    yield member.name, member.size, read


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return tar.extractfile(member).read()


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        if (total := sum(member.file_size for member in members)) > MAX_ARCHIVE_BYTES:
            raise zipfile.BadZipFile(
                f"it unpacks to {total:,} bytes, more than {MAX_ARCHIVE_BYTES:,}"
            )
        if any(member.flag_bits & 1 for member in members):
            raise zipfile.BadZipFile("it has a password: unpack it")
        for member in members:
            if not member.is_dir():
                yield member.filename, member.file_size, partial(content.read, member)


class _Bounded(io.RawIOBase):
    """An unpacked archive that refuses what a small file can unpack to.

    Args:
        file: it gives the unpacked content.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; tarfile asks for a block of a header, or for a member."""
        if not 0 <= size <= MAX_IMAGE_BYTES:
            raise tarfile.ReadError(f"a part of {size:,} bytes, too large for a frame")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; reads what lies before it in small parts."""
        self._check(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes")
