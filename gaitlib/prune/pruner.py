"""Choose which channels leave, and when: HESSO's part around its base optimizer's step.

A `Pruner` counts steps and chooses channels at the start of each period. It records which channels
are redundant (shrinking), which are pruned (kept at zero) and which are left, because pruned ones
may leave the network. It does not move weights, so that an optimizer with another shrinking rule,
such as GETA's, can use it.

A channel's number never changes; its place in a tensor does when others leave.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gaitlib.prune.channel_rules import ChannelRule, Moves
from gaitlib.prune.choices import Choice, importance_table
from gaitlib.prune.schedules import PruningSchedule
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)


class Pruner:
    """The pruning state of one run.

    Args:
        groups: the prunable parameter groups, from `Graph.param_groups`.
        schedule: when channels leave.
        rule: which channels leave.

    Attributes:
        steps: optimizer steps so far.
        period: number of pruning periods that have begun.
        channels: the number of channels of each group at the start, by group id.
        redundant: channels that are shrinking, by group id.
        pruned: channels that are removed, by group id.
        left: channels that the network still has, by group id, in the order of their places.
        choices: every choice so far.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], schedule: PruningSchedule, rule: ChannelRule
    ) -> None:
        self.groups = list(groups)
        self.schedule = schedule
        self.rule = rule
        self.steps = 0
        self.period = 0
        self.channels: dict[str, int] = {g["id"]: g["num_groups"] for g in self.groups}
        self.redundant: dict[str, list[int]] = {id_: [] for id_ in self.channels}
        self.pruned: dict[str, list[int]] = {id_: [] for id_ in self.channels}
        self.left: dict[str, list[int]] = self._all_channels()
        self.choices: list[Choice] = []
        self._indices: dict[str, dict[str, Tensor]] = {}

    def begin_step(self, moves: Moves) -> None:
        """Count a step and, if a period begins with it, choose channels.

        Args:
            moves: returns, for a parameter group, the base optimizer's next move of each of its
                tensors (None without a gradient). Called only when channels are chosen.
        """
        self.steps += 1
        if self.period < self.schedule.periods:  # a choice is still to come
            self.rule.observe(self.groups)
        due, inside = self.schedule.due(self.steps), self.schedule.shrinks(self.steps)
        if self.num_redundant and not (inside and due == self.period):
            self._remove()  # because the last step of their period was skipped
        if self.period < due and (inside or self.steps > self.schedule.last):
            self._choose(due - 1, moves)

    def end_step(self) -> None:
        """Count redundant channels as pruned if a period ends with this step."""
        if self.num_redundant and self.factor == 0.0:
            self._remove()

    @property
    def factor(self) -> float:
        """The factor of the redundant channels in this step; 0 in the last step of a period."""
        return self.schedule.factor(self.steps)

    @property
    def num_redundant(self) -> int:
        """The number of channels that are shrinking, over all groups."""
        return sum(map(len, self.redundant.values()))

    @property
    def num_pruned(self) -> int:
        """The number of channels that are removed, over all groups."""
        return sum(map(len, self.pruned.values()))

    def indices(self, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the places of ``group``'s ``redundant`` and ``pruned`` channels, by these names.

        The values are int64 tensors on the group's device, cached until the next choice. A name
        without channels in the network is missing.
        """
        id_, device = group["id"], group["params"][0].device
        if id_ not in self._indices:
            places = {channel: place for place, channel in enumerate(self.left[id_])}
            self._indices[id_] = {
                name: torch.tensor(found, dtype=torch.long, device=device)
                for name, lists in (("redundant", self.redundant), ("pruned", self.pruned))
                if (found := [places[channel] for channel in lists[id_] if channel in places])
            }
        return self._indices[id_]

    def without_pruned(self) -> dict[str, list[int]]:
        """Return ``left`` without the channels that are removed."""
        gone = {id_: set(channels) for id_, channels in self.pruned.items()}
        return {id_: [c for c in left if c not in gone[id_]] for id_, left in self.left.items()}

    def narrow(self, left: Mapping[str, Sequence[int]], kept: Mapping[str, Tensor]) -> None:
        """Follow channels that leave the network.

        Args:
            left: the channels that stay, by group id.
            kept: their present places, for each group that loses channels.
        """
        self.left = _copy(left)
        self.rule.narrow(kept)
        self._indices.clear()

    def importance(self) -> pd.DataFrame:
        """Return every score of every choice, one row per channel: `importance_table`."""
        return importance_table(self.choices, self.channels)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as tensors and plain values."""
        return {
            "settings": self._settings(),
            "steps": self.steps,
            "period": self.period,
            "redundant": _copy(self.redundant),
            "pruned": _copy(self.pruned),
            "left": _copy(self.left),
            "choices": [choice.as_dict() for choice in self.choices],
            "rule": self.rule.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ``UserError``, with the differences, if ``state`` is of another schedule."""
        differing = {
            name: (state["settings"].get(name), value)
            for name, value in self._settings().items()
            if state["settings"].get(name) != value
        }
        if differing:
            raise UserError(f"the state is of another schedule, (saved, here): {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; see `check_state`. The groups are as wide as its are."""
        self.check_state(state)
        self.steps, self.period = state["steps"], state["period"]
        self.redundant, self.pruned = _copy(state["redundant"]), _copy(state["pruned"])
        self.left = self.left_in(state)
        self.choices = [Choice(**c | {"scores": c["scores"].cpu()}) for c in state["choices"]]
        self.rule.load_state_dict(state.get("rule", {}))  # earlier versions saved none
        self._indices.clear()

    def left_in(self, state: Mapping[str, Any]) -> dict[str, list[int]]:
        """Return the channels that the network of ``state`` has; earlier versions took none out."""
        return _copy(state.get("left") or self._all_channels())

    def _all_channels(self) -> dict[str, list[int]]:
        return {id_: list(range(count)) for id_, count in self.channels.items()}

    def _settings(self) -> dict[str, Any]:
        return self.rule.settings() | {
            "start_pruning_step": self.schedule.start,
            "pruning_steps": self.schedule.steps,
            "pruning_periods": self.schedule.periods,
        }

    def _choose(self, period: int, moves: Moves) -> None:
        """Let the rule choose this period's channels; they become redundant."""
        self.period = period + 1
        removed = [self.pruned[g["id"]] for g in self.groups]
        if self.rule.satisfied(period, removed):
            return
        found = from_rank_0(self.rule.score(self.groups, moves)).cpu()
        if not found.isfinite().all():
            raise UserError(f"importance scores at step {self.steps} are not finite")
        scores = self._of_all_channels(found)  # (rows, N)
        totals = scores.sum(dim=0).split(list(self.channels.values()))
        chosen = self.rule.choose([t.tolist() for t in totals], removed, period)
        self.redundant = {
            g["id"]: sorted(channels) for g, channels in zip(self.groups, chosen, strict=True)
        }
        self._indices.clear()
        log.info("step %d: %d channels become redundant", self.steps, self.num_redundant)
        self.choices.append(
            Choice(
                self.steps,
                period,
                scores,
                _copy(self.pruned),
                _copy(self.redundant),
                self.rule.names,
            )
        )

    def _of_all_channels(self, scores: Tensor) -> Tensor:
        """Return scores of the channels left as scores of all; those of the others are 0."""
        places, first = [], 0
        for id_, count in self.channels.items():
            places += [first + channel for channel in self.left[id_]]
            first += count
        return scores.new_zeros(len(scores), first).index_copy_(1, torch.tensor(places), scores)

    def _remove(self) -> None:
        for id_, channels in self.redundant.items():
            self.pruned[id_] = sorted(self.pruned[id_] + channels)
            self.redundant[id_] = []
        self._indices.clear()


def _copy(lists: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {id_: list(channels) for id_, channels in lists.items()}
