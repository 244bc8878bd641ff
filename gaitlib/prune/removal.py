"""What becomes of channels that a run removes: they leave the network, or stay in it as zeros."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso_settings import HessoSettings

State = MutableMapping[Tensor, dict[str, Any]]


class Removal:
    """Removes channels from a network and from the optimizer that trains it.

    Both ways remove a channel from all tensors: from those of its group, and from the weights that
    read it. So a run whose channels leave computes what a run with such zeros does.

    Args:
        graph: of the network.
        narrows: whether channels leave; else they stay as zeros.
    """

    def __init__(self, graph: Graph, narrows: bool) -> None:
        self.graph, self.narrows = graph, narrows

    def narrow(
        self, left: Mapping[str, Sequence[int]], groups: Sequence[dict[str, Any]], state: State
    ) -> dict[str, Tensor]:
        """Take channels out of the network, the parameter groups and the state, in place.

        Args:
            left: the channels that stay, by group id.
            groups: the optimizer's; their parameters are replaced.
            state: the optimizer's, by parameter.

        Returns:
            The places that stay in each group that lost channels.
        """
        kept, narrowed_tensors = self.graph.narrow(left)
        replaced = {narrowed.old: narrowed for narrowed in narrowed_tensors}
        for group in groups:
            for i, param in enumerate(group["params"]):
                if (narrowed := replaced.get(param)) is None:
                    continue
                group["params"][i] = narrowed.new
                if param in state:
                    state[narrowed.new] = {
                        name: narrowed.follow(value) if _follows(value, param) else value
                        for name, value in state.pop(param).items()
                    }
            if group["id"] in kept:
                group["num_groups"] = len(kept[group["id"]])
        return kept

    @torch.no_grad()
    def clear(
        self,
        removed: Mapping[str, Sequence[int]],
        groups: Sequence[dict[str, Any]],
        state: State,
    ) -> None:
        """Set removed channels to zero in every trained parameter that has them, and its state."""
        dims = self.graph.shrinking_dims()
        for group in groups:
            for param, name in zip(group["params"], group["p_names"], strict=True):
                moments = [v for v in state.get(param, {}).values() if _follows(v, param)]
                for tensor in (param, *moments):
                    for dim, id_ in dims.get(name, {}).items():
                        channels = torch.tensor(removed[id_], dtype=torch.long).to(tensor.device)
                        tensor.index_fill_(dim, channels, 0)


def _follows(value: Any, param: Tensor) -> bool:
    """Return whether a value of the state has one number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == param.shape and value.dim() > 0


def removal_of(graph: Graph, settings: HessoSettings) -> Removal | None:
    """Return what ``settings`` do with removed channels; None for only_train_once's own way.

    HESSO's five scores count the weights that read removed channels, so those weights stay.
    """
    if settings.shrinks or settings.by_taylor:
        return Removal(graph, settings.shrinks)
    return None
