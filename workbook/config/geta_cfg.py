"""The section of GETA, which prunes and quantizes, and of the rounding that it is compared with."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from gaitlib.quantize.bit_plan import MAX_BITS, BitInterval, BitPlan, ProjectionSchedule
from gaitlib.system.errors import UserError
from workbook.config.compression_cfg import Budget, HessoCfg
from workbook.config.section import LearningRate, Section


class RoundingCfg(Section):
    """How the network of GETA's rival is rounded after its training (the stage ``ptq``).

    - ``clipping``: a weight is clipped where its squared rounding error is least: one magnitude per
      ``tensor``, or one per output ``channel`` of a convolution, whose scale goes into the batch
      norm behind it.
    - ``batch_norm_batches``: batches of training clips to measure the statistics of batch norms on
      again after rounding; 0 keeps those of training.

    The defaults are the best of both: at 4 bits the batch norms are worth most, at 3 bits the
    channels too, and without the former the latter can lose.
    """

    clipping: Literal["tensor", "channel"] = "channel"
    batch_norm_batches: NonNegativeInt = 32


#: GETA's keys beyond HESSO's, with their defaults. A section that gives one of them has them all.
QUANTIZATION = {
    "lr_quant": 1.0e-3,
    "start_projection_step": 0,
    "projection_steps": 1,
    "projection_periods": 1,
    "bit_reduction": 2,
    "min_bit_wt": 2,
    "max_bit_wt": 16,
    "min_bit_act": 2,
    "max_bit_act": 16,
    "quantize": "weights_and_activations",
    "uniform": False,
    "order": "qasso",
    "ranges": "learned",
    "batch_norm_batches": 0,
    "target_bits": None,
}
#: The same with ``order: float_first``, which has some keys more, and other defaults.
FLOAT_FIRST = QUANTIZATION | {
    "order": "float_first",
    "ranges": "follow",
    "batch_norm_batches": 32,
    "start_bits_step": None,
    "clipping": "channel",
    "learn_ranges_step": None,
    "distillation": 0.0,
    "keep_better": True,
    "target_bops": None,
    "target_bytes": None,
}
#: The keys that limit the cost of bits; a section has at most one of them.
BIT_BUDGETS = ("target_bops", "target_bytes")
#: The keys that say how many bits weights end at; a section has at most one of them.
BIT_TARGETS = (*BIT_BUDGETS, "target_bits")

WeightBits = Annotated[int, Field(ge=2, le=MAX_BITS)]
ActivationBits = Annotated[int, Field(ge=1, le=MAX_BITS)]


class GetaCfg(HessoCfg):
    """Pruning and quantization in one run: HESSO's keys, and how bits shrink before it prunes.

    Any key of QUANTIZATION switches quantization on; the other keys then take their defaults from
    there. Without any of them the run only prunes.

    The phases (see `BitPlan`) follow one another:

    1. Warm-up takes ``start_projection_step`` steps.
    2. Projection takes ``projection_steps``, in ``projection_periods``. Each period ends by
       lowering ``max_bit_wt`` and ``max_bit_act`` by ``bit_reduction``, never below ``min_bit_*``.
    3. In the joint phase HESSO prunes, by its own keys.
    4. Cool-down lasts to the end of the run; bits are whole.

    The keys of bits:

    - ``start_projection_step``: steps of warm-up.
    - ``projection_steps``: steps from there to the end of projection.
    - ``projection_periods``: equal parts of ``projection_steps``.
    - ``bit_reduction``: by how much each period lowers the upper bounds.
    - ``min_bit_wt``: the fewest bits of weights.
    - ``max_bit_wt``: the most bits of weights, at the start.
    - ``min_bit_act``: the fewest bits of activations, the inputs of layers.
    - ``max_bit_act``: the most bits of activations, at the start.
    - ``target_bits``: b is short for ``min_bit_wt: b`` with a ``bit_reduction`` of
      ``(max_bit_wt - b) / projection_periods``: all weights end at b bits. The bounds of
      activations then stay as given.
    - ``quantize``: what is rounded.
    - ``lr_quant``: the learning rate of the quantizers' grids.
    - ``order``: ``qasso``, bits before channels, as published; or ``float_first``.

    With ``order: float_first`` the run prunes in float, as HESSO does, and rounds afterwards. Bits
    are whole at once: without a budget those that projection would end at. Further keys of this
    order:

    - ``start_bits_step``: the step to round from; by default the end of pruning.
    - ``target_bops``: the backbone's bit operations per frame to end at or below; below 1 a share
      of the dense float network's.
    - ``target_bytes``: the bytes of the network's numbers to end at or below, without the header of
      its file. Either budget chooses the bits of each weight from ``min_bit_wt..max_bit_wt``, see
      `gaitlib.quantize.bit_budget`. Below 1 it is a share of the dense float network's.
    - ``clipping``: one clipping magnitude per ``tensor``, or per output ``channel`` of a
      convolution. For the latter its channels are scaled at ``start_bits_step``, and the batch norm
      behind it takes the scale up, as in `RoundingCfg`.
    - ``learn_ranges_step``: with ``ranges: follow``, the step after which ranges are learned; null:
      they follow to the end.
    - ``distillation``: weight of the divergence from the logits that the run's own float network of
      ``start_bits_step`` gives; 0 does without, see `gaitlib.train.float_twin`.
    - ``keep_better``: at the end compare the network with that float network, rounded as ``ptq``
      says, on training subjects, and keep the better one.

    Keys of both orders, and of the comparison:

    - ``batch_norm_batches``: batches of training clips to measure the statistics of batch norms on
      again after the last step, unless ``fix_BN`` froze them; 0 keeps those of training.
    - ``uniform``: true keeps the exponent t of every grid at 1. This is plain uniform quantization,
      which integer arithmetic needs.
    - ``ranges``: ``learned`` is the published rule: d, q_m and t start from the first weights and
      move by the base optimizer. With ``follow`` the clipping magnitudes q_m follow the numbers
      that they clip until pruning ends, and are then learned on a logarithmic scale; see
      `BitControl`.
    - ``yardstick``: false makes notebook 3 skip its comparison: the same run without bits, a second
      training of full length, and the rounding of its result.
    - ``ptq``: how that result is rounded.
    """

    yardstick: bool = True
    ptq: RoundingCfg = RoundingCfg()
    lr_quant: LearningRate | None = None
    start_projection_step: NonNegativeInt | None = None
    projection_steps: PositiveInt | None = None
    projection_periods: PositiveInt | None = None
    bit_reduction: NonNegativeInt | None = None
    min_bit_wt: WeightBits | None = None
    max_bit_wt: WeightBits | None = None
    min_bit_act: ActivationBits | None = None
    max_bit_act: ActivationBits | None = None
    quantize: Literal["weights", "weights_and_activations"] | None = None
    uniform: bool | None = None
    order: Literal["qasso", "float_first"] | None = None
    ranges: Literal["learned", "follow"] | None = None
    batch_norm_batches: NonNegativeInt | None = None
    target_bits: WeightBits | None = None
    start_bits_step: PositiveInt | None = None
    clipping: Literal["tensor", "channel"] | None = None
    learn_ranges_step: PositiveInt | None = None
    distillation: NonNegativeFloat | None = None
    keep_better: bool | None = None
    target_bops: Budget | None = None
    target_bytes: Budget | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in the defaults, so that a run's config.yaml shows them."""
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        late = given.get("order") == "float_first"
        for key in BIT_BUDGETS:
            if key in given and not late:
                raise UserError(
                    f"{key} {given[key]} is kept only with order: float_first: write that, or "
                    f"leave {key} out"
                )
        if not QUANTIZATION.keys() & given.keys():
            return values
        derived = ("min_bit_wt", "bit_reduction") if "target_bits" in given else ()
        defaults = FLOAT_FIRST if late else QUANTIZATION
        return {k: v for k, v in defaults.items() if k not in derived} | given

    @model_validator(mode="after")
    def _bits_are_reached(self) -> "GetaCfg":
        if self.quantizes:
            if self.implementation == "only_train_once":
                raise UserError(
                    "only_train_once's own HESSO does not quantize: write implementation: gaitlib, "
                    f"or leave out {', '.join(QUANTIZATION)}"
                )
            _ = self.bit_plan  # raises
            self._check_bits()
            if self.late:
                self._check_late_bits()
        return self

    def _check_late_bits(self) -> None:
        """Check the keys of ``order: float_first`` against one another."""
        rivals = [key for key in BIT_TARGETS if getattr(self, key) is not None]
        if len(rivals) > 1:
            told = ", ".join(f"{key} {getattr(self, key):g}" for key in rivals)
            raise UserError(f"{told}: one of them decides the bits of weights: leave one")
        step = self.learn_ranges_step
        if step is None:
            return
        if self.ranges != "follow":
            raise UserError(
                f"learn_ranges_step {step} is read only with ranges: follow: leave it out, or "
                "write that"
            )
        if step < self.bits_start:
            raise UserError(
                f"learn_ranges_step {step} is before the weights are rounded, at start_bits_step "
                f"{self.bits_start}: write {self.bits_start} or more"
            )

    def _check_bits(self) -> None:
        target, reduction, periods = self.target_bits, self.bit_reduction, self.projection_periods
        if target is not None:
            for key in ("min_bit_wt", "bit_reduction"):
                if (value := getattr(self, key)) is not None:
                    raise UserError(
                        f"target_bits {target} sets min_bit_wt and bit_reduction: leave out "
                        f"{key} {value}"
                    )
        least = "min_bit_wt" if target is None else "target_bits"
        for low, high in ((least, "max_bit_wt"), ("min_bit_act", "max_bit_act")):
            if getattr(self, low) > getattr(self, high):
                raise UserError(f"{low} {getattr(self, low)} exceeds {high} {getattr(self, high)}")
        if target is None and self.min_bit_wt < self.max_bit_wt:
            end = self.max_bit_wt - periods * reduction
            if end < self.min_bit_wt:
                raise UserError(
                    f"max_bit_wt {self.max_bit_wt} - projection_periods {periods} * bit_reduction "
                    f"{reduction} = {end} is below min_bit_wt {self.min_bit_wt}: lower "
                    "bit_reduction or projection_periods, or write target_bits"
                )

    @property
    def bit_plan(self) -> BitPlan | None:
        """When bits shrink, and the bounds they keep within; None without quantization."""
        if not self.quantizes:
            return None
        least, each, others = self.min_bit_wt, self.bit_reduction, self.bit_reduction
        if self.target_bits is not None:
            least, others = self.target_bits, 0
            each = (self.max_bit_wt - least) / self.projection_periods
        weights = BitInterval(least, self.max_bit_wt, each, "wt")
        activations = BitInterval(self.min_bit_act, self.max_bit_act, others, "act")
        follow_until = None
        if self.ranges == "follow":
            follow_until = (self.learn_ranges_step or math.inf) if self.late else self.schedule.end
        if self.late:
            periods = self.projection_periods
            activations = activations.at_the_end(periods)
            if self.bit_target is None:
                weights = weights.at_the_end(periods)
            else:
                weights = BitInterval(least, self.max_bit_wt, 0, "wt")
        return BitPlan(
            lr_quant=self.lr_quant,
            schedule=ProjectionSchedule(
                self.start_projection_step, self.projection_steps, self.projection_periods
            ),
            weights=weights,
            activations=activations,
            joint=self.schedule.start,
            cool_down=self.schedule.end,
            follow_until=follow_until,
            bits_start=self.bits_start if self.late else None,
        )

    @property
    def late(self) -> bool:
        """Whether bits come late: ``order: float_first``."""
        return self.order == "float_first"

    @property
    def distils(self) -> bool:
        """Whether the run's own float network teaches the rounded one."""
        return self.late and self.distillation > 0

    @property
    def bits_start(self) -> int:
        """With ``order: float_first``, the last step in float."""
        return self.schedule.end if self.start_bits_step is None else self.start_bits_step

    @property
    def bit_target(self) -> tuple[str, float] | None:
        """The key of BIT_BUDGETS that is given, and its value; None without one."""
        return next(((k, v) for k in BIT_BUDGETS if (v := getattr(self, k)) is not None), None)

    def check_fits(self, total: int) -> None:
        """Raise ``UserError`` as `HessoCfg` does, or if a part of the schedule has no step."""
        super().check_fits(total)
        if self.late:
            if self.bits_start >= total:
                raise UserError(
                    f"start_bits_step {self.bits_start} is not before the last of "
                    f"trainer_cfg.total_iter {total}: the network would never train with bits"
                )
            if self.learn_ranges_step is not None and self.learn_ranges_step >= total:
                raise UserError(
                    f"learn_ranges_step {self.learn_ranges_step} is not before the last of "
                    f"trainer_cfg.total_iter {total}: no range would be learned; write less, or "
                    "leave it out"
                )
        elif self.quantizes and self.schedule.end == total:
            raise UserError(
                f"{self.schedule} is all of trainer_cfg.total_iter: keep at least one iteration "
                "for training at whole bits"
            )

    @property
    def quantizes(self) -> bool:
        """Whether any key of QUANTIZATION was given."""
        return self.quantize is not None

    def without_effect(self) -> dict[str, str]:
        """Return the keys that were set but have no effect, with the reason."""
        found = super().without_effect()
        defaults = FLOAT_FIRST if self.late else QUANTIZATION
        unread = {}
        if self.quantize == "weights":
            unread["quantize is 'weights'"] = ("min_bit_act", "max_bit_act")
        if self.late:
            unread["order is 'float_first'"] = ("start_projection_step", "projection_steps")
        else:
            reason = f"order is {self.order!r}" if self.quantizes else "nothing is quantized"
            unread[reason] = FLOAT_FIRST.keys() - QUANTIZATION.keys()
        for reason, keys in unread.items():
            are_set = [key for key in sorted(keys) if getattr(self, key) != defaults.get(key)]
            found |= dict.fromkeys(are_set, reason)
        return found
