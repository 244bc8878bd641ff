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
    draw_and_overwrite,
)

Spec = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class BaseSilTransform:
    """Divide by ``divsor`` (OpenGait's spelling); reshape frames to ``img_shape``, if given."""

    divsor: float = 255.0
    img_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_divsor(self)

    def __call__(self, clips: Tensor) -> Tensor:
        """Divide."""
        if self.img_shape is not None:
            clips = clips.reshape(*clips.shape[:2], *self.img_shape)  # (N, T, *img_shape)
        return _divide(clips, self.divsor)


@dataclass(frozen=True)
class BaseSilCuttingTransform:
    """Cut ``cutting`` columns off both sides, and divide by ``divsor`` (OpenGait's spelling).

    By default, cut 10 columns for every 64 of the width: 64 x 64 frames become 64 x 44.
    """

    divsor: float = 255.0
    cutting: int | None = None

    def __post_init__(self) -> None:
        _check_divsor(self)

    def __call__(self, clips: Tensor) -> Tensor:
        """Cut and divide."""
        width = clips.shape[-1]
        cutting = width // 64 * 10 if self.cutting is None else self.cutting
        if not 0 <= 2 * cutting < width:
            raise ValueError(f"cutting {cutting} columns off both sides of {width} keeps no column")
        return _divide(clips[..., cutting : width - cutting], self.divsor)


BASES = {
    "BaseSilTransform": BaseSilTransform,
    "BaseSilCuttingTransform": BaseSilCuttingTransform,
}
AUGMENTATIONS = {
    "RandomAffine": RandomAffine,
    "RandomErasing": RandomErasing,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandomPerspective": RandomPerspective,
    "RandomRotate": RandomRotate,
}
STEPS = BASES | AUGMENTATIONS
Step = BaseSilTransform | BaseSilCuttingTransform | Augmentation


@dataclass(frozen=True)
class Transform:
    """Steps from stored clips to network input.

    With ``world_size`` processes, ``clips`` are every ``world_size``-th clip of one batch, starting
    at ``rank``. If the generators of all processes are in the same state, every clip changes as it
    would in one process that has the whole batch. (Clips that are concatenated along frames count
    as one clip and change in the same way. Omit ``rank`` and ``world_size`` for them; then they
    change in the same way in all processes too.)

    Shape:
        clips: ``(N, T, H, W)`` uint8, on any device
        returns: ``(N, T, H, W')`` float32, on the same device

    Raises:
        ValueError: the clips are something else, a random step has no generator, or ``rank`` is
            not below ``world_size``.
    """

    steps: tuple[Step, ...]

    def __call__(
        self,
        clips: Tensor,
        generator: Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Tensor:
        """Apply the steps in order."""
        if clips.ndim != 4 or clips.dtype != torch.uint8:
            raise ValueError(
                f"clips are (N, T, H, W) uint8, got {tuple(clips.shape)} {clips.dtype}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of world_size {world_size}: ranks are 0 to world_size - 1"
            )
        if _is_random(self.steps[0]):
            clips = clips.clone()  # the steps may write to their input
        for step in self.steps:
            if _is_random(step):
                clips = draw_and_overwrite(step, clips, generator, rank, world_size)
            else:
                clips = step(clips)
        return clips

    @property
    def random(self) -> bool:
        """Whether a step needs the generator."""
        return any(_is_random(step) for step in self.steps)


def build_transform(spec: Spec) -> Transform:
    """Build the transform that a YAML section describes.

    Args:
        spec: ``{type: BaseSilCuttingTransform}``, or a list with one such entry (OpenGait has one
            per input). ``{type: Compose, trf_cfg: [...]}`` applies several in order. Other keys
            are the step's arguments.

    Raises:
        ValueError: an unknown type or argument, a value out of range, or not exactly one
            ``BaseSil*`` transform, which scales the values to 0-1.
    """
    if not isinstance(spec, Mapping):
        if len(spec) != 1:
            raise ValueError(
                f"transform lists {len(spec)} entries, one per input, but there is one input; "
                "for several steps write {type: Compose, trf_cfg: [...]}"
            )
        spec = spec[0]
    steps = tuple(_steps(spec))
    bases = sum(isinstance(step, tuple(BASES.values())) for step in steps)
    if bases != 1:
        raise ValueError(f"transform has {bases} of {sorted(BASES)}, it needs exactly one: {spec}")
    return Transform(steps)


def _steps(spec: Mapping[str, Any]) -> list[Step]:
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ValueError(f"a transform is {{type: ..., arguments}}, got {spec!r}")
    arguments = {key: value for key, value in spec.items() if key != "type"}
    if spec["type"] == "Compose":
        if set(arguments) != {"trf_cfg"} or isinstance(arguments["trf_cfg"], Mapping | str):
            raise ValueError(f"Compose takes trf_cfg, a list of transforms, got {arguments}")
        return [step for entry in arguments["trf_cfg"] for step in _steps(entry)]
    if spec["type"] not in STEPS:
        choices = sorted([*STEPS, "Compose"])
        raise ValueError(f"unknown transform {spec['type']!r}; choose from {choices}")
    step = STEPS[spec["type"]]
    known = [field.name for field in dataclasses.fields(step)]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"{spec['type']} has no argument {unknown}; it has {known}")
    for name, value in arguments.items():
        if isinstance(value, str) or (isinstance(value, bool) and name != "per_frame"):
            raise ValueError(f"{spec['type']}: {name} is {value!r}, not a number")
    return [step(**arguments)]


def _is_random(step: Step) -> bool:
    return isinstance(step, tuple(AUGMENTATIONS.values()))


def _divide(clips: Tensor, divsor: float) -> Tensor:
    """Divide clips of any dtype, into new memory."""
    if clips.dtype == torch.float32:
        return clips / divsor
    return clips.to(torch.float32).div_(divsor)


def _check_divsor(step: BaseSilTransform | BaseSilCuttingTransform) -> None:
    if not step.divsor > 0:
        raise ValueError(f"{step}: divsor must be above 0")
