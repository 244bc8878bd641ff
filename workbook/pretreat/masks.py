"""What the values of a mask's image file mean, and how they become those of a silhouette.

A silhouette is uint8, 0 where there is background and 255 where there is the person; edges may be
grey. `gaitlib.data.silhouettes.mask_fault` tests that.
"""

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from gaitlib.data.silhouettes import border_brightness
from gaitlib.system.errors import UserError
from workbook.pretreat.mask_options import MaskOptions

MAX_IMAGE_BYTES = 1 << 24  # of one file; CASIA-B's have about 1,500
MAX_PIXELS = 1 << 24  # of one frame; CASIA-B's have 76,800
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # endings of files
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
    try:
        if content[:8] == _PNG and content[24:26] == _GREY_BYTES:  # the quick way, for most masks
            _check_size(*struct.unpack_from(">II", content, 16))  # of its first chunk, IHDR
            grey = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
            if grey is None:
                raise UserError("not an image")
            return RawMask(grey)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here
            image = Image.open(io.BytesIO(content), formats=["BMP", "JPEG", "PNG", "TIFF"])
        _check_size(*image.size)
        return _values(image)
    except UnidentifiedImageError as error:
        raise UserError("not an image") from error
    except (cv2.error, OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"not an image: {' '.join(str(error).split())}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels, too large for a frame")


def _values(image: Image.Image) -> RawMask:
    if image.mode in ("P", "PA"):  # a palette's order means nothing, its colours do
        has_alpha = "transparency" in image.info or image.mode == "PA"
        image = image.convert("RGBA" if has_alpha else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("not a mask: it has values beyond 16 bits")
        return RawMask(values.astype(np.uint16))
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UserError(f"not a mask: its pixels are {image.mode}, not grey, palette, RGB or RGBA")
    values = np.atleast_3d(image)  # (h, w, channels)
    if image.mode.endswith("A"):
        return RawMask(values[:, :, :-1].max(axis=2), values[:, :, -1])
    return RawMask(values.max(axis=2), lossy=image.format == "JPEG")


@dataclass(frozen=True)
class MaskReading:
    """How the values of a set's image files become silhouettes of 0 to 255.

    Attributes:
        alpha: take the alpha channel.
        above: values above this are the person; None keeps the greys (of 16 bits the upper 8).
        inverted: the background is bright.
    """

    alpha: bool = False
    above: int | None = None
    inverted: bool = False

    def apply(self, raw: RawMask) -> np.ndarray:
        """Return the silhouette, ``(h, w)`` uint8."""
        mask = raw.alpha if self.alpha and raw.alpha is not None else raw.values
        if self.above is not None:
            mask = (mask > self.above).view(np.uint8) * np.uint8(255)
        elif mask.dtype == np.uint16:
            mask = (mask >> 8).astype(np.uint8)
        return 255 - mask if self.inverted else mask


def understand_masks(masks: Sequence[RawMask], told: MaskOptions) -> tuple[MaskReading, str]:
    """Find out from some masks of a set how all of it is read, and say what was understood.

    - Alpha is the mask if it is not the same everywhere.
    - Two values, such as 0 and 1, or 0 and a palette's colour, are background and person.
    - More values up to 255 (of 16 bits, up to 65535) are a silhouette with grey edges. Those of a
      JPEG are cut at the middle, because its background is not quite 0.
    - More values that stay in the lower half say nothing: several people, or a depth.
    - It is inverted if the border is bright in four of five masks.

    Args:
        masks: of several walks, at least one.
        told: what is not to be found out.

    Raises:
        UserError: it cannot be told; the message says which option decides it.
    """
    alpha = any(m.alpha is not None and m.alpha.min() != m.alpha.max() for m in masks)
    values = [m.alpha if alpha and m.alpha is not None else m.values for m in masks]
    kinds = {array.dtype.itemsize * 8 for array in values}
    bits = max(kinds)
    source = "the alpha channel" if alpha else f"{bits}-bit values"
    if told.threshold is None:
        levels = sorted({int(v) for array in values for v in np.unique(array)})
        above, words = _cut(levels, bits, any(m.lossy for m in masks))
        if len(kinds) > 1 and above is None:
            raise UserError(
                "some masks have 8 bits and some 16: say with --threshold which values are the "
                "person, or pretreat them apart"
            )
    elif 0 <= told.threshold < 2**bits - 1:
        above, words = told.threshold, f", those above {told.threshold} are the person"
    else:
        raise UserError(
            f"a threshold of {told.threshold} for masks of {bits} bits: give 0 to {2**bits - 2}"
        )
    reading = MaskReading(alpha, above)
    if told.invert is None:
        inverted, polarity = _is_inverted([reading.apply(m) for m in masks]), "found"
    else:
        inverted, polarity = told.invert, "as told"
    background = "bright, so they are inverted" if inverted else "dark"
    words = f"{source}{words}; the background is {background} ({polarity})"
    return replace(reading, inverted=inverted), words


def _cut(levels: list[int], bits: int, lossy: bool) -> tuple[int | None, str]:
    """Return above which value the person is (None: keep the greys), and what was understood."""
    middle = 2 ** (bits - 1) - 1
    if len(levels) == 1:
        return None, f", nothing but {levels[0]} in those looked at"
    if len(levels) == 2:
        low, high = levels
        above = None if (low, high) == (0, 255) and bits == 8 else low
        return above, f", {low} is background and {high} the person"
    shown = f"{len(levels)} levels from {levels[0]} to {levels[-1]}"
    if levels[-1] <= middle:
        raise UserError(
            f"the masks have {shown}, of {bits} bits: no silhouettes of one person. Say which "
            f"values are the person: --threshold {levels[0]} takes all above {levels[0]}"
        )
    if lossy:
        return middle, f" of JPEG, {shown}, those above {middle} are the person"
    return None, f", {shown}, edges stay grey"


def _is_inverted(masks: list[np.ndarray]) -> bool:
    bright = [border_brightness(m[None]) > 0.5 for m in masks if m.min() != m.max()]
    share = float(np.mean(bright)) if bright else 0.0
    if 0.2 < share < 0.8:
        raise UserError(
            f"{sum(bright)} of {len(bright)} masks looked at have a bright border and the others a "
            "dark one: say --invert (the background is bright) or --no-invert"
        )
    return share >= 0.8
