"""When channels are chosen, shrunk and removed, and when bits shrink, in optimizer steps.

The schedule of HESSO and of GETA's joint stage. Steps count from 1. With S the start, D the steps
of a period and t = (step - S) mod D, a period chooses its channels at t = 1, multiplies them by
(D - t - 1) / (D - t) at t = 1, ..., D - 1, so that the product is exactly 0, and ends there. The
step with t = 0 is an ordinary one. With D = 1 each period is one step that chooses and removes.
"""

from dataclasses import dataclass

WIDEST = 24  # bits that float32 tells apart


@dataclass(frozen=True)
class PruningSchedule:
    """Pruning of K channels in equal periods.

    Args:
        start: steps before the first period.
        steps: length of the pruning stage.
        periods: parts it is divided into; a remainder of ``steps / periods`` is left at its end.
        target: K, the channels to remove; each period takes ``K // periods``, the last the rest.
        total: steps of the whole run, if known.

    Raises:
        ValueError: for a stage that is too short for its periods or too long for the run; it would
            end short of its target.
    """

    start: int
    steps: int
    periods: int
    target: int
    total: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.periods < 1:
            raise ValueError(
                f"start_pruning_step {self.start} has to be 0 or more, "
                f"pruning_periods {self.periods} 1 or more"
            )
        if self.steps < self.periods:
            raise ValueError(
                f"pruning_steps {self.steps} is less than pruning_periods {self.periods}: "
                "each period needs a step"
            )
        if self.total is not None and self.start + self.steps > self.total:
            raise ValueError(
                f"pruning ends at step {self.start + self.steps} (start_pruning_step {self.start} "
                f"+ pruning_steps {self.steps}), but the run has {self.total} steps: lower one of "
                "them, or lengthen the run"
            )

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
        """Return how many periods have chosen their channels once ``step`` is done."""
        if step < self.first:
            return 0
        return min((step - self.first) // self.duration + 1, self.periods)

    def removed_by(self, period: int) -> int:
        """Return the channels to have chosen by the end of ``period`` (counted from 0)."""
        if period >= self.periods - 1:
            return self.target
        return (period + 1) * (self.target // self.periods)

    def shrinks(self, step: int) -> bool:
        """Tell whether ``step`` lies inside a period, where chosen channels shrink."""
        inside = self.first <= step <= self.last
        return inside and (self.duration == 1 or (step - self.start) % self.duration > 0)

    def factor(self, step: int) -> float:
        """Return what chosen channels are multiplied by at ``step``; 0 at a period's last step."""
        if not self.shrinks(step):
            return 0.0
        left = self.duration - (step - self.start) % self.duration
        return (left - 1.0) / left


@dataclass(frozen=True)
class ProjectionSchedule:
    """Shrinking of the largest bit width in equal periods, before pruning begins.

    Args:
        start: steps of warm-up, in which bits are free.
        steps: length of the shrinking.
        periods: parts it is divided into; a remainder of ``steps / periods`` is left at its end.

    Raises:
        ValueError: for a stage that is too short for its periods.
    """

    start: int
    steps: int
    periods: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.periods < 1:
            raise ValueError(
                f"start_projection_step {self.start} has to be 0 or more, "
                f"projection_periods {self.periods} 1 or more"
            )
        if self.steps < self.periods:
            raise ValueError(
                f"projection_steps {self.steps} is less than projection_periods {self.periods}: "
                "each period needs a step"
            )

    @property
    def end(self) -> int:
        """The last step of the stage."""
        return self.start + self.steps

    def shrinks_by(self, step: int) -> int:
        """Return how many times bits have shrunk when ``step`` is done: once a period, at its end.

        A function of the step alone: a skipped step loses nothing, and the last of ``periods``
        shrinks comes at ``start + periods * (steps // periods)``, before pruning.
        """
        return max(0, min((step - self.start) // (self.steps // self.periods), self.periods))


@dataclass(frozen=True)
class BitInterval:
    """The bits that quantizers of one kind may have.

    Args:
        least, most: whole numbers.
        reduction: what ``most`` loses at each shrink, never below ``least``.
        kind: how the settings call it: ``wt`` or ``act``.

    Raises:
        ValueError: for an interval that holds no grid.
    """

    least: int
    most: int
    reduction: float
    kind: str

    def __post_init__(self) -> None:
        lowest = 2 if self.kind == "wt" else 1
        if not lowest <= self.least <= self.most <= WIDEST:
            raise ValueError(
                f"min_bit_{self.kind} {self.least} and max_bit_{self.kind} {self.most} are no "
                f"interval: write {lowest} <= min_bit_{self.kind} <= max_bit_{self.kind} <= "
                f"{WIDEST}"
            )
        if self.reduction < 0:
            raise ValueError(f"bit_reduction {self.reduction} has to be 0 or more")

    def after(self, shrinks: int) -> float:
        """Return the largest bits allowed after so many shrinks."""
        return max(self.most - shrinks * self.reduction, self.least)
