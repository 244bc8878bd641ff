"""Masks: whether silhouettes are such as networks see, and what the values of an image file mean.

A silhouette here is uint8, 0 where there is background and 255 where there is the person; edges may
be grey. `mask_fault` is the one test of that. It is used when a data set is opened, when raw masks
are pretreated, and when a walk is embedded.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from gaitlib.data.silhouettes import border_brightness
from gaitlib.system.errors import UserError

MAX_IMAGE_BYTES = 1 << 24  # of one file; CASIA-B's have about 1,500
MAX_PIXELS = 1 << 24  # of one frame; CASIA-B's have 76,800
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"} | dict.fromkeys(
    (".tif", ".tiff"), "TIFF"
)
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY_BYTES = b"\x08\x00"  # bit depth and colour type of a PNG of 8-bit greys


@dataclass(frozen=True)
class RawMask:
    """An image file's values.

    Attributes:
        values: ``(h, w)`` uint8 or uint16; of a coloured image the largest of its channels.
        alpha: ``(h, w)`` uint8, or None if the file has no transparency.
        lossy: the values near edges are blurred, as JPEG does it.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    lossy: bool = False


def decode_mask(content: bytes) -> RawMask:
    """Decode a PNG, JPEG, BMP or TIFF file: 1, 8 or 16 bits, grey, palette, colour or RGBA.

    A file that claims more than MAX_PIXELS is refused before any of them is allocated.

    Raises:
        UserError: it is no such image; the message is the reason alone.
    """
    if content[:8] == _PNG and content[24:26] == _GREY_BYTES:
        _check_size(*struct.unpack_from(">II", content, 16))  # of its first chunk, IHDR
        try:
            grey = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        except cv2.error as error:
            raise UserError(f"not an image: {' '.join(str(error).split())}") from error
        if grey is None:
            raise UserError("not an image")
        return RawMask(grey)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here
            image = Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values())))
        _check_size(*image.size)
        return _values(image)
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(
            "not an image" if "cannot identify" in str(error) else f"not an image: {error}"
        ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels, too large for a frame")


def _values(image: Image.Image) -> RawMask:
    lossy, mode = image.format == "JPEG", image.mode
    if mode in ("P", "PA"):  # a palette's order means nothing, its colours do
        image = image.convert("RGBA" if "transparency" in image.info or mode == "PA" else "RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("not a mask: it has values beyond 16 bits")
        return RawMask(values.astype(np.uint16))
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UserError(f"not a mask: its pixels are {mode}, not grey, palette, RGB or RGBA")
    values = np.asarray(image)
    if values.ndim == 2:
        return RawMask(values, lossy=lossy)
    colours = 1 if values.shape[2] == 2 else 3
    alpha = values[:, :, colours] if values.shape[2] > colours else None
    return RawMask(values[:, :, :colours].max(axis=2), alpha, lossy)


@dataclass(frozen=True)
class MaskReading:
    """How the values of a set's image files become silhouettes of 0 to 255.

    Attributes:
        alpha: take the alpha channel.
        above: values above this are the person; None keeps the greys (of 16 bits the upper 8).
        inverted: the background is bright.
        words: what was understood, for people.
    """

    alpha: bool = False
    above: int | None = None
    inverted: bool = False
    words: str = ""

    def apply(self, raw: RawMask) -> np.ndarray:
        """Return the silhouette, ``(h, w)`` uint8."""
        mask = raw.alpha if self.alpha and raw.alpha is not None else raw.values
        if self.above is not None:
            mask = (mask > self.above).view(np.uint8) * np.uint8(255)
        elif mask.dtype == np.uint16:
            mask = (mask >> 8).astype(np.uint8)
        return 255 - mask if self.inverted else mask


def understand_masks(
    masks: Sequence[RawMask], invert: bool | None = None, threshold: int | None = None
) -> MaskReading:
    """Find out from some masks of a set how all of it is read.

    - Alpha is the mask if it is not the same everywhere.
    - Two values, such as 0 and 1, or 0 and a palette's colour, are background and person.
    - More values up to 255 (of 16 bits, up to 65535) are a silhouette with grey edges. Those of a
      JPEG are cut at the middle, because its background is not quite 0.
    - More values that stay in the lower half say nothing: several people, or a depth.
    - It is inverted if the border is bright in four of five masks.

    Args:
        masks: of several walks.
        invert: whether the background is bright; None finds out.
        threshold: values above it are the person; None finds out.

    Raises:
        UserError: it cannot be told; the message says which option decides it.
    """
    alpha = any(m.alpha is not None and m.alpha.min() != m.alpha.max() for m in masks)
    values = [m.alpha if alpha and m.alpha is not None else m.values for m in masks]
    levels = sorted({int(v) for array in values for v in np.unique(array)})
    kinds = {array.dtype.itemsize * 8 for array in values}
    bits = max(kinds, default=8)
    if threshold is not None and not 0 <= threshold < 2**bits - 1:
        raise UserError(
            f"a threshold of {threshold} for masks of {bits} bits: give 0 to {2**bits - 2}"
        )
    source = "the alpha channel" if alpha else f"{bits}-bit values"
    above, words = threshold, f"{source}, those above {threshold} are the person"
    if threshold is None:
        above, words = _cut(levels, bits, any(m.lossy for m in masks), source)
        if len(kinds) > 1 and above is None:
            raise UserError(
                "some masks have 8 bits and some 16: say with --threshold which values are the "
                "person, or pretreat them apart"
            )
    reading = MaskReading(alpha, above)
    if invert is None:
        invert, polarity = _is_inverted([reading.apply(m) for m in masks]), "found"
    else:
        polarity = "as told"
    words += f"; the background is {'bright, so they are inverted' if invert else 'dark'}"
    return MaskReading(alpha, above, invert, f"{words} ({polarity})")


def _cut(levels: list[int], bits: int, lossy: bool, source: str) -> tuple[int | None, str]:
    """Return above which value the person is (None: keep the greys), and what was understood."""
    full = 2**bits - 1
    if len(levels) < 2:
        return None, f"{source}, nothing but {levels[0] if levels else 'no'} in those looked at"
    if len(levels) == 2:
        low, high = levels
        above = None if (low, high) == (0, 255) and bits == 8 else low
        return above, f"{source}, {low} is background and {high} the person"
    shown = f"{len(levels)} levels from {levels[0]} to {levels[-1]}"
    if levels[-1] <= full // 2:
        raise UserError(
            f"the masks have {shown}, of {bits} bits: no silhouettes of one person. Say which "
            f"values are the person: --threshold {levels[0]} takes all above {levels[0]}"
        )
    if lossy:
        return full // 2, f"{source} of JPEG, {shown}, those above {full // 2} are the person"
    return None, f"{source}, {shown}, edges stay grey"


def _is_inverted(masks: list[np.ndarray]) -> bool:
    bright = [border_brightness(m[None]) > 0.5 for m in masks if m.min() != m.max()]
    share = float(np.mean(bright)) if bright else 0.0
    if 0.2 < share < 0.8:
        raise UserError(
            f"{sum(bright)} of {len(bright)} masks looked at have a bright border and the others a "
            "dark one: say --invert (the background is bright) or --no-invert"
        )
    return share >= 0.8
