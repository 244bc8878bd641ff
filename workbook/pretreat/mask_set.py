"""A set of raw masks: find out how it is read, sort its files by walk, and align its frames."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from gaitlib.data.alignment import NO_DATA_SUM, SIZE, align_frame
from gaitlib.data.sequence_file import read_sequence
from gaitlib.data.silhouettes import BRIGHT, mask_fault
from gaitlib.system.errors import UserError
from workbook.pretreat.mask_files import (
    ARCHIVES,
    NOT_USED,
    DamagedArchiveError,
    MaskFile,
    Part,
    archive_stem,
    divide,
    list_files,
)
from workbook.pretreat.mask_layouts import Key, check_layout, find_layout, number_galleries, walk_of
from workbook.pretreat.masks import FORMATS, MaskReading, RawMask, decode_mask, understand_masks

logger = logging.getLogger(__name__)

PICKLE = ".pkl"
KINDS = (*FORMATS, PICKLE)  # of files, by their ending
#: How much `understand` looks at: masks in all, masks of one folder, and files of one part.
LOOKED_AT, PER_FOLDER, PER_PART = 48, 3, 4000
Prepared = tuple[np.ndarray | None, str]  # an aligned frame, or None and why there is none
#: Frame number, file, and its aligned frames, or None to read it later.
Found = tuple[int, MaskFile, list[Prepared] | None]


@dataclass(frozen=True)
class Understanding:
    """How a set of raw masks is read.

    Attributes:
        layout: a name of `workbook.pretreat.mask_layouts.LAYOUTS`.
        reading: how values become silhouettes.
        example: a file, and the walk that it belongs to.
        samples: label and mask of the files that were looked at.
    """

    layout: str
    reading: MaskReading
    example: str
    samples: Sequence[tuple[str, RawMask]] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"layout {self.layout} ({self.example}); masks: {self.reading.words}"

    def record(self) -> dict[str, object]:
        """Return what decides the result, as plain values."""
        reading = self.reading
        return {
            "layout": "id/type/view" if self.layout == "type/view" else self.layout,
            "alpha": reading.alpha,
            "above": reading.above,
            "inverted": reading.inverted,
        }


def understand(
    src: str | Path,
    layout: str | None = None,
    invert: bool | None = None,
    threshold: int | None = None,
    without: Path | None = None,
) -> Understanding:
    """Look at some masks of a set and find out how all of it is read.

    Args:
        src: a folder or an archive.
        layout: a name of `workbook.pretreat.mask_layouts.LAYOUTS`; None finds out.
        invert: whether the background is bright; None finds out.
        threshold: values above it (of the file's own) are the person; None finds out.
        without: a folder in ``src`` that is left out.

    Raises:
        FileNotFoundError: ``src`` is absent, or no mask was found in it.
        UserError: the layout is unknown, ``src`` is another kind of file, or the masks do not say
            how they are to be read.
    """
    src = Path(src)
    if layout is not None:
        check_layout(layout)
    if not src.exists():
        raise FileNotFoundError(f"no raw data set at {src}; unpack CASIA-B's silhouettes there")
    if src.is_file() and archive_stem(src.name) is None:
        raise UserError(
            f"{src} is no folder and no archive ({', '.join(ARCHIVES)}): give the folder of a "
            "walk's masks; `gaitlib embed`, `enroll` and `identify` take one video or pickle too"
        )
    parts = divide(src, without)
    step = max(1, len(parts) // LOOKED_AT)
    found: list[tuple[MaskFile, RawMask]] = []
    for part in [*parts[::step], *(p for i, p in enumerate(parts) if i % step)]:
        if len(found) >= LOOKED_AT:
            break
        found += _look_at(part, LOOKED_AT - len(found) if len(parts) == 1 else 12)
    if not found:
        raise FileNotFoundError(
            f"{src} holds no <subject>/<type>/<view>/<frame>.png, and no other mask that can be "
            f"read ({', '.join(KINDS)}, in folders or archives)"
        )
    layout = layout or find_layout([file.folders for file, _ in found])
    reading = understand_masks([mask for _, mask in found], invert, threshold)
    first = found[0][0]
    key, reason = walk_of(layout, first.folders, set_name(src))
    told = reason or "subject {}, type {}, view {}".format(*key)
    shown = "/".join((*first.folders, first.name))
    samples = [(file.label, mask) for file, mask in found]
    return Understanding(layout, reading, f"{shown}{': ' if reason else ' is '}{told}", samples)


def set_name(src: Path) -> str:
    """Return the name of a data set's folder or archive, without the archive's ending."""
    return archive_stem(src.name) or src.absolute().name


def _look_at(part: Part, count: int) -> list[tuple[MaskFile, RawMask]]:
    """Return some masks of a part, from several folders and from the middle of each."""
    found, in_folder = [], {}
    for file in islice(list_files(part, lambda path, reason: None, set()), PER_PART):
        seen = in_folder.setdefault(file.folders, [0, 0])
        seen[0] += 1
        if not _is_mask(file.name) or seen[1] >= PER_FOLDER or seen[0] not in (1, 2, 8, 16):
            continue
        try:
            frames = _raw_frames(file)
        except (OSError, ValueError, DamagedArchiveError):
            seen[0] -= 1  # look at the next one
            continue
        found.append((file, frames[len(frames) // 2]))
        seen[1] += 1
        if len(found) >= count:
            break
    return found


def write_preview(understood: Understanding, path: Path, size: int = SIZE) -> Path:
    """Write a contact sheet: masks as they are in the files, and below as they are understood.

    Args:
        understood: of `understand`.
        path: of the PNG file.
        size: rows and columns of an aligned frame.
    """
    tiles = []
    for _, raw in list(understood.samples)[:: max(1, len(understood.samples) // 12)][:12]:
        as_stored = (raw.values >> (8 if raw.values.dtype == np.uint16 else 0)).astype(np.uint8)
        frame, _ = _aligned(raw, understood.reading, size)
        shown = np.full((128, 128), 96, np.uint8) if frame is None else frame
        pair = [cv2.resize(image, (128, 128)) for image in (as_stored, shown)]
        tiles.append(np.pad(np.vstack(pair), 4, constant_values=160))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.hstack(tiles))[1].tobytes())
    return path


def sort_by_walk(
    part: Part,
    skipped: list[tuple[str, str]],
    layout: str,
    is_there: Callable[[Key], bool],
    prepare: Callable[[MaskFile], list[Prepared] | None],
    top: str,
) -> tuple[dict[Key, list[Found]], int]:
    """Sort a part's masks by walk, and return how many there are; the members of archives are read.

    Args:
        part: of the set.
        skipped: receives path and reason of what is not taken.
        layout: of the set.
        is_there: whether a walk is finished, so that its files need not be read.
        prepare: reads a file.
        top: the set's own name, see `walk_of`.
    """
    files: dict[Key, list[Found]] = {}
    masks, damaged = 0, set()

    def leave_out(path: str, reason: str) -> None:
        skipped.append((path, reason))

    for file in list_files(part, leave_out, damaged):
        if not _is_mask(file.name):
            leave_out(file.label, f"no mask: {', '.join(KINDS)} are read")
            continue
        masks += 1
        number = re.search(r"[0-9]+$", PurePosixPath(file.name).stem)
        key, reason = walk_of(layout, file.folders, top)
        is_pickle = file.name.lower().endswith(PICKLE)
        if key is None:
            leave_out(file.label, reason)
        elif number is None and not is_pickle:
            leave_out(file.label, "no frame number at the end of its name")
        else:
            try:
                read = prepare(file) if file.is_member and not is_there(key) else None
            except DamagedArchiveError as error:
                if file.path not in damaged:
                    damaged.add(file.path)
                    leave_out(str(file.path), f"{NOT_USED}: {error}")
                continue
            in_order = 0 if is_pickle else int(number[0])
            files.setdefault(key, []).append((in_order, file, read))
    for key in list(files):  # the next call would take half a sequence for a finished one
        files[key] = [f for f in files[key] if not (f[1].is_member and f[1].path in damaged)]
        if not files[key]:
            del files[key]
    return files, masks + len(damaged)


def frames_of(
    found: list[Found],
    skipped: list[tuple[str, str]],
    prepare: Callable[[MaskFile], list[Prepared]],
) -> Iterator[np.ndarray]:
    """Yield the aligned frames of one walk in the order of their numbers."""
    for _, file, read in sorted(found, key=lambda one: (one[0], one[1].label)):
        for frame, reason in prepare(file) if read is None else read:
            if frame is None:
                skipped.append((file.label, reason))
            else:
                yield frame


def read_walks(
    src: str | Path,
    size: int = SIZE,
    layout: str | None = None,
    invert: bool | None = None,
    threshold: int | None = None,
) -> tuple[dict[Key, np.ndarray], list[tuple[str, str]]]:
    """Pretreat raw masks in memory: for a few walks, not for a data set.

    Args:
        src: a folder or an archive.
        size: rows and columns of a frame.
        layout: see `understand`, like the following.
        invert: whether the background is bright.
        threshold: values above it are the person.

    Returns:
        The walks, ``(T, size, size)`` uint8, by subject, type and view, and path and reason of what
        was skipped.

    Raises:
        FileNotFoundError or ValueError: as `understand`.
    """
    src = Path(src)
    understood, skipped = understand(src, layout, invert, threshold), []
    logger.info("%s: %s", src, understood)
    prepare = partial(prepare_file, reading=understood.reading, size=size)
    walks = {}
    for part in divide(src):
        files, _ = sort_by_walk(
            part, skipped, understood.layout, lambda key: False, prepare, set_name(src)
        )
        for found, key in number_galleries(files).items():
            if frames := list(frames_of(files[found], skipped, prepare)):
                walks[key] = np.stack(frames)
    return walks, skipped


def _is_mask(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (*FORMATS, PICKLE)


def _raw_frames(file: MaskFile) -> list[RawMask]:
    """Return the masks of a file: one of an image, all frames of a pickle.

    Raises:
        UserError: with the reason alone; or OSError.
    """
    if not file.name.lower().endswith(PICKLE):
        return [decode_mask(file.read())]
    if file.is_member:
        raise UserError("a pickle in an archive: unpack it first")
    return [RawMask(frame) for frame in read_sequence(file.path)]


def prepare_file(file: MaskFile, reading: MaskReading, size: int) -> list[Prepared]:
    """Read, decode and align a file's frames; instead of one say why it cannot be used."""
    try:
        return [_aligned(raw, reading, size) for raw in _raw_frames(file)]
    except (OSError, ValueError) as error:
        return [(None, str(error))]


def _aligned(raw: RawMask, reading: MaskReading, size: int) -> Prepared:
    mask = reading.apply(raw)
    top = int(mask.max(initial=0))
    if not top or top >= BRIGHT and cv2.sumElems(mask)[0] <= NO_DATA_SUM:
        return None, "no person in it"
    if fault := mask_fault(mask[None]):
        return None, fault
    frame = align_frame(mask, size)
    return frame, "" if frame is not None else "no person in it"
