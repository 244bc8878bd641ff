"""What becomes of channels that a run removes: they leave the network, or stay in it as zeros."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaitlib.prune.channel_groups import spans
from gaitlib.prune.graph import Graph, select
from gaitlib.prune.hesso_settings import HessoSettings

State = MutableMapping[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Removal:
    """Removes channels from a network and from the optimizer that trains it.

    Both ways remove a channel from all tensors: from those of its group, and from the weights that
    read it. So a run whose channels leave computes what a run with such zeros does.

    Attributes:
        graph: of the network.
        narrows: whether channels leave; else they stay as zeros.
    """

    graph: Graph
    narrows: bool

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
        kept, places = self.graph.narrow(left)
        for group in groups:
            for i, (name, old) in enumerate(zip(group["p_names"], group["params"], strict=True)):
                new = self.graph.model.get_parameter(name) if name in places else old
                if new is old:
                    continue
                group["params"][i] = new
                if old in state:
                    state[new] = {
                        key: select(value, places[name]) if _follows(value, old) else value
                        for key, value in state.pop(old).items()
                    }
            if group["id"] in kept:
                group["num_groups"] = len(kept[group["id"]])
        return kept

    @torch.no_grad()
    def clear(
        self, removed: Mapping[str, Sequence[int]], groups: Sequence[dict[str, Any]], state: State
    ) -> None:
        """Set removed channels to zero in every trained parameter that has them, and its state."""
        dims = self.graph.shrinking_dims()
        for group in groups:
            for param, name in zip(group["params"], group["p_names"], strict=True):
                moments = [v for v in state.get(param, {}).values() if _follows(v, param)]
                for tensor in (param, *moments):
                    for dim, segments in dims.get(name, {}).items():
                        for segment, start, _ in spans(segments, {}):
                            channels = torch.tensor(removed.get(segment.group, []))
                            places = segment.places(start, channels.long())
                            tensor.index_fill_(dim, places.to(tensor.device), 0)


def _follows(value: Any, param: Tensor) -> bool:
    """Return whether a value of the state has one number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == param.shape


def removal_of(graph: Graph, settings: HessoSettings) -> Removal | None:
    """Return what ``settings`` do with removed channels; None for only_train_once's own way.

    HESSO's five scores count the weights that read removed channels, so those weights stay.
    """
    if settings.shrinks or settings.by_taylor:
        return Removal(graph, settings.shrinks)
    return None
