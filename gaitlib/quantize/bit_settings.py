"""How many bits a run chooses, and when: GETA's own order, or bits that come after the channels."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_type_hints

from gaitlib.prune.hesso_settings import HessoSettings
from gaitlib.prune.schedules import Periods, PruningSchedule
from gaitlib.system.errors import UserError

MAX_BITS = 24  # bits of float32's significand
#: The keys that limit the cost of bits; a run has at most one of them.
BIT_BUDGETS = ("target_bops", "target_bytes")
#: The keys that say how many bits weights end at; a run has at most one of them.
BIT_TARGETS = (*BIT_BUDGETS, "target_bits")
#: What whole numbers may be.
_RANGES = {
    **dict.fromkeys(("target_bits", "min_bit_wt", "max_bit_wt"), (2, MAX_BITS)),
    **dict.fromkeys(("min_bit_act", "max_bit_act"), (1, MAX_BITS)),
    "bit_reduction": (0, MAX_BITS),
    "projection_periods": (1, 10**9),
    "batch_norm_batches": (0, 10**9),
}
#: The fewest and the most bits, of weights and of activations.
Limits = tuple[tuple[int, float], tuple[int, float]]


@dataclass(frozen=True)
class ProjectionSchedule(Periods):
    """When the largest bit width shrinks, before pruning begins; ``start`` steps are warm-up."""

    name: ClassVar[str] = "projection"

    def shrinks_by(self, step: int) -> int:
        """Return how many times bits have shrunk by the end of ``step``.

        They shrink once per period, at its end. The number depends only on the step, so skipping a
        step loses no shrink. The last shrink is at ``start + periods * (steps // periods)``, before
        pruning.
        """
        return max(0, min((step - self.start) // self.duration, self.periods))


@dataclass(frozen=True)
class Bits:
    """How many bits quantizers may have, and when.

    Attributes:
        pruning: when channels leave.
        quantize: what is rounded.
        min_bit_wt: the fewest bits of weights.
        max_bit_wt: the most bits of weights, at the start.
        min_bit_act: the fewest bits of activations, the inputs of layers.
        max_bit_act: the most bits of activations, at the start.
        bit_reduction: by how much each projection period lowers the upper bounds, never below the
            lower ones.
        projection_periods: how often they are lowered.
        target_bits: b, at which all weights end: ``min_bit_wt`` is b and ``bit_reduction`` of
            weights is ``(max_bit_wt - b) / projection_periods`` then. Activations keep their bits.
        lr_quant: the learning rate of the quantizers' grids.
        uniform: keep the exponent t of every grid at 1: plain uniform quantization, which integer
            arithmetic needs.
        ranges: ``learned`` is the published rule: d, q_m and t start from the first weights and
            move by the base optimizer. With ``follow`` the clipping magnitudes q_m follow the
            numbers that they clip until pruning ends, and are then learned on a logarithmic scale;
            see `BitControl`.
        batch_norm_batches: batches of training clips to measure the statistics of batch norms on
            again after the last step; 0 keeps those of training.

    Raises:
        UserError: if bounds contradict each other, or steps do.
    """

    pruning: PruningSchedule
    quantize: Literal["weights", "weights_and_activations"] = "weights_and_activations"
    min_bit_wt: int = 2
    max_bit_wt: int = 16
    min_bit_act: int = 2
    max_bit_act: int = 16
    bit_reduction: int = 2
    projection_periods: int = 1
    target_bits: int | None = None
    lr_quant: float = 1.0e-3
    uniform: bool = False
    ranges: Literal["learned", "follow"] = "learned"
    batch_norm_batches: int = 0

    def __post_init__(self) -> None:
        for key, (least, most) in _RANGES.items():
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                raise UserError(f"{key} is {value}: write {least} to {most}")
        least = "min_bit_wt" if self.target_bits is None else "target_bits"
        for low, high in ((least, "max_bit_wt"), ("min_bit_act", "max_bit_act")):
            if getattr(self, low) > getattr(self, high):
                raise UserError(f"{low} {getattr(self, low)} exceeds {high} {getattr(self, high)}")
        end = self.max_bit_wt - self.projection_periods * self.bit_reduction
        if self.target_bits is None and end < self.min_bit_wt < self.max_bit_wt:
            raise UserError(
                f"max_bit_wt {self.max_bit_wt} - projection_periods {self.projection_periods} * "
                f"bit_reduction {self.bit_reduction} = {end} is below min_bit_wt {self.min_bit_wt}"
                ": lower bit_reduction or projection_periods, or write target_bits"
            )

    def phase(self, step: int) -> str:
        """Return the name of the phase that ``step`` is in; 0 is in that of step 1."""
        return [name for name, first in self.phases.items() if first < max(step, 1)][-1]

    def _after(self, shrinks: int) -> Limits:
        """Return the limits after the upper ones have shrunk so many times."""
        least, each, others = self.min_bit_wt, self.bit_reduction, self.bit_reduction
        if self.target_bits is not None:
            least, others = self.target_bits, 0
            each = (self.max_bit_wt - least) / self.projection_periods
        weights = max(self.max_bit_wt - shrinks * each, least)
        inputs = max(self.max_bit_act - shrinks * others, self.min_bit_act)
        return (least, weights), (self.min_bit_act, inputs)


@dataclass(frozen=True)
class Qasso(Bits):
    """Bits before channels, in GETA's four phases (https://arxiv.org/abs/2502.16638).

    1. Warm-up: bits are free.
    2. Projection: the upper limits shrink period by period.
    3. Joint: channels are pruned; the limits stay as they are after projection.
    4. Cool-down: each quantizer keeps a whole number of bits.

    Attributes:
        start_projection_step: steps of warm-up, in which bits are free.
        projection_steps: steps from there to the end of projection, in ``projection_periods``.
    """

    start_projection_step: int = 0
    projection_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection.end > self.pruning.start:
            raise UserError(
                f"{self.projection} exceeds start_pruning_step {self.pruning.start}: bits shrink "
                "before channels are pruned"
            )

    @property
    def projection(self) -> ProjectionSchedule:
        """When the upper limits shrink."""
        start, steps = self.start_projection_step, self.projection_steps
        return ProjectionSchedule(start, steps, self.projection_periods)

    @property
    def phases(self) -> dict[str, int]:
        """The first iteration of each phase (from 0), by name and in order."""
        first = {"warm-up": 0, "projection": self.start_projection_step}
        return first | {"joint": self.pruning.start, "cool-down": self.pruning.end}

    @property
    def follow_until(self) -> float | None:
        """The last step at which ranges follow what they clip; None if they are always learned."""
        return self.pruning.end if self.ranges == "follow" else None

    def limits(self, step: int) -> Limits:
        """Return the fewest and the most bits after ``step``, of weights and of activations."""
        if self.phase(step) == "warm-up":
            return (1, MAX_BITS), (1, MAX_BITS)
        return self._after(self.projection.shrinks_by(step))


@dataclass(frozen=True)
class FloatFirst(Bits):
    """Channels first, in float; then bits, which are whole at once: two phases.

    Without a budget for bits they are those that projection would end at.

    Attributes:
        start_bits_step: the step to round from; None: the end of pruning.
        target_bops: the backbone's bit operations per frame to end at or below; below 1 a share of
            the dense float network's.
        target_bytes: the bytes of the network's numbers to end at or below, without the header of
            its file; below 1 a share of the dense float network's. Either budget chooses the bits
            of each weight from ``min_bit_wt..max_bit_wt``: `gaitlib.quantize.bit_budget`.
        clipping: one clipping magnitude per ``tensor``, or per output ``channel`` of a convolution,
            whose scale goes into the batch norm behind it.
        learn_ranges_step: with ``ranges: follow``, the step after which ranges are learned; None:
            they follow to the end.
        distillation: weight of the divergence from the logits of the run's own float network of
            ``start_bits_step``; 0 does without.
        keep_better: at the end compare the network with that float network, rounded without
            training, on training subjects, and keep the better one.
    """

    ranges: Literal["learned", "follow"] = "follow"
    batch_norm_batches: int = 32
    start_bits_step: int | None = None
    target_bops: float | None = None
    target_bytes: float | None = None
    clipping: Literal["tensor", "channel"] = "channel"
    learn_ranges_step: int | None = None
    distillation: float = 0.0
    keep_better: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {key: value for key in BIT_TARGETS if (value := getattr(self, key)) is not None}
        for key, value in given.items():
            if value <= 0:
                raise UserError(f"{key} is {value}: write a number above 0")
        if len(given) > 1:
            said = ", ".join(f"{key} {value:g}" for key, value in given.items())
            raise UserError(f"{said}: one of them decides the bits of weights: leave one")
        start, end, learned = self.start, self.pruning.end, self.learn_ranges_step
        if start < end:
            raise UserError(f"start_bits_step {start}, before pruning ends: write {end} or more")
        if learned is not None and self.ranges != "follow":
            raise UserError(f"learn_ranges_step {learned} is read only with ranges: follow")
        if learned is not None and learned < start:
            raise UserError(f"learn_ranges_step {learned}, before bits: write {start} or more")

    @property
    def budget(self) -> tuple[str, float] | None:
        """The key of BIT_BUDGETS that is given, and its value; None without one."""
        return next(((k, v) for k in BIT_BUDGETS if (v := getattr(self, k)) is not None), None)

    @property
    def start(self) -> int:
        """The last step in float."""
        return self.pruning.end if self.start_bits_step is None else self.start_bits_step

    @property
    def phases(self) -> dict[str, int]:
        """The first iteration of each phase (from 0), by name and in order."""
        return {"float": 0, "bits": self.start}

    @property
    def follow_until(self) -> float | None:
        """The last step at which ranges follow what they clip; None if they are always learned."""
        return (self.learn_ranges_step or math.inf) if self.ranges == "follow" else None

    def limits(self, step: int) -> Limits:
        """Return the fewest and the most bits after ``step``, of weights and of activations."""
        (least, most), (_, inputs) = self._after(self.projection_periods)
        at_the_end = round(most), round(most)
        weights = at_the_end if self.budget is None else (least, self.max_bit_wt)
        return weights, (round(inputs), round(inputs))


#: By the key ``order``.
ORDERS = {"qasso": Qasso, "float_first": FloatFirst}


@dataclass(frozen=True)
class GetaSettings(HessoSettings):
    """Pruning and quantization in one run.

    Flat keys are also ``order``, a key of ORDERS, and those of its class. Any of them switches bits
    on; without an order it is ``qasso``.

    Attributes:
        bits: when and how bits are chosen; None only prunes.
    """

    bits: Qasso | FloatFirst | None = None

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """Return the types of the flat keys."""
        kinds = super().kinds() | {"order": Literal[tuple(ORDERS)]}
        for order, bits in ORDERS.items():
            hints = get_type_hints(bits)
            kinds |= {key: hints[key] for key in bit_keys(order)}
        return kinds

    @classmethod
    def _of(cls, given: dict[str, Any]) -> Self:
        known, order = set().union(*map(bit_keys, ORDERS)), given.pop("order", "")
        own = {key: given.pop(key) for key in known & given.keys()}
        settings = super()._of(given)
        if not order and not own:
            return settings
        order = order or "qasso"
        for key in sorted(own.keys() - bit_keys(order)):
            (other,) = ORDERS.keys() - {order}
            raise UserError(
                f"{key} {own[key]} is read only with order: {other}: write that, or leave {key} out"
            )
        return replace(settings, bits=ORDERS[order](settings.schedule, **own))


def bit_keys(order: str) -> set[str]:
    """Return the flat keys that an order of bits reads."""
    return {f.name for f in fields(ORDERS[order])} - {"pruning"}
