"""What tracing found out about a network: its channel groups and how to cut them out.

A `Graph` holds names and numbers and the traced model, nothing of the tool that traced it.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib.model.widths import replace_tensor, sync_widths
from gaitlib.prune.channel_groups import Group, zero_channels

FROZEN = "holds the frozen parameter {}"


@dataclass(frozen=True)
class Cut:
    """One dimension of one tensor that shrinks with a group.

    Attributes:
        name: a parameter or buffer of the model.
        dim: the dimension, as long as the group has channels.
        group: id of the group.
    """

    name: str
    dim: int
    group: str


@dataclass(frozen=True)
class Graph:
    """The channel groups of one model.

    Attributes:
        model: the traced model itself; its tensors are what an optimizer built from here trains.
        groups: in the model's order; together they hold every parameter exactly once.
        cuts: what shrinks when channels of a group leave.
        edges: pairs of layer names, in the direction of the data, from ``input`` to ``output``.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    cuts: tuple[Cut, ...]
    edges: tuple[tuple[str, str], ...]

    def reason(self, group: Group) -> str:
        """Tell why ``group`` may not be pruned now; empty if it may.

        A parameter whose ``requires_grad`` is False never changes, so its group keeps all channels.
        """
        if group.reason:
            return group.reason
        for name in group.names:
            if not self.model.get_parameter(name).requires_grad:
                return FROZEN.format(name)
        return ""

    def prunable(self) -> list[Group]:
        """Return the groups whose channels may leave, in the model's order."""
        return [group for group in self.groups if not self.reason(group)]

    @property
    def num_channels(self) -> int:
        """N, the channels that may be removed, over all prunable groups."""
        return sum(group.channels for group in self.prunable())

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, one for each channel group.

        Every parameter that requires a gradient stands in exactly one group, once. The keys are
        only_train_once's: ``id``, ``params``, ``p_names`` and ``p_transform`` (parallel lists),
        ``num_groups`` (channels), ``is_prunable``, ``is_auxiliary``, and ours: ``p_dims``, the
        dimension that the channels run along. All values but ``params`` are plain, so that an
        optimizer's ``state_dict`` loads with ``weights_only=True``. Fresh dicts at each call.
        """
        result = []
        for group in self.groups:
            tensors = [self.model.get_parameter(name) for name in group.names]
            kept = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            if kept:
                result.append(
                    {
                        "id": group.id,
                        "params": [tensors[i] for i in kept],
                        "p_names": [group.names[i] for i in kept],
                        "p_transform": [group.transforms[i] for i in kept],
                        "p_dims": [group.dims[i] for i in kept],
                        "num_groups": group.channels,
                        "is_prunable": not self.reason(group),
                        "is_auxiliary": False,
                    }
                )
        return result

    def table(self) -> pd.DataFrame:
        """Describe each group in a row: id, layers, channels, tensors, params, prunable, reason."""
        rows = []
        for group in self.groups:
            tensors = [self.model.get_parameter(name) for name in group.names]
            rows.append(
                {
                    "group": group.id,
                    "layers": ", ".join(group.layers),
                    "channels": group.channels,
                    "tensors": len(tensors),
                    "params": sum(tensor.numel() for tensor in tensors),
                    "prunable": not self.reason(group),
                    "reason": self.reason(group),
                }
            )
        return pd.DataFrame(rows)

    def network(self) -> nx.DiGraph:
        """Return the layers as a graph to draw.

        Nodes are layer names with ``type`` (class name), ``group`` (id), ``prunable`` and
        ``channels``; ``input`` and ``output`` have the group ``""``. Layers without parameters
        (activations, sums, pooling) are folded into the edges.
        """
        home = {layer: group for group in self.groups for layer in group.layers}
        net = nx.DiGraph()
        for layer in dict.fromkeys(["input", *home, "output"]):
            group = home.get(layer)
            net.add_node(
                layer,
                type=layer if group is None else type(self.model.get_submodule(layer)).__name__,
                group="" if group is None else group.id,
                prunable=group is not None and not self.reason(group),
                channels=0 if group is None else group.channels,
            )
        net.add_edges_from(self.edges)
        return net

    def zero_channels(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Tell for each prunable group which channels are exactly zero: id -> bool ``(G,)``.

        Args:
            model: a model with the traced one's parameters; the traced one itself if None.
        """
        model = self.model if model is None else model
        return {
            group.id: zero_channels([model.get_parameter(n) for n in group.names], group.dims)
            for group in self.prunable()
        }

    def group_sparsity(self, model: nn.Module | None = None) -> float:
        """Return the share of removable channels that are zero, 0..1."""
        zero = self.zero_channels(model).values()
        return sum(int(z.sum()) for z in zero) / max(self.num_channels, 1)

    def zero(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Set channels to zero in place: group id -> channel numbers."""
        named = {group.id: group for group in self.prunable()}
        for id_, chosen in channels.items():
            if id_ not in named:
                raise ValueError(f"no prunable group {id_!r}; choose from {sorted(named)}")
            for name, dim in zip(named[id_].names, named[id_].dims, strict=True):
                tensor = self.model.get_parameter(name).detach()
                tensor.index_fill_(dim, torch.tensor(list(chosen), device=tensor.device).long(), 0)

    def slice(self, model: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model without its zero channels; the given one stays as it is.

        Convolutions lose rows (and the columns that read lost channels), batch norms lose their
        weights and running statistics, SeparateFCs lose the rows that read lost channels. A group
        whose channels are all zero keeps the first, so that no layer vanishes.
        """
        twin = copy.deepcopy(self.model if model is None else model)
        kept = {}
        for id_, zero in self.zero_channels(twin).items():
            if zero.all():
                zero[0] = False
            kept[id_] = (~zero).nonzero().flatten()
        for cut in self.cuts:
            if cut.group in kept:
                layer_name, _, name = cut.name.rpartition(".")
                layer = twin.get_submodule(layer_name)
                old = getattr(layer, name).detach()
                replace_tensor(layer, name, old.index_select(cut.dim, kept[cut.group]))
                sync_widths(layer)
        return twin
