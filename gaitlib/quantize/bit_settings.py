"""What a run that chooses bits is told: GETA's own order, or bits that come after the channels."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from gaitlib.prune.hesso_settings import HessoSettings
from gaitlib.prune.schedules import PruningSchedule
from gaitlib.quantize.bit_plan import BitInterval, BitPlan, ProjectionSchedule
from gaitlib.system.errors import UserError

#: The keys that limit the cost of bits; a run has at most one of them.
BIT_BUDGETS = ("target_bops", "target_bytes")
#: The keys that say how many bits weights end at; a run has at most one of them.
BIT_TARGETS = (*BIT_BUDGETS, "target_bits")


@dataclass(frozen=True)
class Bits:
    """What both orders of bits read.

    Attributes:
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
        UserError: if bounds contradict each other.
    """

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
        for name, low, high in (
            (self._least_key, self.least_weight_bits, "max_bit_wt"),
            ("min_bit_act", self.min_bit_act, "max_bit_act"),
        ):
            if low > getattr(self, high):
                raise UserError(f"{name} {low} exceeds {high} {getattr(self, high)}")
        if self.target_bits is None and self.min_bit_wt < self.max_bit_wt:
            end = self.max_bit_wt - self.projection_periods * self.bit_reduction
            if end < self.min_bit_wt:
                raise UserError(
                    f"max_bit_wt {self.max_bit_wt} - projection_periods {self.projection_periods} "
                    f"* bit_reduction {self.bit_reduction} = {end} is below min_bit_wt "
                    f"{self.min_bit_wt}: lower bit_reduction or projection_periods, or write "
                    "target_bits"
                )

    @property
    def _least_key(self) -> str:
        return "min_bit_wt" if self.target_bits is None else "target_bits"

    @property
    def least_weight_bits(self) -> int:
        """The fewest bits that a weight may have."""
        return self.min_bit_wt if self.target_bits is None else self.target_bits

    def _intervals(self) -> tuple[BitInterval, BitInterval]:
        """Return the bits that weights and activations may have."""
        least, each, others = self.least_weight_bits, self.bit_reduction, self.bit_reduction
        if self.target_bits is not None:
            each, others = (self.max_bit_wt - least) / self.projection_periods, 0
        weights = BitInterval(least, self.max_bit_wt, each, "wt")
        return weights, BitInterval(self.min_bit_act, self.max_bit_act, others, "act")


@dataclass(frozen=True)
class Qasso(Bits):
    """Bits before channels, as GETA's paper has it; `BitPlan` has the phases.

    Attributes:
        start_projection_step: steps of warm-up, in which bits are free.
        projection_steps: steps from there to the end of projection, in ``projection_periods``.
    """

    start_projection_step: int = 0
    projection_steps: int = 1

    def plan(self, pruning: PruningSchedule) -> BitPlan:
        """Return when bits shrink, in a run that prunes by ``pruning``."""
        weights, activations = self._intervals()
        projection = ProjectionSchedule(
            self.start_projection_step, self.projection_steps, self.projection_periods
        )
        follow_until = pruning.end if self.ranges == "follow" else None
        return BitPlan(self.lr_quant, projection, weights, activations, pruning, follow_until)


@dataclass(frozen=True)
class FloatFirst(Bits):
    """Channels first, in float; then bits, which are whole at once.

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
        if len(given) > 1:
            said = ", ".join(f"{key} {value:g}" for key, value in given.items())
            raise UserError(f"{said}: one of them decides the bits of weights: leave one")
        if self.learn_ranges_step is not None and self.ranges != "follow":
            raise UserError(
                f"learn_ranges_step {self.learn_ranges_step} is read only with ranges: follow: "
                "leave it out, or write that"
            )

    @property
    def budget(self) -> tuple[str, float] | None:
        """The key of BIT_BUDGETS that is given, and its value; None without one."""
        return next(((k, v) for k in BIT_BUDGETS if (v := getattr(self, k)) is not None), None)

    def start(self, pruning: PruningSchedule) -> int:
        """Return the last step in float."""
        return pruning.end if self.start_bits_step is None else self.start_bits_step

    def plan(self, pruning: PruningSchedule) -> BitPlan:
        """Return when bits begin, in a run that prunes by ``pruning``.

        Raises:
            UserError: if ranges are learned before there are bits.
        """
        start, learned = self.start(pruning), self.learn_ranges_step
        if learned is not None and learned < start:
            raise UserError(
                f"learn_ranges_step {learned} is before the weights are rounded, at "
                f"start_bits_step {start}: write {start} or more"
            )
        weights, activations = self._intervals()
        return BitPlan(
            self.lr_quant,
            ProjectionSchedule(0, self.projection_periods, self.projection_periods),
            weights.at_the_end(self.projection_periods)
            if self.budget is None
            else BitInterval(weights.least, weights.most, 0, "wt"),
            activations.at_the_end(self.projection_periods),
            pruning,
            (learned or math.inf) if self.ranges == "follow" else None,
            start,
        )


#: By the key ``order``.
ORDERS = {"qasso": Qasso, "float_first": FloatFirst}


@dataclass(frozen=True)
class GetaSettings(HessoSettings):
    """Pruning and quantization in one run.

    Attributes:
        bits: when and how bits are chosen; None only prunes.
    """

    bits: Qasso | FloatFirst | None = None

    @classmethod
    def of(cls, order: str | None = None, **keys: Any) -> Self:
        """Return the settings that flat keys mean, as `HessoSettings.of`.

        Args:
            order: a key of ORDERS; None is ``qasso`` if there is a key of bits.
            keys: also those of the order's class. Any of them, or an order, switches bits on.
        """
        known = set().union(*map(bit_keys, ORDERS))
        own = {key: value for key in known & keys.keys() if (value := keys.pop(key)) is not None}
        if order is None and not own:
            return super().of(**keys)
        order = order or "qasso"
        if unread := sorted(own.keys() - bit_keys(order)):
            raise UserError(f"{unread[0]} {own[unread[0]]} is not read with order: {order}")
        return super().of(**keys, bits=ORDERS[order](**own))

    @property
    def bit_plan(self) -> BitPlan | None:
        """When bits shrink, and the bounds they keep within; None without quantization."""
        return None if self.bits is None else self.bits.plan(self.schedule)


def bit_keys(order: str) -> set[str]:
    """Return the flat keys that an order of bits reads."""
    return {f.name for f in fields(ORDERS[order])}
