"""The result of tracing a network: its groups of channels, and how to cut channels out.

A `Graph` holds the traced model, names and numbers, but no object of the tool that traced it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib.model.widths import replace_tensor, sync_widths
from gaitlib.prune.channel_groups import Group, zero_channels
from gaitlib.system.errors import UserError

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
        left: the channels of each group that the model still has, by group id and in the order of
            the model; all of them until `narrow` takes some out.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    cuts: tuple[Cut, ...]
    edges: tuple[tuple[str, str], ...]
    left: dict[str, list[int]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        left = {group.id: list(range(group.channels)) for group in self.groups}
        object.__setattr__(self, "left", left)

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

    def shrinking_dims(self) -> dict[str, dict[int, str]]:
        """Return the dimensions of each tensor that shrink: name -> dimension -> prunable group."""
        prunable = {group.id for group in self.prunable()}
        found: dict[str, dict[int, str]] = {}
        for cut in sorted(self.cuts, key=lambda cut: cut.dim):
            if cut.group in prunable:
                found.setdefault(cut.name, {})[cut.dim] = cut.group
        return found

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, one per group; new dicts at each call.

        Every parameter that requires a gradient is in exactly one of them. The keys are
        only_train_once's: ``id``, ``params``, ``p_names`` and ``p_transform`` (parallel lists),
        ``num_groups`` (the number of channels), ``is_prunable``, ``is_auxiliary``. gaitlib adds
        ``p_dims``, the dimension of the channels. All values but ``params`` are plain, so that an
        optimizer's ``state_dict`` loads with ``weights_only=True``.

        Raises:
            UserError: if channels have left the model since it was traced.
        """
        if self.is_narrow():
            raise UserError("channels have left this model since it was traced: trace it again")
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
                    "channels": len(self.left[group.id]),
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
        """Return the share of channels that are zero or taken out, of those that may leave: 0..1.

        Args:
            model: as in `zero_channels`.
        """
        kept = sum(int((~zero).sum()) for zero in self.zero_channels(model).values())
        return (self.num_channels - kept) / max(self.num_channels, 1)

    def zero(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Set channels to zero in place.

        Args:
            channels: group id -> channel numbers.

        Raises:
            UserError: for an id that is not a prunable group's, or a channel that has left.
        """
        named = {group.id: group for group in self.prunable()}
        for id_, chosen in channels.items():
            if id_ not in named:
                raise UserError(f"no prunable group {id_!r}; choose from {sorted(named)}")
            places = [self.left[id_].index(channel) for channel in chosen]
            for name, dim in zip(named[id_].names, named[id_].dims, strict=True):
                tensor = self.model.get_parameter(name).detach()
                tensor.index_fill_(dim, torch.tensor(places, device=tensor.device).long(), 0)

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
        for name, dims in self.shrinking_dims().items():
            _replace(twin, name, select(_tensor(twin, name), dims, kept))
        return twin

    def narrow(
        self, left: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, Tensor], list["Narrowed"]]:
        """Take channels out of the traced model, in place; its parameters are new tensors then.

        Args:
            left: the channels that stay, of each prunable group and in ascending order.

        Returns:
            The places that stay in each group that lost channels, and what was replaced.

        Raises:
            UserError: if a channel should stay that the model no longer has.
        """
        kept = {}
        for id_, channels in left.items():
            place = {channel: i for i, channel in enumerate(self.left[id_])}
            if missing := [channel for channel in channels if channel not in place]:
                raise UserError(
                    f"{id_} should keep channel {missing[0]}, which has left this model: build it "
                    "anew"
                )
            if not channels or sorted(set(channels)) != list(channels):
                raise UserError(f"{id_} should keep {channels}: give one or more, in order")
            if len(channels) < len(place):
                kept[id_] = torch.tensor([place[channel] for channel in channels])
        replaced = []
        for name, dims in self.shrinking_dims().items():
            if not kept.keys() & set(dims.values()):
                continue
            old = _tensor(self.model, name)
            _replace(self.model, name, select(old, dims, kept))
            replaced.append(Narrowed(old, _tensor(self.model, name), dims, kept))
        self.left.update({id_: list(channels) for id_, channels in left.items()})
        return kept, replaced

    def is_narrow(self, model: nn.Module | None = None) -> bool:
        """Return whether channels have left a model; the traced one if None."""
        model = self.model if model is None else model
        return any(
            model.get_parameter(group.names[0]).shape[group.dims[0]] < group.channels
            for group in self.prunable()
        )

    @torch.no_grad()
    def widen(self, model: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model as wide as it was traced: what was taken out is zero there.

        Args:
            model: as wide as the traced one is now; the traced one if None.
        """
        twin = copy.deepcopy(self.model if model is None else model)
        full = {group.id: group.channels for group in self.groups}
        for name, dims in self.shrinking_dims().items():
            tensor = _tensor(twin, name)
            for dim, id_ in dims.items():
                if tensor.shape[dim] < full[id_]:
                    narrow, shape = tensor, list(tensor.shape)
                    shape[dim] = full[id_]
                    places = torch.tensor(self.left[id_], device=tensor.device)
                    tensor = narrow.new_zeros(shape).index_copy_(dim, places, narrow)
            _replace(twin, name, tensor)
        return twin


@dataclass(frozen=True)
class Narrowed:
    """A tensor of a model that lost channels.

    Attributes:
        old, new: before and after.
        dims: dimension -> group id, of `Graph.shrinking_dims`.
        kept: the places that stay, by group id; a group that lost none is missing.
    """

    old: Tensor
    new: Tensor
    dims: Mapping[int, str]
    kept: Mapping[str, Tensor]

    def follow(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the old shape, such as a momentum, without the same channels."""
        return select(tensor, self.dims, self.kept)


def select(tensor: Tensor, dims: Mapping[int, str], kept: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor with only the kept places of its dimensions, by their groups' ids."""
    tensor = tensor.detach()
    for dim, id_ in dims.items():
        if id_ in kept:
            tensor = tensor.index_select(dim, kept[id_].to(tensor.device))
    return tensor


def _tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or a buffer."""
    layer, _, last = name.rpartition(".")
    return getattr(model.get_submodule(layer), last)


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    layer_name, _, last = name.rpartition(".")
    layer = model.get_submodule(layer_name)
    replace_tensor(layer, last, tensor)
    sync_widths(layer)
