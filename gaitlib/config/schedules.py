"""When channels are chosen, shrunk and removed, and when bits shrink, in optimizer steps.

`HessoCfg` and `GetaCfg` build these objects. They check the type and range of each number; the
objects check numbers against one another.

HESSO, and GETA in its joint phase, prune by a `PruningSchedule`. Steps count from 1. S is the
start, D the steps of a period and t = (step - S) mod D. A period chooses its channels at t = 1 and
multiplies them by (D - t - 1) / (D - t) at t = 1, ..., D - 1. The last factor is exactly 0; the
period ends with it. The step with t = 0 is an ordinary one. With D = 1 each period is one step,
which chooses and removes.
"""

from dataclasses import dataclass

MAX_BITS = 24  # bits of float32's significand


@dataclass(frozen=True)
class PruningSchedule:
    """When channels leave, in equal periods.

    Args:
        start: steps before the first period, 0 or more.
        steps: steps from there to the end of pruning.
        periods: number of equal parts of ``steps``, 1 or more. A remainder of ``steps / periods``
            comes after the last.

    Raises:
        ValueError: if there are more periods than steps.
    """

    start: int
    steps: int
    periods: int

    def __post_init__(self) -> None:
        _check_periods("pruning", self.steps, self.periods)

    def check_fits(self, total: int) -> None:
        """Raise ``ValueError``, with the numbers, if pruning ends after the run's last step."""
        if self.end > total:
            raise ValueError(
                f"{self} exceeds trainer_cfg.total_iter {total}: the target sparsity would never "
                "be reached"
            )

    def __str__(self) -> str:
        return f"start_pruning_step {self.start} + pruning_steps {self.steps} = {self.end}"

    @property
    def end(self) -> int:
        """The last step of pruning, including the remainder."""
        return self.start + self.steps

    @property
    def duration(self) -> int:
        """D, the steps of one period."""
        return self.steps // self.periods

    @property
    def first(self) -> int:
        """The step that chooses the first channels."""
        return self.start + 1 if self.duration > 1 else max(self.start, 1)

    @property
    def last(self) -> int:
        """The step that removes the last channels."""
        after = self.duration * (self.periods - 1)
        return self.first + after + max(self.duration - 2, 0)

    def due(self, step: int) -> int:
        """Return how many periods have chosen their channels by the end of ``step``."""
        if step < self.first:
            return 0
        return min((step - self.first) // self.duration + 1, self.periods)

    def removed_by(self, period: int, target: int) -> int:
        """Return how many of ``target`` channels are chosen by the end of ``period``.

        Periods count from 0. Each takes ``target // periods``; the last takes the rest.
        """
        if period >= self.periods - 1:
            return target
        return (period + 1) * (target // self.periods)

    def compute_share(self, total: int, target: float) -> float:
        """Return what ``total`` steps cost if channels leave at the end of their period.

        Args:
            total: steps of the run.
            target: cost of a step at the end, as a share of the first one's; it falls by the same
                amount in each period.

        Returns:
            The cost as a share of as many steps that are all like the first.
        """
        inside = [1 + period / self.periods * (target - 1) for period in range(self.periods)]
        after = total - self.start - self.periods * self.duration
        return (self.start + self.duration * sum(inside) + after * target) / total

    def spans(self) -> list[tuple[int, int]]:
        """Return the first and last iteration of each period, for figures."""
        starts = [self.start + i * self.duration for i in range(self.periods)]
        return [(start, start + self.duration) for start in starts]

    def shrinks(self, step: int) -> bool:
        """Return whether chosen channels shrink at ``step``: it lies inside a period."""
        inside = self.first <= step <= self.last
        return inside and (self.duration == 1 or (step - self.start) % self.duration > 0)

    def factor(self, step: int) -> float:
        """Return the factor of the chosen channels at ``step``; 0 at a period's last step."""
        if not self.shrinks(step):
            return 0.0
        left = self.duration - (step - self.start) % self.duration
        return (left - 1.0) / left


@dataclass(frozen=True)
class ProjectionSchedule:
    """When the largest bit width shrinks, in equal periods, before pruning begins.

    Args:
        start: steps of warm-up, in which bits are free; 0 or more.
        steps: steps from there to the end of projection.
        periods: number of equal parts of ``steps``, 1 or more. A remainder of ``steps / periods``
            comes after the last.

    Raises:
        ValueError: if there are more periods than steps.
    """

    start: int
    steps: int
    periods: int

    def __post_init__(self) -> None:
        _check_periods("projection", self.steps, self.periods)

    def __str__(self) -> str:
        return f"start_projection_step {self.start} + projection_steps {self.steps} = {self.end}"

    @property
    def end(self) -> int:
        """The last step of the projection phase, including the remainder."""
        return self.start + self.steps

    def shrinks_by(self, step: int) -> int:
        """Return how many times bits have shrunk by the end of ``step``.

        They shrink once per period, at its end. The number depends only on the step, so skipping a
        step loses no shrink. The last shrink is at ``start + periods * (steps // periods)``, before
        pruning.
        """
        return max(0, min((step - self.start) // (self.steps // self.periods), self.periods))


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
        schedule: when the upper bounds shrink.
        weights, activations: the intervals.
        joint: the step after which the joint phase begins.
        cool_down: the last step of pruning, after which bits are whole.
        follow_until: the last step at which ranges follow what they clip, or infinity; None if they
            are learned in all steps.
        bits_start: the last step in float; None for GETA's phases.

    Raises:
        ValueError: if projection ends after pruning has begun, or bits begin before it has ended.
    """

    lr_quant: float
    schedule: ProjectionSchedule
    weights: BitInterval
    activations: BitInterval
    joint: int
    cool_down: int
    follow_until: float | None = None
    bits_start: int | None = None

    def __post_init__(self) -> None:
        if self.bits_start is not None:
            if self.bits_start < self.cool_down:
                raise ValueError(
                    f"start_bits_step {self.bits_start} is before the end of pruning, which is at "
                    f"step {self.cool_down}: write {self.cool_down} or more"
                )
        elif self.schedule.end > self.joint:
            raise ValueError(
                f"{self.schedule} exceeds start_pruning_step {self.joint}: bits have to shrink "
                "before channels are pruned"
            )

    def phases(self) -> dict[str, int]:
        """Return the first iteration of each phase (from 0), by name and in order."""
        if self.bits_start is not None:
            return {"float": 0, "bits": self.bits_start}
        return {
            "warm-up": 0,
            "projection": self.schedule.start,
            "joint": self.joint,
            "cool-down": self.cool_down,
        }

    def phase(self, step: int) -> str:
        """Return the name of the phase that ``step`` is in."""
        phases = self.phases()
        begun = [name for name, first in phases.items() if first < step]
        return begun[-1] if begun else next(iter(phases))


def _check_periods(name: str, steps: int, periods: int) -> None:
    """Refuse more periods than steps; ``name`` is the beginning of the section's keys."""
    if steps < periods:
        raise ValueError(
            f"{name}_steps {steps} is less than {name}_periods {periods}: each period needs at "
            "least one step"
        )
