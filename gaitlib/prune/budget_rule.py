"""The rule of a run with a budget: channels leave until the network costs no more than that."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gaitlib.prune.channel_cost import ChannelCost
from gaitlib.prune.channel_rules import Moves
from gaitlib.prune.hesso_settings import Budget
from gaitlib.prune.importance import PROXIES, five_scores
from gaitlib.prune.schedules import PruningSchedule
from gaitlib.prune.taylor import TaylorSums
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

#: A choice ends at most this share below its budget, unless every bundle of channels is coarser.
TOLERANCE = 0.01
#: A saving of at most this share of the cost is rounding.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Limits:
    """How far each group may shrink.

    Attributes:
        divisible: m; channels leave in bundles, so that each group keeps a multiple of m. A group
            of fewer than m channels keeps all.
        least_share: share of its channels that each group keeps at least.
    """

    divisible: int = 1
    least_share: float = 0.0

    def bundle(self, width: int) -> int:
        """Return how many channels leave together at ``width``."""
        return width % self.divisible or self.divisible

    def allows(self, width: int, full: int) -> bool:
        """Return whether a group of ``full`` channels may shrink to ``width``."""
        return width >= max(self.divisible, 1, math.ceil(self.least_share * full - 1e-9))

    def least(self, full: int) -> int:
        """Return the least width of a group of ``full`` channels."""
        width = full
        while self.allows(width - self.bundle(width), full):
            width -= self.bundle(width)
        return width


def choose_within(
    scores: Mapping[str, Sequence[float]],
    removed: Mapping[str, Sequence[int]],
    cost: ChannelCost,
    budget: float,
    limits: Limits,
    *,
    per_cost: bool,
) -> dict[str, list[int]]:
    """Choose channels until the network costs at most ``budget``.

    Bundles leave one at a time, the lowest first. What a bundle saves is computed anew after each,
    at the widths of the moment. A bundle that would end more than `TOLERANCE` below the budget
    waits for finer ones; if there are none, the one that ends nearest leaves. A bundle that saves
    nothing, as a measured cost may have it, leaves only if all others that may leave do so too.

    Args:
        scores: for each group, a score for each of its channels.
        removed: for each group, the channels removed before.
        cost: of the network.
        budget: in the unit of ``cost``.
        limits: how far each group may shrink.
        per_cost: rank bundles by score per saving; else by their mean score.

    Returns:
        For each group, the chosen channels in the order in which they were chosen. If all groups
        are at their limits, the cost may be above the budget.
    """
    chosen: dict[str, list[int]] = {id_: [] for id_ in scores}
    queues = {}
    for id_, values in scores.items():
        left = set(range(len(values))) - set(removed[id_])
        queues[id_] = sorted(left, key=lambda c, values=values: (values[c], c))
    widths = {id_: len(queue) for id_, queue in queues.items()}
    total = cost.total(widths)
    while total > budget:
        candidates = []
        for position, (id_, queue) in enumerate(queues.items()):
            size = limits.bundle(len(queue))
            if limits.allows(len(queue) - size, len(scores[id_])):
                saving = cost.saving(widths, id_, size)
                value = sum(scores[id_][c] for c in queue[:size])
                rank = value / max(saving, 1e-12) if per_cost else value / size
                candidates.append((rank, position, id_, size, saving))
        if not candidates:
            break
        candidates = [c for c in candidates if c[4] > _NOTHING * total] or candidates
        lowest = (1 - TOLERANCE) * budget
        fitting = [c for c in candidates if total - c[4] >= lowest]
        _, _, id_, size, saving = (
            min(fitting) if fitting else min(candidates, key=lambda c: (c[4], *c))
        )
        chosen[id_] += queues[id_][:size]
        del queues[id_][:size]
        widths[id_] -= size
        total = cost.total(widths)
    return chosen


class BudgetRule:
    """Channels leave until the cost is at most a budget; each period takes an equal part.

    Args:
        groups: the prunable parameter groups, from `Graph.param_groups`.
        schedule: when channels leave.
        cost: of the network, as a function of the groups' widths.
        target: the cost to end at, as a share of the whole network's if it is below 1, else in the
            unit of ``cost``.
        limits: how far each group may shrink.
        taylor: gathers the importance, which ranks the channels per unit of cost; None ranks them
            by HESSO's five scores, the lowest first.
        criteria: weights of the five scores; unused with ``taylor``.

    Raises:
        UserError: if the limits keep the network above the budget; the message has the least that
            can be reached.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        schedule: PruningSchedule,
        cost: ChannelCost,
        target: Budget,
        limits: Limits,
        taylor: TaylorSums | None,
        criteria: Mapping[str, float],
    ) -> None:
        self.ids = [group["id"] for group in groups]
        self.schedule, self.cost, self.limits = schedule, cost, limits
        self.key, self.asked = target.key, target.asked
        self.taylor, self.criteria = taylor, dict(criteria)
        self.names = PROXIES if taylor is None else ("taylor",)
        self._is_checked = False
        if not cost.table:  # a resumed run still loads the table that it began with
            self._check_budget()

    @property
    def budget(self) -> float:
        """The cost to end at, in the unit of ``cost``."""
        return self.asked * self.cost.total(self.cost.full) if self.asked < 1 else self.asked

    @property
    def least(self) -> float:
        """The least cost that the limits allow, in the unit of ``cost``."""
        return self.cost.total(self._least_widths())

    def _least_widths(self) -> dict[str, int]:
        return {id_: self.limits.least(self.cost.full[id_]) for id_ in self.ids}

    def observe(self, groups: Sequence[dict[str, Any]]) -> None:
        """Add the step's gradients to the importance.

        Raises:
            UserError: at the first step of a run whose budget is out of reach of a measured cost.
        """
        if not self._is_checked:
            self._check_budget()
        if self.taylor is not None:
            self.taylor.add(groups)

    def satisfied(self, period: int, removed: Sequence[Sequence[int]]) -> bool:
        """Return whether the network already costs no more than the period's budget."""
        return self.cost_without(removed) <= self.budget_of(period)

    def cost_without(self, removed: Sequence[Sequence[int]]) -> float:
        """Return the cost of the network without the channels ``removed`` of each group."""
        widths = {
            id_: self.cost.full[id_] - len(gone)
            for id_, gone in zip(self.ids, removed, strict=True)
        }
        return self.cost.total(widths)

    def score(self, groups: Sequence[dict[str, Any]], moves: Moves) -> Tensor:
        """Return the importance ``(1, N)`` since the last choice, or five proxies ``(5, N)``."""
        if self.taylor is None:
            return five_scores(groups, moves, self.criteria)
        importance = self.taylor.means(groups).unsqueeze(0)
        self.taylor.restart()
        return importance

    def choose(
        self, scores: Sequence[Sequence[float]], removed: Sequence[Sequence[int]], period: int
    ) -> list[list[int]]:
        """Return the channels that leave, by `choose_within`."""
        chosen = choose_within(
            dict(zip(self.ids, scores, strict=True)),
            dict(zip(self.ids, removed, strict=True)),
            self.cost,
            self.budget_of(period),
            self.limits,
            per_cost=self.taylor is not None,
        )
        return list(chosen.values())

    def budget_of(self, period: int) -> float:
        """Return the cost to end ``period`` at: the cost falls by the same amount in each."""
        whole = self.cost.total(self.cost.full)
        return whole + (period + 1) / self.schedule.periods * (self.budget - whole)

    def narrow(self, kept: Mapping[str, Tensor]) -> None:
        """Forget the importance of channels that left the network."""
        if self.taylor is not None:
            self.taylor.narrow(kept)

    def settings(self) -> dict[str, Any]:
        """Return importance, divisor, floor and budget; of a measured cost the budget as asked."""
        return {
            "importance": self.names[0] if self.taylor else dict(self.criteria),
            "group_divisible": self.limits.divisible,
            "min_channels_share": self.limits.least_share,
            "budget": self.asked if self.cost.table else self.budget,
            "unit": self.cost.unit,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the importance gathered since the last choice, and the table of a measured cost.

        So a resumed run goes on with the table that it began with, also on another machine.
        """
        state = {} if self.taylor is None else self.taylor.state_dict()
        return state | ({"table": self.cost.table} if self.cost.table else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        if self.taylor is not None:
            self.taylor.load_state_dict(state)
        if self.cost.table and self.cost.table != state["table"]:
            log.info("the latencies on file are not those this run began with: it keeps the latter")
            self.cost = self.cost.from_table(state["table"])

    def _check_budget(self) -> None:
        """Refuse a budget below the least cost, and warn of one that removes nothing."""
        self._is_checked = True
        reached, whole = self.least, self.cost.total(self.cost.full)
        asked = f"{self.key} {self.asked:g} means {_figure(self.budget)} {self.cost.unit}"
        if self.asked >= 1:
            asked += " (a number below 1 is a share)"
        if reached > self.budget:
            layer, most = self.cost.most_expensive(self._least_widths())
            raise UserError(
                f"{asked}, but with group_divisible {self.limits.divisible} and min_channels_share "
                f"{self.limits.least_share} the network needs at least {_figure(reached)} of "
                f"{_figure(whole)}, a share of {math.ceil(1000 * reached / whole) / 1000:g}; "
                f"{_figure(most)} of them are {layer}'s: raise the budget, or lower these keys"
            )
        if whole <= self.budget:
            log.warning(
                "%s, and the dense network has %s: no channel leaves", asked, _figure(whole)
            )


def _figure(value: float) -> str:
    """Write a cost: MACs and parameters to the last, milliseconds to three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
