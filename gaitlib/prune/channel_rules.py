"""Which channels leave in each period of a pruning run: those of the lowest scores.

Channels leave until the network costs no more than a budget. A sparsity is such a budget too: it
counts channels.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gaitlib.prune.channel_cost import ChannelCost, product_cost
from gaitlib.prune.channel_groups import Segment
from gaitlib.prune.hesso_settings import Budget, HessoSettings
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

#: A choice ends at most this share below its budget, unless every bundle of channels is coarser.
TOLERANCE = 0.01
#: A saving of at most this share of the cost is rounding.
_NOTHING = 1e-9
_MAX_SPARSITY = 0.999  # the largest share of channels to remove, as in only_train_once


class ChannelRule:
    """How far the network shrinks in each period, and which channels leave for that.

    Args:
        settings: the target, the schedule, the divisor and what ranks the channels.
        cost: of the network, as a function of its prunable groups' widths.

    Attributes:
        budget: the cost to end at, in the unit of ``cost``.
        least_share: share of its channels that each group keeps at least.
    """

    budget: float
    tolerance: ClassVar[float]

    def __init__(self, settings: HessoSettings, cost: ChannelCost) -> None:
        self.settings, self.target, self.cost = settings, settings.target, cost
        self.divisible, limited = settings.group_divisible, isinstance(self.target, Budget)
        self.least_share = self.target.min_channels_share if limited else 0.0

    def budget_of(self, period: int) -> float:
        """Return the cost to end ``period`` (from 0) at."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse a target that cannot be reached.

        Raises:
            UserError: with the least that can be reached.
        """
        raise NotImplementedError

    def bundle(self, width: int, full: int) -> int:
        """Return how many channels of a group of ``full`` leave together at ``width``; 0: none.

        Each group keeps a multiple of the divisor m, and its least share. One of fewer than m
        channels keeps all.
        """
        size = width % self.divisible or self.divisible
        least = max(self.divisible, math.ceil(self.least_share * full - 1e-9))
        return size if width - size >= least else 0

    def least_widths(self) -> dict[str, int]:
        """Return the least width of each group, by id."""
        widths = dict(self.cost.full)
        for id_, full in self.cost.full.items():
            while size := self.bundle(widths[id_], full):
                widths[id_] -= size
        return widths

    def cost_without(self, removed: Mapping[str, Sequence[int]]) -> float:
        """Return the cost of the network without the channels ``removed`` of each group."""
        return self.cost.total({i: n - len(removed[i]) for i, n in self.cost.full.items()})

    def choose(
        self,
        scores: Mapping[str, Sequence[float]],
        removed: Mapping[str, Sequence[int]],
        period: int,
    ) -> dict[str, list[int]]:
        """Choose channels until the network costs at most the budget of ``period``.

        Bundles leave one at a time, the lowest first: by score per saving with the Taylor
        importance, else by their mean score. What a bundle saves is computed anew after each, at
        the widths of the moment. A bundle that would end more than ``tolerance`` below the budget
        waits for finer ones; if there are none, the one that ends nearest leaves, or none at
        tolerance 0. A bundle that saves nothing, as a measured cost may have it, leaves only if all
        others that may leave do so too. Ties are broken by group, then by channel.

        Args:
            scores: for each group, a score for each of its channels.
            removed: for each group, the channels removed before.
            period: from 0.

        Returns:
            For each group, the chosen channels in the order in which they were chosen. If all
            groups are at their limits, the cost may be above the budget.
        """
        chosen: dict[str, list[int]] = {id_: [] for id_ in scores}
        queues = {}  # the remaining channels of each group, lowest score first
        for id_, values in scores.items():
            left = set(range(len(values))) - set(removed[id_])
            queues[id_] = sorted(left, key=lambda c, values=values: (values[c], c))
        widths = {id_: len(queue) for id_, queue in queues.items()}
        budget = self.budget_of(period)
        while (total := self.cost.total(widths)) > budget:
            candidates = []
            for position, (id_, queue) in enumerate(queues.items()):
                if size := self.bundle(len(queue), len(scores[id_])):
                    saving = self.cost.saving(widths, id_, size)
                    price = max(saving, 1e-12) if self.settings.by_taylor else size
                    rank = sum(scores[id_][c] for c in queue[:size]) / price
                    candidates.append((rank, position, id_, size, saving))
            candidates = [c for c in candidates if c[-1] > _NOTHING * total] or candidates
            fitting = [c for c in candidates if total - c[-1] >= (1 - self.tolerance) * budget]
            if not fitting and self.tolerance:
                fitting = sorted(candidates, key=lambda c: (c[-1], *c))[:1]
            if not fitting:
                break
            _, _, id_, size, _ = min(fitting)
            chosen[id_] += queues[id_][:size]
            del queues[id_][:size]
            widths[id_] -= size
        return chosen


class SparsityRule(ChannelRule):
    """HESSO's own rule: K channels leave, those of the lowest five scores.

    Where bundles are coarser than what is left of K, up to ``group_divisible - 1`` channels fewer.

    Args:
        groups: the prunable parameter groups, from `Graph.param_groups`.
        settings: with the sparsity.

    Attributes:
        count: K.
    """

    tolerance = 0.0

    def __init__(self, groups: Sequence[Mapping[str, Any]], settings: HessoSettings) -> None:
        full = {group["id"]: group["num_groups"] for group in groups}
        dims = {id_: ((Segment(id_, count),),) for id_, count in full.items()}
        super().__init__(settings, product_cost("channels", full, full, dims))
        self.channels = sum(full.values())
        self.count = int(self.channels * min(self.target.share, _MAX_SPARSITY))
        self.budget = self.channels - self.count

    def budget_of(self, period: int) -> float:
        """Return how many channels stay after ``period``."""
        return self.channels - self.settings.schedule.removed_by(period, self.count)

    def check(self) -> None:
        """Refuse a target that keeps no channel of a group, or warn if that is by the divisor."""
        least = self.least_widths()
        most = self.channels - sum(least.values())
        if self.count > most:
            message = (
                f"target_group_sparsity asks for {self.count} of {self.channels} channels, but each"
                f" of {len(least)} prunable groups keeps {self.divisible}, so at most {most} can "
                "leave"
            )
            if self.divisible == 1:
                raise UserError(message)
            log.warning(message)


class BudgetRule(ChannelRule):
    """Channels leave until the cost is at most a budget; each period takes an equal part."""

    tolerance = TOLERANCE

    @property
    def budget(self) -> float:
        """The cost to end at, in the unit of ``cost``."""
        asked = self.target.asked
        return asked * self.cost.total(self.cost.full) if asked < 1 else asked

    def budget_of(self, period: int) -> float:
        """Return the cost to end ``period`` at: the cost falls by the same amount in each."""
        whole = self.cost.total(self.cost.full)
        return whole + (period + 1) / self.settings.schedule.periods * (self.budget - whole)

    def check(self) -> None:
        """Refuse a budget below the least cost, and warn of one that removes nothing."""
        asked, least = self.target.asked, self.least_widths()
        reached, whole = self.cost.total(least), self.cost.total(self.cost.full)
        said = f"{self.target.key} {asked:g} means {figure(self.budget)} {self.cost.unit}"
        if asked >= 1:
            said += " (a number below 1 is a share)"
        if reached > self.budget:
            layer, most = self.cost.most_expensive(least)
            raise UserError(
                f"{said}, but with group_divisible {self.divisible} and min_channels_share "
                f"{self.least_share} the network needs at least {figure(reached)} of "
                f"{figure(whole)}, a share of {math.ceil(1000 * reached / whole) / 1000:g}; "
                f"{figure(most)} of them are in {layer}: raise the budget, or lower these keys"
            )
        if whole <= self.budget:
            log.warning("%s, and the dense network has %s: no channel leaves", said, figure(whole))


def figure(value: float) -> str:
    """Write a cost: MACs and parameters to the last, milliseconds to three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
