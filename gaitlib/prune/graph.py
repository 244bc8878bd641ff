"""The result of tracing a network: its groups of channels, and how to cut channels out.

A `Graph` holds the traced model, names and numbers, but no object of the tool that traced it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gaitlib.model.examples import Example
from gaitlib.model.widths import replace_tensor, sync_widths
from gaitlib.prune.channel_groups import Group, Segment, channel_rows, spans
from gaitlib.system.errors import UserError

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd


@dataclass(eq=False)
class Graph:
    """The groups of one model, and which of their channels it still has.

    Attributes:
        model: the traced model itself, not a copy; optimizers built from this graph train it.
        groups: in the model's order; together they hold every parameter exactly once.
        cuts: for each parameter or buffer that shrinks when channels leave, by name: dimension ->
            its segments.
        edges: pairs of layer names in the direction of the data, from ``input`` to ``output``.
        example: the inputs that it was traced with.
        unfinished: says what an optimizer of this graph still has to remove; empty if nothing.
        left: the channels of each group that the model still has, by group id and in the order of
            the model; all of them until `narrow` takes some out.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    cuts: Mapping[str, Mapping[int, tuple[Segment, ...]]]
    edges: tuple[tuple[str, str], ...]
    example: Example | None = None
    unfinished: Callable[[], str] = field(default=str, init=False)
    left: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.left = {group.id: list(range(group.channels)) for group in self.groups}

    def reason(self, group: Group) -> str:
        """Return why no channel of ``group`` may leave now; empty if channels may.

        A frozen parameter (``requires_grad`` is False) never changes, so its group keeps all
        channels.
        """
        names = (*group.names, *group.followers)
        frozen = [n for n in names if not self.model.get_parameter(n).requires_grad]
        return group.reason or (f"holds the frozen parameter {frozen[0]}" if frozen else "")

    def prunable(self) -> list[Group]:
        """Return the groups whose channels may leave, in the model's order."""
        return [group for group in self.groups if not self.reason(group)]

    @property
    def num_channels(self) -> int:
        """N, the number of channels that may leave, over all prunable groups."""
        return sum(group.channels for group in self.prunable())

    def shrinking_dims(self) -> dict[str, dict[int, tuple[Segment, ...]]]:
        """Return the dimensions of each tensor that shrink: name -> dimension -> its segments."""
        prunable = {group.id for group in self.prunable()}
        found = {
            name: {dim: parts for dim, parts in dims.items() if prunable & {s.group for s in parts}}
            for name, dims in self.cuts.items()
        }
        return {name: dims for name, dims in found.items() if dims}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, one per group; new dicts at each call.

        Every parameter that requires a gradient is in exactly one of them. The keys are
        only_train_once's: ``id``, ``params`` and ``p_names`` (parallel lists), ``num_groups`` (the
        number of channels), ``is_prunable``; and ``p_dims``, the dimension of the channels, and
        ``followers``, the tensors of other groups that have a segment of its channels: name ->
        group and channels of each segment. All values but ``params`` are plain, so that an
        optimizer's ``state_dict`` loads with ``weights_only=True``.

        Raises:
            UserError: if channels have left the model since it was traced.
        """
        if self.is_narrow():
            raise UserError("channels have left this model since it was traced: trace it again")
        result = []
        for group in self.groups:
            trained = {
                name: dim
                for name, dim in zip(group.names, group.dims, strict=True)
                if self.model.get_parameter(name).requires_grad
            }
            if trained:
                result.append(
                    {
                        "id": group.id,
                        "params": [self.model.get_parameter(name) for name in trained],
                        "p_names": list(trained),
                        "p_dims": list(trained.values()),
                        "num_groups": group.channels,
                        "is_prunable": not self.reason(group),
                        "followers": {
                            name: [[s.group, s.channels] for s in self.cuts[name][0]]
                            for name in group.followers
                        },
                    }
                )
        return result

    def table(self) -> "pd.DataFrame":
        """Return one row per group: group, layers, channels, tensors, params, prunable, reason."""
        import pandas as pd  # takes long to import, and training needs no table

        return pd.DataFrame(
            {
                "group": group.id,
                "layers": ", ".join(group.layers),
                "channels": self.model.get_parameter(group.names[0]).shape[group.dims[0]],
                "tensors": len(group.names),
                "params": sum(self.model.get_parameter(name).numel() for name in group.names),
                "prunable": not self.reason(group),
                "reason": self.reason(group),
            }
            for group in self.groups
        )

    def network(self) -> "nx.DiGraph":
        """Return the layers as a graph to draw.

        Nodes are layer names with ``type`` (class name), ``group`` (id), ``prunable`` and
        ``channels``. ``input`` and ``output`` have the group ``""``. Edges pass through layers
        without parameters (activations, sums, pooling).
        """
        import networkx as nx  # takes long to import, and training draws nothing

        home = {layer: group for group in self.groups for layer in group.layers}
        net = nx.DiGraph()
        for layer in ("input", *home, "output"):
            group = home.get(layer)
            net.add_node(
                layer,
                type=type(self.model.get_submodule(layer)).__name__ if group else layer,
                group=group.id if group else "",
                prunable=group is not None and not self.reason(group),
                channels=group.channels if group else 0,
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
            group.id: torch.stack(
                [
                    (channel_rows(tensor.narrow(dim, start, count), dim) == 0).all(dim=1)
                    for tensor, dim, start, count in self._tensors(group, model)
                ]
            ).all(dim=0)
            for group in self.prunable()
        }

    def _tensors(self, group: Group, model: nn.Module) -> Iterator[tuple[Tensor, int, int, int]]:
        """Yield all that becomes zero with a group: tensor, dimension, first place, channels."""
        for name, dim in zip(group.names, group.dims, strict=True):
            tensor = model.get_parameter(name).detach()
            yield tensor, dim, 0, tensor.shape[dim]
        for name in group.followers:
            for segment, start, count in spans(self.cuts[name][0], self.left):
                if segment.group == group.id:
                    yield model.get_parameter(name).detach(), 0, start, count

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
            left = {channel: place for place, channel in enumerate(self.left[id_])}
            numbers = [int(channel) for channel in chosen]
            if gone := [channel for channel in numbers if channel not in left]:
                raise UserError(f"{id_} has no channel {gone[0]}: it has {self.left[id_]}")
            places = [left[channel] for channel in numbers]
            for tensor, dim, start, _ in self._tensors(named[id_], self.model):
                chosen_places = start + torch.tensor(places, dtype=torch.long)
                tensor.index_fill_(dim, chosen_places.to(tensor.device), 0)

    def slice(self, model: nn.Module | None = None, only: str | None = None) -> nn.Module:
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
            if only in (None, id_):
                kept[id_] = (~zero).nonzero().flatten()
        self._keep(twin, kept)
        return twin

    def _keep(self, model: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        """Keep these channels, by place, of some groups of ``model``; return places by tensor."""
        found = {}
        for name, dims in self.shrinking_dims().items():
            found[name] = {
                dim: segment_places(spans(segments, self.left), kept)
                for dim, segments in dims.items()
                if any(segment.group in kept for segment in segments)
            }
            if found[name]:
                _replace(model, name, select(attrgetter(name)(model), found[name]))
        return found

    def narrow(
        self, left: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[str, dict[int, Tensor]]]:
        """Take channels out of the traced model, in place; its parameters are new tensors then.

        Args:
            left: the channels that stay, of each prunable group and in ascending order.

        Returns:
            The places that stay: in each group that lost channels, and in each tensor, by its
            dimensions.

        Raises:
            UserError: if a channel should stay that the model no longer has.
        """
        kept = {}
        for id_, channels in left.items():
            if missing := set(channels) - set(self.left[id_]):
                raise UserError(
                    f"{id_} should keep channel {min(missing)}, which has left this model: build "
                    "it anew"
                )
            if len(channels) < len(self.left[id_]):
                kept[id_] = torch.tensor([self.left[id_].index(channel) for channel in channels])
        places = self._keep(self.model, kept)
        self.left.update({id_: list(channels) for id_, channels in left.items()})
        return kept, places

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
        for name, dims in self.shrinking_dims().items():
            tensor = attrgetter(name)(twin)
            for dim, segments in dims.items():
                places = segment_places(
                    spans(segments, {}), {id_: torch.tensor(c) for id_, c in self.left.items()}
                )
                full = sum(segment.channels * segment.block for segment in segments)
                if tensor.shape[dim] < full:
                    shape = list(tensor.shape)
                    shape[dim] = full
                    wide = tensor.new_zeros(shape)
                    tensor = wide.index_copy_(dim, places.to(tensor.device), tensor)
            _replace(twin, name, tensor)
        return twin


def require_graph(graph: Any) -> None:
    """Raise ``UserError`` for what is no graph, as a network that was not traced."""
    if not isinstance(graph, Graph):
        raise UserError(
            f"a {type(graph).__name__} is no graph: call graph = gl.trace(model, example) first, "
            "and pass that"
        )


def segment_places(
    segments: Iterable[tuple[Segment, int, int]], kept: Mapping[str, Tensor]
) -> Tensor:
    """Return the places of a dimension that stay if groups keep these channels, by their place."""
    return torch.cat(
        [
            segment.places(start, kept.get(segment.group, torch.arange(count)).cpu())
            for segment, start, count in segments
        ]
    )


def select(tensor: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """Return a tensor with only these places of its dimensions."""
    tensor = tensor.detach()
    for dim, kept in places.items():
        tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    layer_name, _, last = name.rpartition(".")
    layer = model.get_submodule(layer_name)
    replace_tensor(layer, last, tensor)
    sync_widths(layer)
