"""How much the loss would change without a channel, estimated from gradients during training.

The importance of channel c is the mean, over steps, of ``(sum of <x_c, dL/dx_c>)^2``: the squared
first-order change of the loss if all the numbers x_c that the channel owns became zero (Molchanov
et al., CVPR 2019, https://arxiv.org/abs/1906.10771).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gaitlib.prune.channel_groups import channel_rows
from gaitlib.prune.graph import Graph


def scored_tensors(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Return the parameters of each prunable group that the importance sums over, by group id.

    Scaling a convolution that feeds a batch norm does not change the loss, so its
    ``<w_c, dL/dw_c>`` is zero, and gamma and beta of the batch norm are the whole sum. A layer
    without a batch norm counts by its own weight and bias.
    """
    modules = dict(graph.model.named_modules())
    normalised = {
        source for source, target in graph.edges if isinstance(modules.get(target), _BatchNorm)
    }

    def counts(name: str) -> bool:
        layer = name.rpartition(".")[0]
        return isinstance(modules[layer], _BatchNorm) or layer not in normalised

    return {g.id: tuple(filter(counts, (*g.names, *g.followers))) for g in graph.prunable()}


#: Returns of a parameter group each tensor with its channels: name, tensor, dimension, first place.
Tensors = Callable[[Mapping[str, Any]], Iterable[tuple[str, Tensor, int, int]]]


class TaylorSums:
    """Sums the squared first-order change of the loss per channel, step by step.

    Gradients are those that the optimizer sees: un-scaled under AMP and, in a distributed job,
    averaged over the processes.

    Args:
        scored: from `scored_tensors`.
    """

    def __init__(self, scored: Mapping[str, Sequence[str]]) -> None:
        self.scored = {id_: frozenset(names) for id_, names in scored.items()}
        self.steps = 0
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, groups: Sequence[Mapping[str, Any]], tensors: Tensors) -> None:
        """Add the change that the gradients of this step predict.

        Args:
            groups: parameter groups.
            tensors: returns the tensors of one, as `gaitlib.prune.pruner.Pruner.tensors` does.
        """
        self.steps += 1
        for group in groups:
            id_, count = group["id"], group["num_groups"]
            changes = [
                channel_rows(change.narrow(dim, start, count), dim).sum(dim=1)  # (G,)
                for name, param, dim, start in tensors(group)
                if name in self.scored[id_] and param.grad is not None
                for change in [param.detach().float() * param.grad.float()]
            ]
            if changes:
                square = sum(changes).square()
                before = self.sums.get(id_, torch.zeros(()))
                self.sums[id_] = square + before.to(square.device)  # a loaded one may lie elsewhere

    def means(self, groups: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the mean over the steps so far, ``(N,)``; zero for a group without gradients."""
        device = groups[0]["params"][0].device
        rows = [
            self.sums.get(g["id"], torch.zeros(g["num_groups"])).to(device) / max(self.steps, 1)
            for g in groups
        ]
        return torch.cat(rows)

    def narrow(self, kept: Mapping[str, Tensor]) -> None:
        """Keep these places of the groups that lost channels."""
        for id_, places in kept.items():
            if id_ in self.sums:
                self.sums[id_] = self.sums[id_][places.to(self.sums[id_].device)]

    def restart(self) -> None:
        """Forget the steps so far."""
        self.steps, self.sums = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the sums."""
        return {"steps": self.steps, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.steps, self.sums = state["steps"], dict(state["sums"])
