"""The rule of a pruning run: how channels are scored, and how many leave in each period."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from gaitlib.prune.importance import PROXIES, choose, five_scores, removable
from gaitlib.prune.schedules import PruningSchedule
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

Moves = Callable[[dict[str, Any]], Sequence[Tensor | None]]


class ChannelRule(Protocol):
    """What a `Pruner` asks of its rule. Groups and their channels have a fixed order.

    Attributes:
        names: names of the rows that `score` returns.
    """

    names: tuple[str, ...]

    def observe(self, groups: Sequence[dict[str, Any]]) -> None:
        """Look at the gradients of a step, before the base optimizer moves."""

    def satisfied(self, period: int, removed: Sequence[Sequence[int]]) -> bool:
        """Return whether no more channels need to leave in ``period`` (from 0)."""

    def score(self, groups: Sequence[dict[str, Any]], moves: Moves) -> Tensor:
        """Return the scores of all channels, ``(rows, N)``; their sum ranks the channels."""

    def choose(
        self, scores: Sequence[Sequence[float]], removed: Sequence[Sequence[int]], period: int
    ) -> list[list[int]]:
        """Return the channels of each group that leave in ``period``."""

    def narrow(self, kept: Mapping[str, Tensor]) -> None:
        """Follow channels that leave the network: keep these places of each group that lost some.

        Until the next choice ``removed`` and the scores of ``choose`` still count all channels.
        """

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, as plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule has gathered since the last choice."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""


class SparsityRule:
    """HESSO's own rule: K channels leave, those of the lowest five scores.

    Args:
        groups: the prunable parameter groups, from `Graph.param_groups`.
        schedule: when channels leave.
        target: K, how many channels leave in all.
        criteria: weights of the importance proxies, by name.
        divisible: each group keeps a multiple of this number of channels.

    Raises:
        UserError: if the target cannot be reached; the message has the numbers.
    """

    names = PROXIES

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        schedule: PruningSchedule,
        target: int,
        criteria: Mapping[str, float],
        divisible: int,
    ) -> None:
        self.schedule, self.target, self.divisible = schedule, target, divisible
        self.criteria = dict(criteria)
        self._check_target([group["num_groups"] for group in groups])

    def observe(self, groups: Sequence[dict[str, Any]]) -> None:
        """Do nothing: the scores are those of the step that chooses."""

    def satisfied(self, period: int, removed: Sequence[Sequence[int]]) -> bool:
        """Return whether ``period`` has no quota left."""
        return self._quota(period, removed) <= 0

    def score(self, groups: Sequence[dict[str, Any]], moves: Moves) -> Tensor:
        """Return the five weighted proxies, ``(5, N)``."""
        return five_scores(groups, moves, self.criteria)

    def choose(
        self, scores: Sequence[Sequence[float]], removed: Sequence[Sequence[int]], period: int
    ) -> list[list[int]]:
        """Return the channels of the lowest scores: `importance.choose`."""
        return choose(scores, removed, self._quota(period, removed), self.divisible)

    def narrow(self, kept: Mapping[str, Tensor]) -> None:
        """Do nothing: it gathers nothing."""

    def settings(self) -> dict[str, Any]:
        """Return criteria, divisor and target."""
        return {
            "criteria": dict(self.criteria),
            "group_divisible": self.divisible,
            "target": self.target,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it gathers nothing between choices."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def _quota(self, period: int, removed: Sequence[Sequence[int]]) -> int:
        return self.schedule.removed_by(period, self.target) - sum(map(len, removed))

    def _check_target(self, channels: Sequence[int]) -> None:
        most = sum(removable(n, self.divisible) for n in channels)
        if self.target <= most:
            return
        message = (
            f"target_group_sparsity asks for {self.target} of {sum(channels)} channels, but each "
            f"of {len(channels)} prunable groups keeps {self.divisible}, so at most {most} can "
            "leave"
        )
        if self.divisible == 1:
            raise UserError(message)
        log.warning(message)
