"""Turn stored clips into network input: augment, crop and scale to 0-1, on the clips' own device.

The names and arguments are those of the ``transform`` sections of OpenGait's YAML files.
Exactly one transform crops and divides; augmentations may come before or after it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from gaitlib.data.augment import (
    Augmentation,
    RandomAffine,
    RandomErasing,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomRotate,
)
from gaitlib.data.part_augment import RandomPartBlur, RandomPartDilate
from gaitlib.system.errors import UserError

Spec = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Division:
    """Divide by ``divsor`` (OpenGait's spelling)."""

    divsor: float = 255.0

    def __post_init__(self) -> None:
        if not self.divsor > 0:
            raise UserError(f"{self}: divsor must be above 0")

    def __call__(self, clips: Tensor) -> Tensor:
        """Divide clips of any dtype, into new memory."""
        return clips.to(torch.float32, copy=True).div_(self.divsor)


@dataclass(frozen=True)
class BaseSilTransform(Division):
    """Divide by ``divsor`` (OpenGait's spelling); reshape frames to ``img_shape``, if given."""

    img_shape: tuple[int, ...] | None = None

    def __call__(self, clips: Tensor) -> Tensor:
        """Divide."""
        if self.img_shape is not None:
            clips = clips.reshape(*clips.shape[:2], *self.img_shape)  # (N, T, *img_shape)
        return super().__call__(clips)


@dataclass(frozen=True)
class BaseSilCuttingTransform(Division):
    """Cut ``cutting`` columns off both sides, and divide by ``divsor`` (OpenGait's spelling).

    By default, cut 10 columns for every 64 of the width: 64 x 64 frames become 64 x 44.
    """

    cutting: int | None = None

    def __call__(self, clips: Tensor) -> Tensor:
        """Cut and divide."""
        width = clips.shape[-1]
        cutting = self.columns_of(width)
        if not 0 <= 2 * cutting < width:
            raise UserError(f"cutting {cutting} columns off both sides of {width} keeps no column")
        return super().__call__(clips[..., cutting : width - cutting])

    def columns_of(self, width: int) -> int:
        """Return how many columns each side of frames of this width loses."""
        return width // 64 * 10 if self.cutting is None else self.cutting


@dataclass(frozen=True)
class NoOperation:
    """Return the clips unchanged."""

    def __call__(self, clips: Tensor) -> Tensor:
        """Do nothing."""
        return clips


STEPS = {
    step.__name__: step
    for step in (
        *(BaseSilTransform, BaseSilCuttingTransform),
        *(RandomAffine, RandomErasing, RandomHorizontalFlip, RandomPartBlur, RandomPartDilate),
        *(RandomPerspective, RandomRotate, NoOperation),
    )
}
Step = Division | NoOperation | Augmentation
#: Arguments that are not numbers.
WORDS = {"per_frame": bool, "geometry": str}


@dataclass(frozen=True)
class Transform:
    """Steps from stored clips to network input.

    With ``world_size`` processes, ``clips`` are every ``world_size``-th clip of one batch, starting
    at ``rank``. If the generators of all processes are in the same state, every clip changes as it
    would in one process that has the whole batch. Clips that are concatenated along frames need
    their ``lengths``, so that each changes by itself; else they count as one clip.

    Shape:
        clips: ``(N, T, H, W)`` uint8, on any device; with ``lengths``, ``(1, sum of T, H, W)``
        returns: ``(N, T, H, W')`` float32, on the same device

    Raises:
        UserError: the clips are something else, or a random step has no generator.
    """

    steps: tuple[Step, ...]

    def __call__(
        self,
        clips: Tensor,
        generator: Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Apply the steps in order."""
        if clips.ndim != 4 or clips.dtype != torch.uint8:
            raise UserError(f"clips are (N, T, H, W) uint8, got {tuple(clips.shape)} {clips.dtype}")
        if isinstance(self.steps[0], Augmentation):
            clips = clips.clone()  # the steps may write to their input
        for step in self.steps:
            if isinstance(step, Augmentation):
                clips = step.overwrite(clips, generator, rank, world_size, lengths)
            else:
                clips = step(clips)
        return clips

    @property
    def random(self) -> bool:
        """Whether a step needs the generator."""
        return any(isinstance(step, Augmentation) for step in self.steps)


def build_transform(spec: Spec) -> Transform:
    """Build the transform that a YAML section describes.

    Args:
        spec: ``{type: BaseSilCuttingTransform}``, or a list with one such entry (OpenGait has one
            per input). ``{type: Compose, trf_cfg: [...]}`` applies several in order. Other keys
            are the step's arguments.

    Raises:
        UserError: an unknown type or argument, a value out of range, or not exactly one
            ``BaseSil*`` transform, which scales the values to 0-1; or RandomPartBlur before it.
    """
    if not isinstance(spec, Mapping):
        if len(spec) != 1:
            raise UserError(
                f"transform lists {len(spec)} entries, one per input, but there is one input; "
                "for several steps write {type: Compose, trf_cfg: [...]}"
            )
        spec = spec[0]
    steps = tuple(_steps(spec))
    bases = [i for i, step in enumerate(steps) if isinstance(step, Division)]
    if len(bases) != 1:
        raise UserError(f"transform has {len(bases)} of BaseSil*, it needs exactly one: {spec}")
    if any(isinstance(step, RandomPartBlur) for step in steps[: bases[0]]):
        base = type(steps[bases[0]]).__name__
        raise UserError(f"RandomPartBlur compares values of 0 to 1: put it after {base}")
    return Transform(steps)


def _steps(spec: Mapping[str, Any]) -> list[Step]:
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise UserError(f"a transform is {{type: ..., arguments}}, got {spec!r}")
    arguments = {key: value for key, value in spec.items() if key != "type"}
    if spec["type"] == "Compose":
        if set(arguments) != {"trf_cfg"} or isinstance(arguments["trf_cfg"], Mapping | str):
            raise UserError(f"Compose takes trf_cfg, a list of transforms, got {arguments}")
        return [step for entry in arguments["trf_cfg"] for step in _steps(entry)]
    if spec["type"] not in STEPS:
        choices = sorted([*STEPS, "Compose"])
        raise UserError(f"unknown transform {spec['type']!r}; choose from {choices}")
    step = STEPS[spec["type"]]
    known = [field.name for field in dataclasses.fields(step)]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UserError(f"{spec['type']} has no argument {unknown}; it has {known}")
    for name, value in arguments.items():
        if isinstance(value, str | bool) and not isinstance(value, WORDS.get(name, ())):
            raise UserError(f"{spec['type']}: {name} is {value!r}, not a number")
    return [step(**arguments)]
