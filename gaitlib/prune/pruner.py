"""Choose which channels leave, and when: HESSO's part around its base optimizer's step.

A `Pruner` counts steps and chooses channels at the start of each period. It records which channels
are redundant (shrinking), which are pruned (kept at zero) and which are left, because pruned ones
may leave the network. It does not move weights, so that an optimizer with another shrinking rule,
such as GETA's, can use it.

A channel's number never changes; its place in a tensor does when others leave.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gaitlib.prune.channel_groups import group_tensors
from gaitlib.prune.channel_rules import ChannelRule
from gaitlib.prune.importance import PROXIES, Moves, five_scores
from gaitlib.prune.taylor import TaylorSums
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """One choice of channels.

    Attributes:
        step: optimizer step at which it was made, from 1.
        period: pruning period, from 0.
        scores: of all channels, float32 on the CPU, ``(rows, N)``; their sum ranks the channels.
        pruned: channels removed before, by group id.
        chosen: channels chosen now, by group id.
    """

    step: int
    period: int
    scores: Tensor
    pruned: dict[str, list[int]]
    chosen: dict[str, list[int]]


class Pruner:
    """The pruning state of one run.

    Args:
        groups: parameter groups, from `Graph.param_groups`.
        rule: which channels leave; its settings have the schedule and the weights of the scores.
        taylor: gathers the importance, which ranks the channels; None ranks them by the five
            scores.

    Raises:
        UserError: if the target cannot be reached.

    Attributes:
        steps: optimizer steps so far.
        period: number of pruning periods that have begun.
        names: names of the rows of scores, whose sum ranks the channels.
        all_groups: the parameter groups.
        channels: the number of channels of each group at the start, by group id.
        redundant: channels that are shrinking, by group id.
        pruned: channels that are removed, by group id.
        left: channels that the network still has, by group id, in the order of their places.
        choices: every choice so far.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], rule: ChannelRule, taylor: TaylorSums | None
    ) -> None:
        self.all_groups, self.rule, self.schedule = list(groups), rule, rule.settings.schedule
        self.taylor, self.criteria = taylor, asdict(rule.settings.scores)
        self.names = ("taylor",) if taylor else PROXIES
        self.steps = self.period = 0
        self.channels: dict[str, int] = {g["id"]: g["num_groups"] for g in self.groups}
        # these three are replaced as a whole, never changed: records and states share them
        self.redundant: dict[str, list[int]] = {id_: [] for id_ in self.channels}
        self.pruned: dict[str, list[int]] = {id_: [] for id_ in self.channels}
        self.left = {id_: list(range(count)) for id_, count in self.channels.items()}
        self.choices: list[Choice] = []
        self._indices: dict[str, dict[str, Tensor]] = {}
        #: layers of these groups that have had no gradient so far
        self._idle = {_layer(name) for group in self.groups for name in group["p_names"]}
        self._is_checked = not rule.cost.table
        if self._is_checked:  # else a resumed run still loads the table that it began with
            rule.check()

    def begin_step(self, moves: Moves) -> None:
        """Count a step and, if a period begins with it, choose channels.

        Args:
            moves: called only when channels are chosen.

        Raises:
            UserError: at the first step of a run whose budget is out of reach of a measured cost;
                at the first choice, if a layer has had no gradient; for scores that are not
                finite.
        """
        self.steps += 1
        self._idle -= {
            _layer(name)
            for group in (self.groups if self._idle else ())
            for name, param in zip(group["p_names"], group["params"], strict=True)
            if param.grad is not None
        }
        if not self._is_checked:
            self.rule.check()
            self._is_checked = True
        if self.taylor is not None and self.period < self.schedule.periods:
            self.taylor.add(self.groups, self.tensors)  # for a choice that is still to come
        due, inside = self.schedule.due(self.steps), self.schedule.shrinks(self.steps)
        if not (inside and due == self.period):
            self._remove()  # because the last step of their period was skipped
        if self.period < due and (inside or self.steps > self.schedule.last):
            self._choose(due - 1, moves)

    def end_step(self) -> None:
        """Count redundant channels as pruned if a period ends with this step."""
        if self.factor == 0.0:
            self._remove()

    @property
    def factor(self) -> float:
        """The factor of the redundant channels in this step; 0 in the last step of a period."""
        return self.schedule.factor(self.steps)

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

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The prunable parameter groups."""
        return [group for group in self.all_groups if group["is_prunable"]]

    def tensors(self, group: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, int, int]]:
        """Return all tensors that have a parameter group's channels; see `group_tensors`."""
        return group_tensors(group, self.all_groups, self.left)

    def without_pruned(self) -> dict[str, list[int]]:
        """Return ``left`` without the channels that are removed."""
        gone = {id_: set(channels) for id_, channels in self.pruned.items()}
        return {id_: [c for c in left if c not in gone[id_]] for id_, left in self.left.items()}

    def narrow(self, left: dict[str, list[int]], kept: Mapping[str, Tensor]) -> None:
        """Follow channels that leave the network.

        Args:
            left: the channels that stay, by group id.
            kept: their present places, for each group that loses channels.
        """
        self.left = left
        if self.taylor is not None:
            self.taylor.narrow(kept)
        self._indices.clear()

    def importance(self) -> "pd.DataFrame":
        """Return every score of every choice, one row per choice and channel.

        Returns:
            Columns ``step``, ``period``, ``group`` (id), ``channel``, ``score`` (the sum of the
            next columns), the rows of `Choice.scores` by name, and ``state``: ``kept``, ``chosen``
            now or ``pruned`` before.
        """
        import pandas as pd  # takes long to import, and only this table needs it

        columns = ["step", "period", "group", "channel", "score", *self.names, "state"]
        places = [(id_, c) for id_, count in self.channels.items() for c in range(count)]
        tables = [pd.DataFrame(columns=columns)]
        for choice in self.choices:
            table = pd.DataFrame(places, columns=["group", "channel"])
            table["step"], table["period"] = choice.step, choice.period
            parts = choice.scores.split(list(self.channels.values()), dim=1)
            table["score"] = torch.cat([part.sum(dim=0) for part in parts]).numpy()
            table[list(self.names)] = choice.scores.T.numpy()
            state = dict.fromkeys(places, "kept")
            for name, lists in (("pruned", choice.pruned), ("chosen", choice.chosen)):
                state |= {(id_, c): name for id_, gone in lists.items() for c in gone}
            table["state"] = state.values()
            tables.append(table[columns])
        return pd.concat(tables[1:] or tables, ignore_index=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as tensors and plain values.

        With the table of a measured cost, so that a resumed run goes on with the one that it began
        with, also on another machine.
        """
        return {
            "settings": self._settings(),
            "steps": self.steps,
            "period": self.period,
            "redundant": self.redundant,
            "pruned": self.pruned,
            "left": self.left,
            "choices": [asdict(choice) for choice in self.choices],
            "taylor": self.taylor.state_dict() if self.taylor else {},
            "table": self.rule.cost.table,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ``UserError``, with the differences, if ``state`` is of other settings."""
        saved = state["settings"]
        here = self._settings()
        if differing := {k: (saved.get(k), v) for k, v in here.items() if saved.get(k) != v}:
            raise UserError(f"the state is of other settings, (saved, here): {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; see `check_state`. The groups are as wide as its are."""
        self.steps, self.period = state["steps"], state["period"]
        self.redundant, self.pruned = state["redundant"], state["pruned"]
        self.left = state["left"]
        self.choices = [Choice(**c | {"scores": c["scores"].cpu()}) for c in state["choices"]]
        if self.taylor is not None:
            self.taylor.load_state_dict(state["taylor"])
        if self.rule.cost.table != state["table"]:
            log.info("the latencies on file are not those this run began with: it keeps the latter")
            self.rule.cost = self.rule.cost.from_table(state["table"])
        self._indices.clear()

    def _settings(self) -> dict[str, Any]:
        """Return what a resumed run must share; of a measured cost the budget as asked."""
        rule = self.rule
        return {
            "variant": rule.settings.variant,
            "importance": "taylor" if self.taylor else self.criteria,
            "group_divisible": rule.divisible,
            "min_channels_share": rule.least_share,
            "budget": rule.settings.target.asked if rule.cost.table else rule.budget,
            "unit": rule.cost.unit,
            "start_pruning_step": self.schedule.start,
            "pruning_steps": self.schedule.steps,
            "pruning_periods": self.schedule.periods,
        }

    def _choose(self, period: int, moves: Moves) -> None:
        """Let the rule choose this period's channels; they become redundant."""
        self.period = period + 1
        if self.rule.cost_without(self.pruned) <= self.rule.budget_of(period):
            return
        if self._idle and not self.choices:
            raise UserError(
                f"channels are to be chosen at step {self.steps}, and so far there was no "
                f"gradient of {', '.join(sorted(self._idle))}: call loss.backward() before step(), "
                "train the traced network itself and no copy, trace again after you replace a "
                "module, or freeze what does not learn, requires_grad_(False)"
            )
        if self.taylor is None:
            found = five_scores(self.groups, moves, self.criteria)
        else:
            found = self.taylor.means(self.groups).unsqueeze(0)
            self.taylor.restart()
        found = from_rank_0(found).cpu()
        if not found.isfinite().all():
            raise UserError(
                f"importance scores at step {self.steps} are not finite, because a gradient is NaN "
                "or infinite: lower lr, or use a GradScaler and call skip_step() when it skips one"
            )
        places, first = [], 0  # of the channels left, among all; those of the others score 0
        for id_, count in self.channels.items():
            places += [first + channel for channel in self.left[id_]]
            first += count
        scores = found.new_zeros(len(found), first).index_copy_(1, torch.tensor(places), found)
        totals = scores.sum(dim=0).split(list(self.channels.values()))
        by_group = {id_: total.tolist() for id_, total in zip(self.channels, totals, strict=True)}
        chosen = self.rule.choose(by_group, self.pruned, period)
        self.redundant = {id_: sorted(channels) for id_, channels in chosen.items()}
        self._indices.clear()
        count = sum(map(len, chosen.values()))
        log.info("step %d: %d channels become redundant", self.steps, count)
        self.choices.append(Choice(self.steps, period, scores, self.pruned, self.redundant))

    def _remove(self) -> None:
        """Count redundant channels, if there are any, as pruned."""
        if any(self.redundant.values()):
            self.pruned = {i: sorted(gone + self.redundant[i]) for i, gone in self.pruned.items()}
            self.redundant = {id_: [] for id_ in self.channels}
            self._indices.clear()


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name
