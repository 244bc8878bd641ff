"""A set of raw masks: find out how it is read, sort its files by walk, and align its frames."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from gaitlib.data.alignment import NO_DATA_SUM, align_frame
from gaitlib.data.sequence_file import read_sequence
from gaitlib.data.silhouettes import BRIGHT, mask_fault
from gaitlib.system.errors import UserError
from workbook.pretreat.mask_files import (
    ARCHIVES,
    MaskFile,
    Part,
    Skipped,
    archive_stem,
    divide,
    list_files,
)
from workbook.pretreat.mask_layouts import LAYOUTS, Key, find_layout, number_galleries, walk_of
from workbook.pretreat.mask_options import NOTHING_TOLD, MaskOptions
from workbook.pretreat.masks import IMAGES, MaskReading, RawMask, decode_mask, understand_masks

logger = logging.getLogger(__name__)

PICKLE = ".pkl"
KINDS = (*IMAGES, PICKLE)  # of files, by their ending
#: How much `understand` looks at: masks in all, masks of one folder, and files of one part.
LOOKED_AT, PER_FOLDER, PER_PART = 48, 3, 4000
#: Frame number, file, and its aligned frames, or None to read it later.
Found = tuple[int, MaskFile, list[np.ndarray] | None]


@dataclass(frozen=True)
class Understanding:
    """How a set of raw masks is read.

    Attributes:
        layout: a name of `workbook.pretreat.mask_layouts.LAYOUTS`.
        reading: how values become silhouettes.
        top: the set's own name, see `walk_of`.
        words: all this for people, with a file and the walk that it belongs to.
        samples: the masks that were looked at; none if none can be read.
    """

    layout: str
    reading: MaskReading
    top: str
    words: str
    samples: Sequence[RawMask] = ()

    def record(self) -> dict[str, object]:
        """Return what decides the result, as plain values."""
        layout = "id/type/view" if self.layout == "type/view" else self.layout
        return {"layout": layout} | asdict(self.reading)


def understand(
    src: str | Path, told: MaskOptions = NOTHING_TOLD, without: Path | None = None
) -> Understanding:
    """Look at some masks of a set and find out how all of it is read.

    Args:
        src: a folder or an archive.
        told: what is not to be found out.
        without: a folder in ``src`` that is left out.

    Raises:
        FileNotFoundError: ``src`` is absent.
        UserError: the layout is unknown, ``src`` is another kind of file, or the masks do not say
            how they are to be read.
    """
    src = Path(src)
    if told.layout not in (None, *LAYOUTS):
        raise UserError(f"unknown layout {told.layout!r}; choose from {', '.join(LAYOUTS)}")
    if not src.exists():
        raise FileNotFoundError(f"no raw data set at {src}; unpack CASIA-B's silhouettes there")
    if not src.is_dir() and archive_stem(src.name) is None:
        raise UserError(
            f"{src} is no folder and no archive ({', '.join(ARCHIVES)}): give the folder of a "
            "walk's masks; `gaitlib embed`, `enroll` and `identify` take one video or pickle too"
        )
    parts = divide(src, without)
    step = max(1, len(parts) // LOOKED_AT)
    found: list[tuple[MaskFile, RawMask]] = []
    for part in [*parts[::step], *(p for i, p in enumerate(parts) if i % step)]:
        if len(found) < LOOKED_AT:
            found += _look_at(part, LOOKED_AT - len(found) if len(parts) == 1 else 12)
    top = archive_stem(src.name) or src.absolute().name
    if not found:
        layout = told.layout or "id/type/view"
        return Understanding(layout, MaskReading(), top, f"layout {layout}; no mask can be read")
    layout = told.layout or find_layout([file.folders for file, _ in found])
    samples = [mask for _, mask in found]
    reading, words = understand_masks(samples, told)
    first = found[0][0]
    key, reason = walk_of(layout, first.folders, top)
    example = "/".join((*first.folders, first.name))
    example += f": {reason}" if key is None else " is subject {}, type {}, view {}".format(*key)
    words = f"layout {layout} ({example}); masks: {words}"
    return Understanding(layout, reading, top, words, samples)


def _look_at(part: Part, count: int) -> list[tuple[MaskFile, RawMask]]:
    """Return some masks of a part, from several folders and from the middle of each."""
    found, in_folder = [], {}
    for file in islice(list_files(part, [], set()), PER_PART):
        seen = in_folder.setdefault(file.folders, [0, 0])
        seen[0] += 1
        if _ending(file) not in KINDS or seen[1] >= PER_FOLDER or seen[0] not in (1, 2, 8, 16):
            continue
        try:
            frames = _raw_frames(file)
        except (OSError, ValueError):
            seen[0] -= 1  # look at the next one
            continue
        found.append((file, frames[len(frames) // 2]))
        seen[1] += 1
        if len(found) >= count:
            break
    return found


def write_preview(understood: Understanding, path: Path, size: int) -> Path:
    """Write a contact sheet: masks as they are in the files, and below as they are understood.

    Args:
        understood: of `understand`.
        path: of the PNG file.
        size: rows and columns of an aligned frame.

    Raises:
        FileNotFoundError: no mask can be read.
    """
    if not understood.samples:
        raise FileNotFoundError(f"nothing to show: {understood.words} ({', '.join(KINDS)} are)")
    tiles = []
    for raw in understood.samples[:: max(1, len(understood.samples) // 12)][:12]:
        as_stored = (raw.values >> (8 if raw.values.dtype == np.uint16 else 0)).astype(np.uint8)
        frame, _ = _aligned(raw, understood.reading, size)
        shown = np.full((128, 128), 96, np.uint8) if frame is None else frame
        pair = [cv2.resize(image, (128, 128)) for image in (as_stored, shown)]
        tiles.append(np.pad(np.vstack(pair), 4, constant_values=160))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.hstack(tiles))[1].tobytes())
    return path


@dataclass
class PartReader:
    """Reads a part of a set, walk by walk.

    Attributes:
        part: of `divide`.
        understood: how the set is read.
        size: rows and columns of an aligned frame.
        masks: the number of files that could be masks, once the walks are read.
        skipped: what is not taken.
        damaged: archives that are not used.
    """

    part: Part
    understood: Understanding
    size: int
    masks: int = 0
    skipped: Skipped = field(default_factory=list)
    damaged: set[Path] = field(default_factory=set)

    def walks(
        self, is_there: Callable[[Key], object] = lambda key: False
    ) -> Iterator[tuple[Key, list[np.ndarray] | None]]:
        """Yield each walk and its aligned frames, in the order of their numbers.

        Args:
            is_there: whether a walk is finished; then None is yielded in place of its frames.
        """
        files = self._sort_by_walk(is_there)
        for found, key in number_galleries(files).items():
            in_order = sorted(files[found], key=lambda one: (one[0], one[1].label))
            frames = None if is_there(key) else []
            for _, file, read in in_order if frames is not None else ():
                frames += self._frames(file) if read is None else read
            yield key, frames

    def _sort_by_walk(self, is_there: Callable[[Key], object]) -> dict[Key, list[Found]]:
        """Return the part's masks by walk; members of archives are read, which can only be now."""
        files: dict[Key, list[Found]] = {}
        for file in list_files(self.part, self.skipped, self.damaged):
            ending = _ending(file)
            if ending not in KINDS:
                self.skipped.append((file.label, f"no mask: {', '.join(KINDS)} are read"))
                continue
            self.masks += 1
            number = re.search(r"[0-9]+$", PurePosixPath(file.name).stem)
            key, reason = walk_of(self.understood.layout, file.folders, self.understood.top)
            if key is None:
                self.skipped.append((file.label, reason))
            elif number is None and ending != PICKLE:
                self.skipped.append((file.label, "no frame number at the end of its name"))
            else:
                read = self._frames(file) if file.archive and not is_there(key) else None
                place = 0 if ending == PICKLE else int(number[0])
                files.setdefault(key, []).append((place, file, read))
        self.masks += len(self.damaged)
        # the next call would take half a sequence for a finished one
        whole = {k: [f for f in files[k] if f[1].archive not in self.damaged] for k in files}
        return {key: found for key, found in whole.items() if found}

    def _frames(self, file: MaskFile) -> list[np.ndarray]:
        """Return a file's aligned frames."""
        frames = []
        try:
            for raw in _raw_frames(file):
                frame, fault = _aligned(raw, self.understood.reading, self.size)
                if frame is None:
                    self.skipped.append((file.label, fault))
                else:
                    frames.append(frame)
        except (OSError, ValueError) as error:
            if file.archive not in self.damaged:  # else all of it is listed
                self.skipped.append((file.label, str(error)))
        return frames


def read_walks(src: Path, size: int, told: MaskOptions) -> tuple[dict[Key, np.ndarray], Skipped]:
    """Pretreat raw masks in memory: for a few walks, not for a data set.

    Args:
        src: a folder or an archive.
        size: rows and columns of a frame.
        told: what is not to be found out.

    Returns:
        The walks, ``(T, size, size)`` uint8, by subject, type and view, and path and reason of what
        was skipped.

    Raises:
        FileNotFoundError or ValueError: as `understand`.
    """
    understood = understand(src, told)
    logger.info("%s: %s", src, understood.words)
    walks, skipped = {}, []
    for part in divide(src):
        reader = PartReader(part, understood, size)
        walks |= {key: np.stack(frames) for key, frames in reader.walks() if frames}
        skipped += reader.skipped
    return walks, skipped


def _ending(file: MaskFile) -> str:
    return PurePosixPath(file.name).suffix.lower()


def _raw_frames(file: MaskFile) -> list[RawMask]:
    """Return the masks of a file: one of an image, all frames of a pickle.

    Raises:
        UserError: with the reason alone; or OSError.
    """
    if _ending(file) != PICKLE:
        return [decode_mask(file.read())]
    if file.archive:
        raise UserError("a pickle in an archive: unpack it first")
    return [RawMask(frame) for frame in read_sequence(file.label)]


def _aligned(raw: RawMask, reading: MaskReading, size: int) -> tuple[np.ndarray | None, str]:
    """Return an aligned frame, or None and why there is none."""
    mask = reading.apply(raw)
    top = int(mask.max())
    if not top or top >= BRIGHT and cv2.sumElems(mask)[0] <= NO_DATA_SUM:
        return None, "no person in it"
    if fault := mask_fault(mask[None]):
        return None, fault
    return align_frame(mask, size), "no person in it"
