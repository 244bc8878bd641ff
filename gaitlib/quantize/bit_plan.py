"""When bits shrink, in optimizer steps, and the bounds they keep within."""

from dataclasses import dataclass
from typing import ClassVar

from gaitlib.prune.schedules import Periods, PruningSchedule
from gaitlib.system.errors import UserError

MAX_BITS = 24  # bits of float32's significand


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
class BitInterval:
    """The bits that quantizers of one kind may have.

    Args:
        least, most: whole numbers, ``least <= most``.
        reduction: bits that ``most`` loses per shrink, never below ``least``.
        kind: the end of the section's keys: ``wt`` or ``act``.
    """

    least: int
    most: int
    reduction: float
    kind: str

    def after(self, shrinks: int) -> float:
        """Return the most bits allowed after ``shrinks`` shrinks."""
        return max(self.most - shrinks * self.reduction, self.least)

    def at_the_end(self, shrinks: int) -> "BitInterval":
        """Return the interval of the one whole number of bits allowed after ``shrinks`` shrinks."""
        bits = round(self.after(shrinks))
        return BitInterval(bits, bits, 0, self.kind)


@dataclass(frozen=True)
class BitPlan:
    """When bits shrink, and the bounds they keep within.

    GETA's four phases (https://arxiv.org/abs/2502.16638):

    1. Warm-up: bits are free.
    2. Projection: the upper bounds shrink period by period.
    3. Joint: channels are pruned; the bounds stay as they are after projection.
    4. Cool-down: each quantizer keeps a whole number of bits.

    Or, with ``bits_start``, two phases: float, in which channels are pruned, and bits, in which
    each quantizer keeps a whole number of bits.

    Attributes:
        lr_quant: learning rate of d, q_m and t in all phases.
        projection: when the upper bounds shrink.
        weights, activations: the intervals.
        pruning: when channels leave: the joint phase, after which bits are whole.
        follow_until: the last step at which ranges follow what they clip, or infinity; None if they
            are learned in all steps.
        bits_start: the last step in float; None for GETA's phases.

    Raises:
        UserError: if projection ends after pruning has begun, or bits begin before it has ended.
    """

    lr_quant: float
    projection: ProjectionSchedule
    weights: BitInterval
    activations: BitInterval
    pruning: PruningSchedule
    follow_until: float | None = None
    bits_start: int | None = None

    def __post_init__(self) -> None:
        if self.bits_start is not None:
            if self.bits_start < self.pruning.end:
                raise UserError(
                    f"start_bits_step {self.bits_start} is before the end of pruning, which is at "
                    f"step {self.pruning.end}: write {self.pruning.end} or more"
                )
        elif self.projection.end > self.pruning.start:
            raise UserError(
                f"{self.projection} exceeds start_pruning_step {self.pruning.start}: bits have to "
                "shrink before channels are pruned"
            )

    def phases(self) -> dict[str, int]:
        """Return the first iteration of each phase (from 0), by name and in order."""
        if self.bits_start is not None:
            return {"float": 0, "bits": self.bits_start}
        return {
            "warm-up": 0,
            "projection": self.projection.start,
            "joint": self.pruning.start,
            "cool-down": self.pruning.end,
        }

    def phase(self, step: int) -> str:
        """Return the name of the phase that ``step`` is in."""
        phases = self.phases()
        begun = [name for name, first in phases.items() if first < step]
        return begun[-1] if begun else next(iter(phases))
