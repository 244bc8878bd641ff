"""When channels are chosen, shrunk and removed, in optimizer steps.

HESSO, and GETA in its joint phase, prune by a `PruningSchedule`. Steps count from 1. S is the
start, D the steps of a period and t = (step - S) mod D. A period chooses its channels at t = 1 and
multiplies them by (D - t - 1) / (D - t) at t = 1, ..., D - 1. The last factor is exactly 0; the
period ends with it. The step with t = 0 is an ordinary one. With D = 1 each period is one step,
which chooses and removes.
"""

from dataclasses import dataclass
from typing import ClassVar

from gaitlib.system.errors import UserError


@dataclass(frozen=True)
class Periods:
    """A part of a training that is divided into equal periods.

    Args:
        start: steps before the first period, 0 or more.
        steps: steps from there to the end.
        periods: number of equal parts of ``steps``, 1 or more. A remainder of ``steps / periods``
            comes after the last.

    Raises:
        UserError: if there are more periods than steps, or less than one, or a negative start.
    """

    name: ClassVar[str]
    start: int
    steps: int
    periods: int

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"start_{self.name}_step is {self.start}: write 0 or more")
        if self.periods < 1:
            raise UserError(f"{self.name}_periods is {self.periods}: write 1 or more")
        if self.steps < self.periods:
            raise UserError(
                f"{self.name}_steps {self.steps} is less than {self.name}_periods {self.periods}: "
                "each period needs at least one step"
            )

    def __str__(self) -> str:
        start, steps = f"start_{self.name}_step {self.start}", f"{self.name}_steps {self.steps}"
        return f"{start} + {steps} = {self.end}"

    @property
    def end(self) -> int:
        """The last step, including the remainder."""
        return self.start + self.steps

    @property
    def duration(self) -> int:
        """D, the steps of one period."""
        return self.steps // self.periods


@dataclass(frozen=True)
class PruningSchedule(Periods):
    """When channels leave."""

    name: ClassVar[str] = "pruning"

    def check_fits(self, total: int) -> None:
        """Raise ``UserError``, with the numbers, if pruning ends after the run's last step."""
        if self.end > total:
            raise UserError(
                f"{self} exceeds trainer_cfg.total_iter {total}: the target sparsity would never "
                "be reached"
            )

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
