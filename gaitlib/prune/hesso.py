"""HESSO: an optimizer that removes the least important channels while it trains.

Hybrid Efficient Structured Sparse Optimizer (Chen et al., https://arxiv.org/abs/2409.09085, part of
GETA, https://arxiv.org/abs/2502.16638). Between its pruning periods it is torch's SGD, Adam or
AdamW. In each period it chooses the channels with the lowest scores and shrinks them to zero step
by step. Then it keeps them at zero, or takes them out of the network, so that later steps cost
less.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gaitlib.prune.base_optimizer import build_base, next_move
from gaitlib.prune.channel_cost import ChannelCost, macs_cost, params_cost
from gaitlib.prune.channel_groups import channel_rows
from gaitlib.prune.channel_rules import BudgetRule, SparsityRule, figure
from gaitlib.prune.graph import Graph, require_graph
from gaitlib.prune.hesso_settings import Budget, HessoSettings, Sparsity
from gaitlib.prune.layer_timing import measure_layers
from gaitlib.prune.pruner import Pruner
from gaitlib.prune.removal import Removal, removal_of
from gaitlib.prune.taylor import TaylorSums, scored_tensors
from gaitlib.system.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

#: The cost that each budget limits, by its key; a latency is measured, so it has to be given.
COSTS = {"target_macs": macs_cost, "target_params": params_cost}


class HESSO(torch.optim.Optimizer):
    """Train and prune in one run.

    The groups come from `Graph.param_groups`. A torch optimizer, which does the ordinary step,
    shares their dicts and the state: a learning-rate schedule, a ``GradScaler`` and ``zero_grad``
    act here as on that optimizer, and ``optimizer.state`` holds ``momentum_buffer`` or ``exp_avg``.

    A step does this (steps count from 1, see `PruningSchedule`):

    1. At the first step of a period it scores all channels, from the weights before the step and
       the base optimizer's next move. The period's share of
       K = ``int(N * min(target_group_sparsity, 0.999))`` channels becomes redundant.
    2. The base optimizer moves all weights, with its weight decay.
    3. Redundant channels are multiplied by (D - t - 1) / (D - t).
    4. Removed channels are set to zero again. At the end of their period they leave the network, if
       ``removal`` says so: its parameters are new and smaller tensors then.

    A step waits for the device only when it chooses channels, once per period.

    With ``variant="sgd"`` and ``group_divisible=1`` this is, step for step, only_train_once's HESSO
    on groups without duplicates. It differs on purpose in the following:

    * Adam and AdamW are torch's. The package starts both moments un-scaled and then corrects for
      a bias they do not have, which makes its steps 0.15 to 0.8 of ``lr`` for the first 1000.
    * A choice first drops the channels removed before, and is then cut to its quota by score; the
      package cuts by index. Each group keeps one channel, and other groups take its share of the
      quota, so that exactly K channels leave. See `SparsityRule` for ``group_divisible``.
    * ``state_dict`` is complete: a run resumed inside a period continues bit for bit.
    * A channel shrinks in all its tensors, with or without a gradient in this step.
    * In a distributed job all processes use rank 0's scores.

    Args:
        groups: parameter groups from `Graph.param_groups` (copied).
        settings: the base optimizer, the schedule and the target. The learning rate of a step is
            ``param_groups[i]["lr"]``, which starts at ``settings.lr``.
        budget: what the network costs, from `network_budget`; needed if ``settings`` have a budget.
        removal: what becomes of removed channels; None keeps their own numbers at zero and leaves
            the weights that read them alone, as only_train_once does.

    Raises:
        UserError: if the groups have too few channels for the target, or a budget is out of reach;
            the message has the numbers.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        settings: HessoSettings,
        budget: "NetworkBudget | None" = None,
        removal: Removal | None = None,
    ) -> None:
        copies = [dict(group) for group in groups]
        self.variant = settings.variant
        self._base = build_base(copies, settings)
        super().__init__(copies, dict(self._base.defaults))
        prunable = [group for group in self.param_groups if group["is_prunable"]]
        if not prunable and settings.target != Sparsity(0.0):
            raise UserError(
                f"{settings.target.said}, but no channel may leave: graph.table() says why"
            )
        if isinstance(settings.target, Sparsity):
            rule = SparsityRule(prunable, settings)
        elif budget is not None:
            rule = BudgetRule(settings, budget.cost)
        else:
            raise UserError(f"{settings.target.key} needs the cost of the network: network_budget")
        taylor = TaylorSums(budget.scored) if settings.by_taylor else None
        self.pruner, self.removal = Pruner(self.param_groups, rule, taylor), removal
        self.num_channels = sum(self.pruner.channels.values())
        self._share_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the value of ``closure``, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        before = self.pruner.num_pruned
        self.pruner.begin_step(self._moves)
        self._update()
        self.pruner.end_step()
        if self.removal is not None and self.pruner.num_pruned > before:
            if self.removal.narrows:
                self._narrow(self.pruner.without_pruned())
            else:
                self.removal.clear(self.pruner.pruned, self.param_groups, self.state)
        self._end_step()
        return loss

    def _update(self) -> None:
        """Move the weights: take the base optimizer's step, then shrink channels."""
        self._base.step()
        for group in self.pruner.groups:
            self._shrink(group)

    def _end_step(self) -> None:
        """Do what follows when channels have left; nothing here."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group while the optimizer is built; refuse one later, which no graph knows."""
        if hasattr(self, "pruner"):
            raise UserError(
                "this optimizer trains what its graph holds: give other parameters an optimizer of "
                "their own, or put their module into the network before gl.trace"
            )
        super().add_param_group(param_group)

    def skip_step(self) -> None:
        """Count a step that did not run, for example because a gradient was infinite.

        Without this call the pruning schedule falls behind a learning-rate schedule that counts
        iterations. If the step would have chosen or removed channels, the next step does so.
        """
        self.pruner.steps += 1

    def group_sparsity(self) -> float:
        """Measure the share of channels that are exactly zero or gone, of those that may leave."""
        kept = 0
        for group in self.pruner.groups:
            count, zero = group["num_groups"], []
            for _, tensor, dim, start in self.pruner.tensors(group):
                rows = channel_rows(tensor.detach().narrow(dim, start, count), dim)
                zero.append((rows == 0).all(dim=1))
            kept += count - torch.stack(zero).all(dim=0).sum()
        return (self.num_channels - int(kept)) / max(self.num_channels, 1)

    def budget(self) -> dict[str, Any] | None:
        """Return what was asked for and what is left; None without a budget.

        Keys:
            key, asked: of the section, for example ``target_macs`` and 0.25.
            limit: the cost that ``asked`` means, in ``unit``.
            reached: the cost without the channels removed so far.
            dense: the cost of the whole network.
            unit: for example ``MACs per frame``.
        """
        rule = self.pruner.rule
        if not isinstance(rule, BudgetRule):
            return None
        costs = {
            "limit": rule.budget,
            "reached": rule.cost_without(self.pruner.pruned),
            "dense": rule.cost.total(rule.cost.full),
        }
        if not rule.cost.table:  # MACs and parameters are counted
            costs = {name: math.floor(cost + 1e-3) for name, cost in costs.items()}
        return {"key": rule.target.key, "asked": rule.target.asked, **costs, "unit": rule.cost.unit}

    def unfinished(self) -> str:
        """Say what is still to be removed; empty when pruning has ended, or reached its target."""
        rule, last = self.pruner.rule, self.pruner.schedule.last
        reached = rule.cost_without(self.pruner.pruned)
        if self.num_steps >= last or reached <= rule.budget:
            return ""
        return (
            f"{rule.target.said}, {figure(rule.budget)} {rule.cost.unit}, and the network has "
            f"{figure(reached)}: pruning ends at step {last}, and this is {self.num_steps}"
        )

    @property
    def cost_share(self) -> float | None:
        """What the network costs without its removed channels, of the whole; None if no budget."""
        budget = self.budget()
        return None if budget is None else budget["reached"] / budget["dense"]

    @property
    def target_share(self) -> float:
        """Where pruning ends: a share of the network's cost, or of the prunable channels."""
        budget = self.budget()
        if budget is None:
            return self.pruner.rule.count / max(self.num_channels, 1)
        return budget["limit"] / budget["dense"]

    @property
    def num_steps(self) -> int:
        """Steps so far, including those that `skip_step` counted."""
        return self.pruner.steps

    def importance(self) -> "pd.DataFrame":
        """Return every score of every choice, one row per channel: `Pruner.importance`."""
        return self.pruner.importance()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's entries and ``hesso``: all that a run needs to continue bit for bit.

        It holds only tensors and plain values, so that it loads with ``weights_only=True``.
        """
        return super().state_dict() | {"hesso": self.pruner.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; channels that are out of its network leave this one.

        Raises:
            UserError: if it comes from another optimizer, network or schedule, or this network has
                lost channels that its has.
        """
        if "hesso" not in state_dict:
            raise UserError("this optimizer state has no entry 'hesso': it is not from a HESSO run")
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if ours["p_names"] != theirs.get("p_names"):
                raise UserError(
                    f"the state is of another network: instead of {ours['p_names']} it has "
                    f"{theirs.get('p_names')}"
                )
        self.pruner.check_state(state_dict["hesso"])
        self.narrow_as(state_dict)
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._share_groups()
        self.pruner.load_state_dict(state_dict["hesso"])

    def narrow_as(self, state_dict: Mapping[str, Any]) -> None:
        """Let the channels leave that are out of a state's network, so that its weights fit.

        `load_state_dict` does so too; the weights of the network load after it.

        Raises:
            UserError: if this network has lost channels that the state's has, or keeps zeros.
        """
        left = state_dict.get("hesso", {}).get("left", {})
        if left.keys() == self.pruner.left.keys():  # else the state is of another network
            self._narrow(left)

    def _share_groups(self) -> None:
        """Give the base optimizer and the pruner this optimizer's groups and state."""
        self._base.param_groups, self._base.state = self.param_groups, self.state
        self.pruner.all_groups = self.param_groups

    def _narrow(self, left: dict[str, list[int]]) -> None:
        """Let the network, its groups, the state and the pruner have only these channels."""
        if left == self.pruner.left:
            return
        if self.removal is None or not self.removal.narrows:
            raise UserError(
                "channels have left the network of this state, and here they stay as zeros: write "
                "shrink: true"
            )
        kept = self.removal.narrow(left, self.param_groups, self.state)
        self.pruner.narrow(left, kept)

    def _moves(self, group: dict[str, Any]) -> list[Tensor | None]:
        return [
            next_move(param, group, self.state.get(param, {}), self.variant)
            for param in group["params"]
        ]

    def _shrink(self, group: dict[str, Any]) -> None:
        """Multiply redundant channels by the step's factor and set removed ones to zero."""
        self._multiply_redundant(group, self.pruner.tensors(group))
        self._zero_pruned(group)

    def _multiply_redundant(
        self, group: dict[str, Any], tensors: Iterable[tuple[str, Tensor, int, int]]
    ) -> None:
        """Multiply redundant channels by the step's factor in these tensors of `Pruner.tensors`."""
        if (redundant := self.pruner.indices(group).get("redundant")) is not None:
            for _, param, dim, start in tensors:
                rows = param.index_select(dim, start + redundant).mul_(self.pruner.factor)
                param.index_copy_(dim, start + redundant, rows)

    def _zero_pruned(self, group: dict[str, Any]) -> None:
        """Set the removed channels to zero again."""
        if (pruned := self.pruner.indices(group).get("pruned")) is not None:
            for _, param, dim, start in self.pruner.tensors(group):
                param.index_fill_(dim, start + pruned, 0)


@dataclass(frozen=True)
class NetworkBudget:
    """What a network may cost, and what its channels are scored by.

    Attributes:
        cost: of the network, as a function of its widths.
        scored: the parameters that the Taylor importance sums over, by group id.
    """

    cost: ChannelCost
    scored: Mapping[str, Sequence[str]]


def network_budget(
    graph: Graph, settings: HessoSettings, latency: ChannelCost | None = None
) -> NetworkBudget | None:
    """Return the cost that ``settings`` limit, for the model of ``graph``; None without a budget.

    Args:
        graph: of the network.
        settings: their target names the cost.
        latency: from `LatencyTable.cost`, for ``target_latency_ms``.

    Raises:
        UserError: if the latency is limited, and it is not given.
    """
    if not isinstance(settings.target, Budget):
        return None
    key = settings.target.key
    cost = COSTS[key](graph) if key in COSTS else latency
    if cost is None:
        raise UserError(
            f"{key} needs layers that were measured: pass network_budget the cost of a LatencyTable"
        )
    return NetworkBudget(cost, scored_tensors(graph))


def hesso(graph: Graph, **keys: Any) -> HESSO:
    """Build a `HESSO` for a network of one's own: ``hesso(graph, target_macs=0.25, lr=1e-3, ...)``.

    Args:
        graph: what `gaitlib.prune.oto.trace` said of the network.
        keys: those of `HessoSettings.of`, as an experiment's file has them.

    Raises:
        UserError: as `HessoSettings` and `HESSO`; if the target cannot be reached, with the least
            that can.
    """
    require_graph(graph)
    settings = HessoSettings.of(**keys)
    return build_hesso(graph, settings, measured_latency(graph, settings))


def measured_latency(graph: Graph, settings: HessoSettings) -> ChannelCost | None:
    """Return the latency of a network, measured here; None if ``settings`` limit none."""
    if getattr(settings.target, "key", "") != "target_latency_ms":
        return None
    return measure_layers(graph, settings.group_divisible).cost(graph)


def build_hesso(graph: Graph, settings: HessoSettings, latency: ChannelCost | None = None) -> HESSO:
    """Build a `HESSO` for the model of ``graph``, which `gaitlib.prune.oto.trace` made.

    ``latency`` is needed for ``target_latency_ms``; see `network_budget`.
    """
    budget = network_budget(graph, settings, latency)
    optimizer = HESSO(graph.param_groups(), settings, budget, removal_of(graph, settings))
    graph.unfinished = optimizer.unfinished
    return optimizer
