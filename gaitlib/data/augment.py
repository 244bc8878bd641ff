"""Random changes to whole clips, with OpenGait's names, arguments and ranges.

Each clip is changed with probability ``prob``, in the same way in all of its frames. Every class
has two methods. ``draw`` takes the shape of the clips and a CPU generator, and returns random
numbers. ``apply`` uses them to change ``(N, T, H, W)`` clips on any device, uint8 0-255 or float of
any range. So the draws are the same on every device and for any content, and a process can draw for
more clips than it has.

Only the drawn clips are warped. Warping is bilinear, with zeros outside; it turns uint8 into
float32. The matrices are computed here and not by kornia: kornia's last digits change from one
version to the next, and the clips of a seed would change with them. cv2 warps on a CPU only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from gaitlib.system.errors import UserError

#: Where RandomRotate and RandomAffine take the middle and the corners of an image to be.
CENTRED, OPENGAIT = "centred", "opengait"
Shape = tuple[int, int, int, int]  # of clips: N, T, H, W
CLIPS_PER_WARP = 4  # on a CPU: this many clips fit in its caches


@dataclass(frozen=True)
class Augmentation:
    """A random change of clips, each with probability ``prob``."""

    prob: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise UserError(f"{self}: prob is a probability, from 0 to 1")

    def draw(self, shape: Shape, generator: Generator | None) -> tuple[Tensor, ...]:
        """Draw for clips of this shape: CPU tensors, each with N rows, one row per clip."""
        return (self.draw_which(shape[0], generator),)

    def draw_which(self, n: int, generator: Generator | None) -> Tensor:
        """Draw which of n clips are changed, ``(n,)`` bool on the CPU."""
        if generator is None:
            raise UserError(f"{self} is random: pass a torch.Generator with the clips")
        return torch.rand(n, generator=generator) < self.prob

    def apply(self, clips: Tensor, *draws: Tensor) -> Tensor:
        """Change each clip as drawn for it. May write to ``clips``."""
        raise NotImplementedError

    def overwrite(
        self,
        clips: Tensor,
        generator: Generator | None,
        rank: int = 0,
        world_size: int = 1,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Draw and apply. May write to the clips passed in.

        Several processes share a batch as `gaitlib.data.samplers.TripletSampler` splits it. Each
        one draws for the whole batch and keeps the rows of its clips. So every clip changes as it
        would in one process that has the whole batch. Of clips that are concatenated along frames,
        each has a seed of its own, drawn in all processes alike: what is drawn for a clip may
        depend on its length, which only its process knows.

        Args:
            clips: ``(N, T, H, W)``: clips rank, rank + world_size, ... of N * world_size; or
                ``(1, sum of T, H, W)``, one after another.
            generator: in the same state in all processes.
            rank: the number of this process.
            world_size: the number of processes.
            lengths: of clips that are concatenated.

        Raises:
            UserError: no generator, or frames too small.
        """
        if lengths is None or generator is None:
            n, *shape = clips.shape
            draws = self.draw((n * world_size, *shape), generator)
            return self.apply(clips, *(draw[rank::world_size] for draw in draws))
        lengths = torch.as_tensor(lengths).tolist()
        seeds = torch.randint(2**62, (len(lengths) * world_size,), generator=generator)
        own = zip(clips.split(lengths, dim=1), seeds[rank::world_size].tolist(), strict=True)
        changed = [self.overwrite(clip, Generator().manual_seed(seed)) for clip, seed in own]
        return torch.cat(changed, dim=1)


class RandomHorizontalFlip(Augmentation):
    """Mirror left and right."""

    def apply(self, clips: Tensor, drawn: Tensor) -> Tensor:
        """Mirror the drawn clips, ``(N,)`` bool."""
        drawn = drawn.to(clips.device).view(-1, 1, 1, 1)
        return torch.where(drawn, clips.flip(-1), clips)


class Warp(Augmentation):
    """A change of where the pixels lie, by a random matrix for each clip."""

    def draw(self, shape: Shape, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw which clips are changed, ``(N,)`` bool, and their matrices, ``(N, 2 or 3, 3)``."""
        n, _, h, w = shape
        return self.draw_which(n, generator), self.draw_matrices(n, h, w, generator)

    def draw_matrices(self, n: int, h: int, w: int, generator: Generator) -> Tensor:
        """Draw matrices in pixels for n clips of h x w."""
        raise NotImplementedError

    def apply(self, clips: Tensor, drawn: Tensor, matrices: Tensor) -> Tensor:
        """Warp the drawn clips."""
        return warp(clips, drawn, matrices)


@dataclass(frozen=True)
class RandomRotate(Warp):
    """Rotate about the middle of the image, by an angle from -``degree`` to ``degree``.

    ``geometry: opengait`` swaps the axes of the middle as OpenGait does: a 64 x 44 clip turns about
    x 32, y 22, so that the body also moves sideways, by 1.25 pixels on average.
    """

    degree: float = 10
    geometry: str = CENTRED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degree < 0:
            raise UserError(f"degree is {self.degree}: give the largest angle, 0 or more")
        if self.geometry not in (CENTRED, OPENGAIT):
            raise UserError(f"geometry is {self.geometry!r}: choose from {CENTRED}, {OPENGAIT}")

    def draw_matrices(self, n: int, h: int, w: int, generator: Generator) -> Tensor:
        """Draw an angle per clip, ``(n, 2, 3)``."""
        angles = _uniform(n, -self.degree, self.degree, generator)
        return rotation(angles, h, w, (h // 2, w // 2) if self.geometry == OPENGAIT else None)


def rotation(angles: Tensor, h: int, w: int, middle: tuple[float, float] | None = None) -> Tensor:
    """Return the matrices that rotate h x w images counter-clockwise by ``(N,)`` degrees.

    The point that stays in place is ``middle`` (x, y), by default that of the image.
    """
    radians = angles * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    turn = torch.stack([cos, sin, -sin, cos], dim=-1).view(-1, 2, 2)
    middle = torch.tensor([w - 1, h - 1]) / 2 if middle is None else torch.tensor(middle).float()
    shift = middle - (turn * middle).sum(-1)  # keeps the middle in place
    return torch.cat([turn, shift[..., None]], dim=-1)  # (N, 2, 3)


class RandomPerspective(Warp):
    """Stretch the upper and the lower edge of the image, each to the full width.

    Each edge loses up to 10 columns at each end (10 for every 44 columns of width).
    """

    def draw_matrices(self, n: int, h: int, w: int, generator: Generator) -> Tensor:
        """Draw four corners per clip, ``(n, 3, 3)``."""
        return perspective(*self.corners(n, h, w, generator))

    @staticmethod
    def corners(n: int, h: int, w: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw four points (x, y) per clip; return them and their targets, ``(N, 4, 2)`` each."""
        most = w // 44 * 10
        if not most:
            raise UserError(f"RandomPerspective needs 44 columns or more, the clips have {w}")
        left = torch.randint(0, most, (2, n), generator=generator).float()  # above, below
        right = w - 1 - torch.randint(0, most, (2, n), generator=generator).float()
        top, bottom = torch.zeros(n), torch.full((n,), float(h))
        points = [(left[0], top), (right[0], top), (right[1], bottom), (left[1], bottom)]
        source = torch.stack([torch.stack(xy, dim=-1) for xy in points], dim=1)
        target = torch.tensor([[0, 0], [w, 0], [w, h], [0, h]]).float().expand(n, 4, 2)
        return source, target


def perspective(source: Tensor, target: Tensor) -> Tensor:
    """Return the matrices that map four points each, ``(N, 4, 2)``, to four others.

    Both sets list their corners in the same order around the quadrilateral.
    """
    matrices = _from_unit_square(target) @ _inverse(_from_unit_square(source))
    return matrices / matrices[:, 2:, 2:]  # (N, 3, 3)


def _from_unit_square(points: Tensor) -> Tensor:
    """Return the matrices that map (0, 0), (1, 0), (1, 1) and (0, 1) to ``(N, 4, 2)`` points.

    Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989.
    """
    a, b, c, d = points.unbind(1)  # (N, 2) each
    bend, up, left = a - b + c - d, b - c, d - c
    area = _cross(up, left)
    g, h = _cross(bend, left) / area, _cross(up, bend) / area  # (N, 1) each
    upper = torch.stack([b - a + g * b, d - a + h * d, a], dim=-1)  # (N, 2, 3)
    lower = torch.stack([g, h, torch.ones_like(g)], dim=-1)  # (N, 1, 3)
    return torch.cat([upper, lower], dim=1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross products of ``(N, 2)`` vectors, ``(N, 1)``."""
    return a[:, :1] * b[:, 1:] - a[:, 1:] * b[:, :1]


def _inverse(matrices: Tensor) -> Tensor:
    """Invert ``(N, 3, 3)`` matrices by cross products of their columns.

    `torch.linalg.inv` rounds differently, and equal seeds must give equal clips.
    """
    a, b, c = matrices.unbind(-1)
    crosses = [torch.linalg.cross(*pair) for pair in ((b, c), (c, a), (a, b))]
    determinant = (a * crosses[0]).sum(-1)
    return torch.stack(crosses, dim=1) / determinant[:, None, None]


class RandomAffine(RandomRotate):
    """Move three corners, each up to 10 pixels for every 64 rows of height.

    ``degree`` is accepted because YAML files may give it. It has no effect, as in OpenGait.
    ``geometry: opengait`` swaps the axes of the corners as OpenGait does.
    """

    def draw_matrices(self, n: int, h: int, w: int, generator: Generator) -> Tensor:
        """Draw three corners per clip, ``(n, 2, 3)``."""
        source, target = self.corners(n, h, w, generator)
        source = torch.cat([source, torch.ones(n, 3, 1)], dim=-1)  # (n, 3, 3)
        return torch.linalg.solve(source, target).mT

    def corners(self, n: int, h: int, w: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw three points (x, y) per clip; return them and their targets, ``(n, 3, 2)`` each."""
        most = h // 64 * 10
        if not most:
            raise UserError(f"RandomAffine needs 64 rows or more, the clips have {h}")
        inward = torch.randint(0, most, (2, n, 3, 2), generator=generator).float()
        right, bottom = (h, w) if self.geometry == OPENGAIT else (w, h)
        corners = torch.tensor([[0, 0], [right, 0], [0, bottom]]).float()
        towards = torch.tensor([[1, 1], [-1, 1], [1, -1]]).float()
        source, target = corners + towards * inward
        return source, target


@dataclass(frozen=True)
class RandomErasing(Augmentation):
    """Blank a box of the image (Zhong et al., "Random Erasing Data Augmentation", 2020).

    Args:
        prob: probability that a clip (or a frame) is changed.
        sl: smallest area of the box, as a share of the image's.
        sh: largest area of the box, as a share of the image's.
        r1: smallest height / width; ``1 / r1`` is the largest.
        per_frame: draw for every frame, instead of once for all frames of a clip.
    """

    sl: float = 0.05
    sh: float = 0.2
    r1: float = 0.3
    per_frame: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.sl <= self.sh < 1 and 0 < self.r1 <= 1):
            raise UserError(f"{self}: needs 0 < sl <= sh < 1 and 0 < r1 <= 1")

    def draw(self, shape: Shape, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw which clips are changed, ``(N, 1)`` bool, and their boxes, ``(N, 1, 4)``.

        With ``per_frame``, draw which frames: ``(N, T)`` and ``(N, T, 4)``. A box is its top,
        bottom, left and right, in pixels; bottom and right are one past the last.
        """
        n, t, h, w = shape
        each = t if self.per_frame else 1
        drawn = self.draw_which(n * each, generator)
        boxes = self._draw_boxes(n * each, h, w, generator)
        return drawn.view(n, each), boxes.T.view(n, each, 4)

    def apply(self, clips: Tensor, drawn: Tensor, boxes: Tensor) -> Tensor:
        """Blank a box in the drawn clips (or frames)."""
        edges = boxes.int().tolist()
        for n, t in drawn.nonzero().tolist():
            top, bottom, left, right = edges[n][t]
            frames = slice(t, t + 1) if self.per_frame else slice(None)
            clips[n, frames, top:bottom, left:right] = 0
        return clips

    def _draw_boxes(self, n: int, h: int, w: int, generator: Generator | None) -> Tensor:
        """Draw n boxes inside h x w: top, bottom, left, right, ``(4, n)``."""
        height, width = torch.zeros(2, n)
        for _ in range(100):
            area = _uniform(n, self.sl, self.sh, generator) * h * w
            ratio = _uniform(n, self.r1, 1 / self.r1, generator)
            new = (height == 0) & ((area * ratio).sqrt().round() < h)
            new &= (area / ratio).sqrt().round() < w
            height = torch.where(new, (area * ratio).sqrt().round(), height)
            width = torch.where(new, (area / ratio).sqrt().round(), width)
            if height.all():
                break  # a box that does not fit after 100 tries stays empty
        top = (torch.rand(n, generator=generator) * (h - height + 1)).floor()
        left = (torch.rand(n, generator=generator) * (w - width + 1)).floor()
        return torch.stack([top, top + height, left, left + width])


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def warp(clips: Tensor, drawn: Tensor, matrices: Tensor) -> Tensor:
    """Warp the ``drawn`` clips, ``(N,)`` bool, by matrices in pixels, ``(N, 2 or 3, 3)``.

    Returns:
        float32. Writes to ``clips`` and returns them if they are float32; else returns a copy.
        If none is drawn, returns ``clips`` unchanged.
    """
    if not drawn.any():
        return clips
    where = drawn.nonzero()[:, 0]
    grids = _sampling_grids(matrices[where], *clips.shape[-2:]).to(clips.device)
    clips, where = clips.to(torch.float32), where.to(clips.device)
    count = CLIPS_PER_WARP if clips.device.type == "cpu" else len(where)
    for indices, grid in zip(where.split(count), grids.split(count), strict=True):
        images = clips.index_select(0, indices)  # a clip's frames are an image's channels
        clips.index_copy_(0, indices, grid_sample(images, grid, align_corners=True))
    return clips


def _sampling_grids(matrices: Tensor, h: int, w: int) -> Tensor:
    """Return where each pixel comes from, for `grid_sample`: ``(n, h, w, 2)``, in -1..1."""
    affine = matrices.shape[1] == 2
    if affine:
        lower = torch.tensor([0.0, 0.0, 1.0]).expand(len(matrices), 1, 3)
        matrices = torch.cat([matrices, lower], dim=1)
    scaled = torch.tensor([[[2 / (w - 1), 0, -1], [0, 2 / (h - 1), -1], [0, 0, 1]]])  # to -1..1
    back = torch.linalg.inv(scaled @ (matrices @ _inverse(scaled)))  # (n, 3, 3)
    if affine:
        return affine_grid(back[:, :2], [len(back), 1, h, w], align_corners=True)
    pixels = affine_grid(torch.eye(2, 3)[None], [1, 1, h, w], align_corners=True)
    where = pad(pixels, (0, 1), value=1) @ back[:, None].mT  # (n, h, w, 3)
    return where[..., :2] * where[..., 2:].reciprocal()
