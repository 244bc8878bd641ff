"""HESSO: an optimizer that removes the least important channels while it trains.

Hybrid Efficient Structured Sparse Optimizer (Chen et al., https://arxiv.org/abs/2409.09085, part of
GETA, https://arxiv.org/abs/2502.16638). Between its pruning periods it is torch's SGD, Adam or
AdamW. In each period it chooses the channels with the lowest scores, shrinks them to zero step by
step, and holds them there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gaitlib.config.compression_cfg import HessoCfg
from gaitlib.prune.base_optimizer import build_base, coming_move
from gaitlib.prune.channel_groups import zero_channels
from gaitlib.prune.graph import Graph
from gaitlib.prune.pruner import Pruner

_MOST = 0.999  # the largest share that is ever removed, as in only_train_once


class HESSO(torch.optim.Optimizer):
    """Train and prune in one run.

    The groups come from `Graph.param_groups`; their dicts are shared with a torch optimizer that
    does the ordinary step, so a learning-rate schedule, a ``GradScaler`` and ``zero_grad`` act here
    as on that optimizer, and ``momentum_buffer`` or ``exp_avg`` stand in ``optimizer.state``.

    A step (numbers from 1, see `PruningSchedule`): at the first step of a period the scores of
    all channels are computed from the weights before the step and the move that is coming, and the
    period's share of K = ``int(N * min(target_group_sparsity, 0.999))`` channels becomes redundant.
    Then the base optimizer steps on everything, with its weight decay; redundant channels are
    multiplied by (D - t - 1) / (D - t); removed ones are set to zero again. A step waits for the
    device only where it chooses channels, once per period.

    With ``variant="sgd"`` and ``group_divisible=1`` this is, step for step, only_train_once's HESSO
    on groups without duplicates. Where it differs, on purpose:

    * Adam and AdamW are torch's. The package starts both moments un-scaled and then corrects for
      a bias they do not have, which makes its steps 0.15 to 0.8 of ``lr`` for the first 1000.
    * Channels that have gone are left out of a choice before it is cut to its quota, and cut by
      score; the package cuts by index. Each layer keeps one channel, and its share of the quota
      goes to others, so that exactly K channels go. See `importance.choose` for
      ``group_divisible``.
    * ``state_dict`` is complete: a run resumed inside a period continues bit for bit.
    * A channel shrinks in all its tensors, with or without a gradient in this step.
    * In a distributed job rank 0's scores are used by all.

    Args:
        groups: parameter groups as `Graph.param_groups` gives them (copied).
        cfg: the base optimizer, the schedule and the target. The learning rate of a step is
            ``param_groups[i]["lr"]``, which begins at ``cfg.lr``.

    Raises:
        ValueError: if the groups have too few channels for the target, with the numbers.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], cfg: HessoCfg) -> None:
        copies = [dict(group) for group in groups]
        self.variant = cfg.variant
        self._base = build_base(copies, cfg)
        super().__init__(copies, dict(self._base.defaults))
        prunable = [group for group in self.param_groups if group["is_prunable"]]
        if cfg.target_group_sparsity and not prunable:
            raise ValueError(
                f"target_group_sparsity {cfg.target_group_sparsity}, but no prunable group is left:"
                " Graph.table() tells why"
            )
        self.num_channels = sum(group["num_groups"] for group in prunable)
        target = int(self.num_channels * min(cfg.target_group_sparsity, _MOST))
        self.pruner = Pruner(
            prunable, cfg.schedule, target, cfg.scores.model_dump(), cfg.group_divisible
        )
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what ``closure`` returned, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.pruner.begin_step(self._moves)
        self._update()
        self.pruner.end_step()
        return loss

    def _update(self) -> None:
        """Move the weights: the base optimizer's step, then the shrinking."""
        self._base.step()
        for group in self.pruner.groups:
            self._shrink(group)

    def skip_step(self) -> None:
        """Count a step that did not run, as when a ``GradScaler`` met an infinite gradient.

        Without this call the pruning schedule falls behind a learning-rate schedule that counts
        iterations. A choice or removal that fell on the step is made up for at the next.
        """
        self.pruner.steps += 1

    def group_sparsity(self) -> float:
        """Return the share of prunable channels that are exactly zero now, 0..1 (measured)."""
        zero = [zero_channels(g["params"], g["p_dims"]).sum() for g in self.pruner.groups]
        return torch.stack(zero).sum().item() / self.num_channels if zero else 0.0

    @property
    def num_steps(self) -> int:
        """Steps so far, skipped ones that were reported included."""
        return self.pruner.steps

    def importance(self) -> pd.DataFrame:
        """Return every score of every choice, one row per channel: `importance_table`."""
        return self.pruner.importance()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's entries and ``hesso``: all that a run needs to continue bit for bit.

        Only tensors and plain values, loadable with ``weights_only=True``.
        """
        state = super().state_dict()
        state["hesso"] = {"variant": self.variant} | self.pruner.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            ValueError: if it is another optimizer's, of another network, or of another schedule.
        """
        if "hesso" not in state_dict:
            raise ValueError("this optimizer state has no entry 'hesso'; it is not a HESSO run's")
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if ours["p_names"] != theirs.get("p_names"):
                raise ValueError(
                    f"the state is of another network: group {ours['id']} holds "
                    f"{ours['p_names']} here, {theirs.get('p_names')} there"
                )
        saved = state_dict["hesso"]
        if saved["variant"] != self.variant:
            raise ValueError(f"the state is of variant {saved['variant']!r}, not {self.variant!r}")
        self.pruner.check_state(saved)
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._share()
        self.pruner.load_state_dict(saved)

    def _share(self) -> None:
        """Let the base optimizer and the pruner work on this one's groups and state."""
        self._base.param_groups, self._base.state = self.param_groups, self.state
        self.pruner.groups = [group for group in self.param_groups if group["is_prunable"]]

    def _moves(self, group: dict[str, Any]) -> list[Tensor | None]:
        return [
            coming_move(param, group, self.state.get(param, {}), self.variant)
            for param in group["params"]
        ]

    def _shrink(self, group: dict[str, Any]) -> None:
        """Multiply redundant channels by the step's factor and zero the removed ones."""
        index = self.pruner.index(group)
        for param, dim in zip(group["params"], group["p_dims"], strict=True):
            if "redundant" in index:
                rows = param.index_select(dim, index["redundant"]).mul_(self.pruner.factor)
                param.index_copy_(dim, index["redundant"], rows)
        self._hold(group)

    def _hold(self, group: dict[str, Any]) -> None:
        """Set the removed channels to zero again."""
        if (pruned := self.pruner.index(group).get("pruned")) is not None:
            for param, dim in zip(group["params"], group["p_dims"], strict=True):
                param.index_fill_(dim, pruned, 0)


def build_hesso(graph: Graph, cfg: HessoCfg) -> HESSO:
    """Build a `HESSO` for the model of ``graph``, which `gaitlib.prune.oto.trace` made."""
    return HESSO(graph.param_groups(), cfg)
