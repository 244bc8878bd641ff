"""Choose which channels leave, and when: HESSO's part around its base optimizer's step.

A `Pruner` counts steps and chooses channels at the start of each period. It records which channels
are redundant (shrinking) and which are pruned (kept at zero). It does not move weights, so that
an optimizer with another shrinking rule, such as GETA's, can use it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gaitlib.config.schedules import PruningSchedule
from gaitlib.prune.channel_rules import ChannelRule, Moves
from gaitlib.prune.choices import Choice, importance_table
from gaitlib.system.distributed import from_rank_0

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
        redundant: channels that are shrinking, by group id.
        pruned: channels that are removed, by group id.
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
        self.redundant: dict[str, list[int]] = {g["id"]: [] for g in self.groups}
        self.pruned: dict[str, list[int]] = {g["id"]: [] for g in self.groups}
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
        """Return the channels of ``group`` that are ``redundant`` or ``pruned``, by these names.

        The values are int64 tensors on the group's device, cached until the next choice. A name
        without channels is missing.
        """
        id_, device = group["id"], group["params"][0].device
        if id_ not in self._indices:
            self._indices[id_] = {
                name: torch.tensor(lists[id_], dtype=torch.long, device=device)
                for name, lists in (("redundant", self.redundant), ("pruned", self.pruned))
                if lists[id_]
            }
        return self._indices[id_]

    def importance(self) -> pd.DataFrame:
        """Return every score of every choice, one row per channel: `importance_table`."""
        return importance_table(self.choices, {g["id"]: g["num_groups"] for g in self.groups})

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as tensors and plain values."""
        return {
            "settings": self._settings(),
            "steps": self.steps,
            "period": self.period,
            "redundant": _copy(self.redundant),
            "pruned": _copy(self.pruned),
            "choices": [choice.as_dict() for choice in self.choices],
            "rule": self.rule.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ``ValueError``, with the differences, if ``state`` is of another schedule."""
        differing = {
            name: (state["settings"].get(name), value)
            for name, value in self._settings().items()
            if state["settings"].get(name) != value
        }
        if differing:
            raise ValueError(f"the state is of another schedule, (saved, here): {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; see `check_state`."""
        self.check_state(state)
        self.steps, self.period = state["steps"], state["period"]
        self.redundant, self.pruned = _copy(state["redundant"]), _copy(state["pruned"])
        self.choices = [Choice(**c | {"scores": c["scores"].cpu()}) for c in state["choices"]]
        self.rule.load_state_dict(state.get("rule", {}))  # earlier versions saved none
        self._indices.clear()

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
        scores = from_rank_0(self.rule.score(self.groups, moves)).cpu()  # (rows, N)
        if not scores.isfinite().all():
            raise FloatingPointError(f"importance scores at step {self.steps} are not finite")
        totals = scores.sum(dim=0).split([g["num_groups"] for g in self.groups])
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

    def _remove(self) -> None:
        for id_, channels in self.redundant.items():
            self.pruned[id_] = sorted(self.pruned[id_] + channels)
            self.redundant[id_] = []
        self._indices.clear()


def _copy(lists: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {id_: list(channels) for id_, channels in lists.items()}
