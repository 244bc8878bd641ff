"""Random changes to whole clips, with OpenGait's names, arguments and ranges.

Every class takes ``(N, T, H, W)`` clips on any device, uint8 0-255 or float of any range, and a
CPU generator. Each clip is changed with probability ``prob``, in the same way in all of its frames.
The draws are the same on every device, whatever the clips hold; only the clips that are drawn are
warped. Warping is bilinear, with zeros outside; it turns uint8 into float32.
"""

from dataclasses import dataclass

import torch
from kornia.geometry.transform import (
    get_perspective_transform,
    get_rotation_matrix2d,
    warp_affine,
    warp_perspective,
)
from torch import Generator, Tensor


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right."""

    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_prob(self)

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """Mirror the clips that are drawn."""
        drawn = _draw(self, len(clips), generator)
        return torch.where(_along(drawn, clips), clips.flip(-1), clips)


@dataclass(frozen=True)
class RandomRotate:
    """Turn about the middle of the image, by an angle from -``degree`` to ``degree``.

    (OpenGait turns a 64 x 44 clip about its point (32, 22), having swapped the axes.)
    """

    prob: float = 0.5
    degree: float = 10

    def __post_init__(self) -> None:
        _check_prob(self)
        if self.degree < 0:
            raise ValueError(f"degree is {self.degree}: give the largest angle, 0 or more")

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """Turn the clips that are drawn."""
        n, _, h, w = clips.shape
        drawn = _draw(self, n, generator)
        angles = _uniform((n,), -self.degree, self.degree, generator)
        return rotate(clips, drawn, angles)


def rotate(clips: Tensor, drawn: Tensor, angles: Tensor) -> Tensor:
    """Turn the ``drawn`` clips counter-clockwise.

    Args:
        clips: ``(N, T, H, W)``.
        drawn: ``(N,)`` bool.
        angles: ``(N,)`` degrees.
    """
    n, _, h, w = clips.shape
    middle = torch.tensor([(w - 1) / 2, (h - 1) / 2]).expand(n, 2)
    return _warp(clips, drawn, get_rotation_matrix2d(middle, angles, torch.ones(n, 2)))


@dataclass(frozen=True)
class RandomPerspective:
    """Lean the image: its upper and its lower edge are each stretched to the full width.

    Up to 10 columns at each end of an edge are lost (10 for every 44 columns of width).
    """

    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_prob(self)

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """Lean the clips that are drawn."""
        n, _, h, w = clips.shape
        drawn = _draw(self, n, generator)
        matrices = get_perspective_transform(*self.corners(n, h, w, generator))  # (N, 3, 3)
        return _warp(clips, drawn, matrices)

    @staticmethod
    def corners(n: int, h: int, w: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw four points (x, y) for each clip, and say where they go, ``(N, 4, 2)`` each."""
        most = w // 44 * 10
        if not most:
            raise ValueError(f"RandomPerspective needs 44 columns or more, the clips have {w}")
        left = torch.randint(0, most, (2, n), generator=generator).float()  # above, below
        right = w - 1 - torch.randint(0, most, (2, n), generator=generator).float()
        top, bottom = torch.zeros(n), torch.full((n,), float(h))
        points = [(left[0], top), (right[0], top), (right[1], bottom), (left[1], bottom)]
        source = torch.stack([torch.stack(xy, dim=-1) for xy in points], dim=1)
        target = torch.tensor([[0, 0], [w, 0], [w, h], [0, h]]).float().expand(n, 4, 2)
        return source, target


@dataclass(frozen=True)
class RandomAffine:
    """Move three corners, each up to 10 pixels for every 64 rows of height.

    ``degree`` is there because YAML files may give it; OpenGait reads it no more than this does.
    """

    prob: float = 0.5
    degree: float = 10

    def __post_init__(self) -> None:
        _check_prob(self)

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """Move the corners of the clips that are drawn."""
        n, _, h, w = clips.shape
        drawn = _draw(self, n, generator)
        source, target = self.corners(n, h, w, generator)
        source = torch.cat([source, torch.ones(n, 3, 1)], dim=-1)  # (N, 3, 3)
        return _warp(clips, drawn, torch.linalg.solve(source, target).mT)  # (N, 2, 3)

    @staticmethod
    def corners(n: int, h: int, w: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw three points (x, y) for each clip, and where they go, ``(N, 3, 2)`` each."""
        most = h // 64 * 10
        if not most:
            raise ValueError(f"RandomAffine needs 64 rows or more, the clips have {h}")
        inward = torch.randint(0, most, (2, n, 3, 2), generator=generator).float()
        corners = torch.tensor([[0, 0], [w, 0], [0, h]]).float()
        towards = torch.tensor([[1, 1], [-1, 1], [1, -1]]).float()
        source, target = corners + towards * inward
        return source, target


@dataclass(frozen=True)
class RandomErasing:
    """Blank a box of the image (Zhong et al., "Random Erasing Data Augmentation", 2020).

    Args:
        prob: how often.
        sl: smallest part of the image's area.
        sh: largest part of the image's area.
        r1: smallest height / width; ``1 / r1`` is the largest.
        per_frame: draw again for every frame, instead of once for all frames of a clip.
    """

    prob: float = 0.5
    sl: float = 0.05
    sh: float = 0.2
    r1: float = 0.3
    per_frame: bool = False

    def __post_init__(self) -> None:
        _check_prob(self)
        if not (0 < self.sl <= self.sh < 1 and 0 < self.r1 <= 1):
            raise ValueError(f"{self}: needs 0 < sl <= sh < 1 and 0 < r1 <= 1")

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """Blank a box in the clips (or frames) that are drawn."""
        n, t, h, w = clips.shape
        count = n * t if self.per_frame else n
        drawn = _draw(self, count, generator)
        top, bottom, left, right = self._boxes(count, h, w, generator)
        rows, columns = torch.arange(h), torch.arange(w)
        in_rows = (rows >= top[:, None]) & (rows < bottom[:, None]) & drawn[:, None]  # (count, H)
        in_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (count, W)
        shape = (n, -1)  # one box a clip, or one a frame
        in_rows = in_rows.view(*shape, h, 1).to(clips.device)
        in_columns = in_columns.view(*shape, 1, w).to(clips.device)
        return clips.masked_fill(in_rows & in_columns, 0)

    def _boxes(self, n: int, h: int, w: int, generator: Generator | None) -> Tensor:
        """Draw n boxes inside h x w: top, bottom, left, right, ``(4, n)``; ends excluded."""
        height, width = torch.zeros(2, n)
        for _ in range(100):
            area = _uniform((n,), self.sl, self.sh, generator) * h * w
            ratio = _uniform((n,), self.r1, 1 / self.r1, generator)
            new = (height == 0) & ((area * ratio).sqrt().round() < h)
            new &= (area / ratio).sqrt().round() < w
            height = torch.where(new, (area * ratio).sqrt().round(), height)
            width = torch.where(new, (area / ratio).sqrt().round(), width)
            if height.all():
                break  # a box that fits nowhere after 100 tries stays empty
        top = (torch.rand(n, generator=generator) * (h - height + 1)).floor()
        left = (torch.rand(n, generator=generator) * (w - width + 1)).floor()
        return torch.stack([top, top + height, left, left + width])


def _check_prob(step: object) -> None:
    if not 0 <= step.prob <= 1:
        raise ValueError(f"{step}: prob is a probability, from 0 to 1")


def _draw(step: object, n: int, generator: Generator | None) -> Tensor:
    """Draw which of n clips are changed, ``(n,)`` bool on the CPU."""
    if generator is None:
        raise ValueError(f"{step} needs chance: pass a torch.Generator with the clips")
    return torch.rand(n, generator=generator) < step.prob


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: Generator | None
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _along(drawn: Tensor, clips: Tensor) -> Tensor:
    return drawn.to(clips.device).view(-1, 1, 1, 1)


def _warp(clips: Tensor, drawn: Tensor, matrices: Tensor) -> Tensor:
    """Warp the ``drawn`` clips by their matrices, pixel to pixel, ``(N, 2 or 3, 3)``."""
    if not drawn.any():
        return clips
    where = drawn.nonzero()[:, 0]
    size = (clips.shape[-2], clips.shape[-1])
    warp = warp_affine if matrices.shape[1] == 2 else warp_perspective
    where_there = where.to(clips.device)
    chosen = clips[where_there].float()  # the frames of a clip are the channels of an image
    warped = warp(chosen, matrices[where].to(clips.device), size, align_corners=True)
    result = clips.to(torch.float32, copy=True)
    result[where_there] = warped
    return result
