"""Random changes to some rows of a clip, with the names, arguments and ranges of GaitSSB.

Fan et al., "Learning Gait Representation from Massive Unlabelled Walking Videos: A Benchmark",
TPAMI 2023. See `gaitlib.data.augment`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import torch
from torch import Generator, Tensor
from torch.nn.functional import conv2d, pad

from gaitlib.data.augment import Augmentation, Shape
from gaitlib.system.errors import UserError

#: The brushes of RandomPartDilate: OpenCV's shape, and its width and height in pixels.
BRUSHES = (
    *((cv2.MORPH_RECT, size) for size in ((5, 3), (5, 5), (3, 5))),
    *((cv2.MORPH_CROSS, size) for size in ((3, 3), (3, 5), (5, 3))),
    *((cv2.MORPH_ELLIPSE, size) for size in ((3, 3), (3, 5), (5, 3))),
)
BLUR = (0.25, 0.5, 0.25)  # OpenCV's Gaussian of 3 pixels
THRESHOLD = 0.2  # a blurred pixel above it is 1, the others are 0


@dataclass(frozen=True)
class RandomPart(Augmentation):
    """A change between two rows.

    Args:
        prob: probability that a clip (or a frame) is changed.
        top_range: first row, from the first to the second number.
        bot_range: one past the last row, from the first to the second number.
    """

    top_range: Sequence[int] = (12, 16)
    bot_range: Sequence[int] = (36, 40)

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = [tuple(self.top_range), tuple(self.bot_range)]
        if any(len(r) != 2 or not all(type(n) is int for n in r) for r in ranges):
            raise UserError(f"{self}: top_range and bot_range are [first, last], whole numbers")
        (first, last), (low, high) = ranges
        if not 0 <= first <= last < low <= high:
            raise UserError(
                f"{self}: needs 0 <= top_range[0] <= top_range[1] < bot_range[0] <= ..."
            )

    def draw_rows(self, n: int, generator: Generator) -> Tensor:
        """Draw the first row and one past the last, ``(n, 2)``."""
        ranges = (self.top_range, self.bot_range)
        rows = [torch.randint(low, high + 1, (n,), generator=generator) for low, high in ranges]
        return torch.stack(rows, dim=-1)


class RandomPartDilate(RandomPart):
    """Thicken a person between two rows by a random brush, as other clothes would."""

    def draw(self, shape: Shape, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw which clips change, ``(N,)`` bool, their rows, ``(N, 2)``, and brushes, ``(N,)``."""
        drawn = self.draw_which(shape[0], generator)
        rows = self.draw_rows(shape[0], generator)
        return drawn, rows, torch.randint(len(BRUSHES), (shape[0],), generator=generator)

    def apply(self, clips: Tensor, drawn: Tensor, rows: Tensor, brushes: Tensor) -> Tensor:
        """Thicken the drawn clips."""
        for n in drawn.nonzero()[:, 0].tolist():
            top, bottom = rows[n].tolist()
            clips[n, :, top:bottom] = dilate(clips[n, :, top:bottom], *BRUSHES[int(brushes[n])])
        return clips


def dilate(images: Tensor, kind: int, size: tuple[int, int]) -> Tensor:
    """Return the largest value under a brush at each pixel of ``(T, H, W)`` images."""
    brush = cv2.getStructuringElement(kind, size)
    (rows, columns), (h, w) = brush.shape, images.shape[1:]
    around = pad(images, (columns // 2, columns // 2, rows // 2, rows // 2))  # 0: the background
    shifted = [around[:, y : y + h, x : x + w] for y, x in zip(*brush.nonzero(), strict=True)]
    return torch.stack(shifted).amax(0)


@dataclass(frozen=True)
class RandomPartBlur(RandomPart):
    """Blur a person between two rows, and set what is above 0.2 to 1 and the rest to 0.

    It takes values from 0 to 1.

    Args:
        prob: see :class:`RandomPart`, like the following.
        top_range: first row.
        bot_range: one past the last row.
        per_frame: draw for every frame, instead of once for all frames of a clip.
    """

    top_range: Sequence[int] = (9, 20)
    bot_range: Sequence[int] = (29, 40)
    per_frame: bool = False

    def draw(self, shape: Shape, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw which clips change, ``(N, 1)`` bool, and their rows, ``(N, 1, 2)``.

        With ``per_frame``, draw which frames: ``(N, T)`` and ``(N, T, 2)``.
        """
        n, each = shape[0], shape[1] if self.per_frame else 1
        drawn = self.draw_which(n * each, generator)
        return drawn.view(n, each), self.draw_rows(n * each, generator).view(n, each, 2)

    def apply(self, clips: Tensor, drawn: Tensor, rows: Tensor) -> Tensor:
        """Blur the drawn clips (or frames)."""
        for n, t in drawn.nonzero().tolist():
            top, bottom = rows[n, t].tolist()
            frames = slice(t, t + 1) if self.per_frame else slice(None)
            part = clips[n, frames, top:bottom]
            if part.shape[1] > 1:
                clips[n, frames, top:bottom] = (blur(part) > THRESHOLD).to(clips.dtype)
        return clips


def blur(images: Tensor) -> Tensor:
    """Return ``(T, H, W)`` float images after OpenCV's Gaussian of 3 x 3, mirrored at the edges."""
    weights = torch.tensor(BLUR, dtype=images.dtype, device=images.device)
    around = pad(images[:, None], (1, 1, 1, 1), mode="reflect")
    return conv2d(around, torch.outer(weights, weights)[None, None])[:, 0]
