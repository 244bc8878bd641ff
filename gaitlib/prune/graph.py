"""The result of tracing a network: its groups of channels, and how to cut channels out.

A `Graph` holds the traced model, names and numbers, but no object of the tool that traced it.
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
        dim: the dimension; its length is the group's number of channels.
        group: id of the group.
    """

    name: str
    dim: int
    group: str


@dataclass(frozen=True)
class Graph:
    """The groups of one model.

    Attributes:
        model: the traced model itself, not a copy; optimizers built from this graph train it.
        groups: in the model's order; together they hold every parameter exactly once.
        cuts: the dimensions that shrink when channels of a group leave.
        edges: pairs of layer names in the direction of the data, from ``input`` to ``output``.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    cuts: tuple[Cut, ...]
    edges: tuple[tuple[str, str], ...]

    def reason(self, group: Group) -> str:
        """Return why no channel of ``group`` may leave now; empty if channels may.

        A frozen parameter (``requires_grad`` is False) never changes, so its group keeps all
        channels.
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
        """N, the number of channels that may leave, over all prunable groups."""
        return sum(group.channels for group in self.prunable())

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, one per group; new dicts at each call.

        Every parameter that requires a gradient is in exactly one of them. The keys are
        only_train_once's: ``id``, ``params``, ``p_names`` and ``p_transform`` (parallel lists),
        ``num_groups`` (the number of channels), ``is_prunable``, ``is_auxiliary``. gaitlib adds
        ``p_dims``, the dimension of the channels. All values but ``params`` are plain, so that an
        optimizer's ``state_dict`` loads with ``weights_only=True``.
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
        """Return one row per group: group, layers, channels, tensors, params, prunable, reason."""
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
        ``channels``. ``input`` and ``output`` have the group ``""``. Edges pass through layers
        without parameters (activations, sums, pooling).
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
        """Return which channels of each prunable group are exactly zero: id -> bool ``(G,)``.

        Args:
            model: a model with the same parameter names; the traced one if None.
        """
        model = self.model if model is None else model
        return {
            group.id: zero_channels([model.get_parameter(n) for n in group.names], group.dims)
            for group in self.prunable()
        }

    def group_sparsity(self, model: nn.Module | None = None) -> float:
        """Return the share of channels that are zero, of those that may leave: 0..1."""
        zero = self.zero_channels(model).values()
        return sum(int(z.sum()) for z in zero) / max(self.num_channels, 1)

    def zero(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Set channels to zero in place.

        Args:
            channels: group id -> channel numbers.

        Raises:
            ValueError: for an id that is not a prunable group's.
        """
        named = {group.id: group for group in self.prunable()}
        for id_, chosen in channels.items():
            if id_ not in named:
                raise ValueError(f"no prunable group {id_!r}; choose from {sorted(named)}")
            for name, dim in zip(named[id_].names, named[id_].dims, strict=True):
                tensor = self.model.get_parameter(name).detach()
                tensor.index_fill_(dim, torch.tensor(list(chosen), device=tensor.device).long(), 0)

    def slice(self, model: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model without its zero channels; the given model does not change.

        Convolutions lose the output channels and the input channels that are zero, batch norms
        their weights and running statistics, SeparateFCs their input channels. A group whose
        channels are all zero keeps the first, so that no layer vanishes.
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
