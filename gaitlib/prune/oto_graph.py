"""Convert only_train_once's graph of a network into a `Graph` of plain values.

It reads the package's node groups (operations whose channels are the same), nodes (operations, some
of a layer) and edges, and does not change them. This file does not import the package.

Channels are made by stems: convolutions and linear layers. A node group without a stem has the
channels of others, one after the other: those that a concatenation joins, or those that a depthwise
convolution reads. Its `Layout` says which. What is read here is what the graph looks like;
`gaitlib.prune.dry_cut` proves that cutting by it changes nothing.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gaitlib.model.examples import Example
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.widths import is_depthwise, sides_of
from gaitlib.prune.channel_groups import Group, Segment
from gaitlib.prune.graph import Graph

#: The reason to keep parameters of modules that did not run.
UNUSED = "not used by the traced forward pass"
#: The segments of a node group's channels; their groups are the package's ids.
Layout = tuple[Segment, ...]


@dataclass
class _Draft:
    """A group while it is read.

    Attributes:
        channels: how many its stems make; 0 without one.
        reason: why no channel may leave.
        dims: the dimension of the channels, by parameter.
        statistics: buffers with a number for each channel.
        apart: parameters without a dimension of channels.
    """

    channels: int
    reason: str
    dims: dict[str, int] = field(default_factory=dict)
    statistics: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        self.reason = self.reason or reason


class _Reader:
    """Reads one graph of the package, made of a copy of ``model``."""

    def __init__(self, found: Any, model: nn.Module) -> None:
        self.found, self.model = found, model
        self.names = [name for name, _ in model.named_parameters() if not of_quantizer(name)]
        self.makers = {name: node for node in found.nodes.values() for name in node.outputs}
        self.drafts: dict[str, _Draft] = {}
        self.layouts: dict[str, Layout] = {}
        self.cuts: dict[str, dict[int, Layout]] = {}

    def read(self, example: Example) -> Graph:
        """Return the graph of plain values."""
        for key, node_group in self.found.node_groups.items():
            self.drafts[key] = self._draft(node_group)
        self._refuse_shared()
        for key in self.drafts:
            self._place(key)
        for node in self.found.nodes.values():
            if _is_stem(node) and not is_depthwise(node.op.module):
                self._read_inputs(node)
        self._refuse_outputs()
        return self._graph(example)

    def _draft(self, node_group: Any) -> _Draft:
        """Read the tensors of a node group."""
        stems = [n.op.module for n in node_group if _is_stem(n) and not is_depthwise(n.op.module)]
        made = {_width(stem, "out") for stem in stems}
        draft = _Draft(max(made, default=0), "" if stems else "has no layer that makes channels")
        if len(made) > 1:
            draft.refuse(f"joins layers of {' and '.join(map(str, sorted(made)))} channels")
        if stems and not node_group.is_prunable:
            draft.refuse(_refusal(node_group, self.found))
        channels = draft.channels or node_group.get_num_groups()
        for name in dict.fromkeys(name for node in node_group for name in node.param_names):
            layer, _, last = name.rpartition(".")
            module = self.model.get_submodule(layer)
            if isinstance(module, nn.RNNBase):
                draft.refuse(f"{layer} is a {type(module).__name__}, and recurrent layers are kept")
            tensor = getattr(module, last)
            if not isinstance(tensor, nn.Parameter):
                draft.statistics += [name] * (tensor.dim() == 1)
            elif (dim := self._channel_dim(layer, last, tensor, channels)) is not None:
                draft.dims[name] = dim
                if tensor.shape[dim] != channels:
                    draft.refuse(f"{name} has {tensor.shape[dim]} channels, the group {channels}")
            else:
                draft.apart.append(name)
        return draft

    def _channel_dim(self, layer: str, last: str, tensor: Any, channels: int) -> int | None:
        """Return a parameter's dimension of channels; None if it has none."""
        own, sides = sides_of(self.model.get_submodule(layer))
        if own == last and "in" in sides:
            return sides["out"]
        fitting = [dim for dim, size in enumerate(tensor.shape) if size == channels]
        if tensor.dim() == 1 and len(tensor) > 1:
            return 0
        return fitting[0] if len(fitting) == 1 and channels > 1 else None

    def _refuse_shared(self) -> None:
        """Refuse groups that list the same parameter; the first keeps it."""
        owner: dict[str, _Draft] = {}
        for draft in self.drafts.values():
            for name in list(draft.dims):
                if owner.setdefault(name, draft) is not draft:
                    for sharing in (draft, owner[name]):
                        sharing.refuse(f"shares {name} with another group")
                    del draft.dims[name]

    def _layout(self, key: str) -> Layout:
        """Return whose channels a node group has; all concerned are refused if that is unclear."""
        if key in self.layouts:
            return self.layouts[key]
        draft, nodes = self.drafts[key], list(self.found.node_groups[key])
        own = (Segment(key, draft.channels),)
        self.layouts[key] = own if draft.channels else ()  # for a group that reads itself
        sources = [self._joined(node) for node in nodes if node.is_concat(axis=1)]
        for node in nodes:
            if _is_stem(node) and is_depthwise(node.op.module):
                sources += [self._layout(i) for i in self._sources(node)]
        found = {own} if draft.channels else set()
        found |= set(sources)
        others = set(sources) - {own}
        one = Segment(next((s.group for other in others for s in other), ""), draft.channels)
        if one.group and others == {(one,)}:  # as a depthwise layer and the gate behind it
            self.drafts[one.group].refuse(draft.reason)
            draft.channels, sources = 0, [(one,)]
        elif len(found) > 1:
            self._refuse(found, "joins channels of several groups")
            draft.refuse("joins channels of several groups")
        if not draft.channels:
            shape = next((node.output_shape for node in nodes if node.output_shape), None) or (0, 0)
            fixed = Segment("", shape[1] if len(shape) > 1 else 0)
            self.layouts[key] = sources[0] if sources else (fixed,)
        return self.layouts[key]

    def _joined(self, concat: Any) -> Layout:
        """Return the channels that a concatenation joins, in their order."""
        parts: list[Segment] = []
        for name in concat.inputs:
            maker = self.makers.get(name)
            shape = (maker and maker.output_shape) or (0, 0)
            layout = self._layout(maker.node_group_ids[0]) if maker else ()
            size = sum(segment.channels * segment.block for segment in layout)
            block = shape[1] // size if len(shape) > 1 and size and shape[1] % size == 0 else 1
            parts += [Segment(s.group, s.channels, s.block * block) for s in layout]
            if maker is None:  # the network's input; its width is the rest
                parts.append(Segment("", 0))
        rest = [i for i, part in enumerate(parts) if not part.channels]
        if len(rest) == 1 and len(concat.output_shape or ()) > 1:
            known = sum(part.channels * part.block for part in parts)
            parts[rest[0]] = Segment("", concat.output_shape[1] - known)
        return tuple(parts)

    def _sources(self, node: Any) -> list[str]:
        """Return the node groups that a node reads."""
        return list(dict.fromkeys(i for n in self.found.incoming(node) for i in n.node_group_ids))

    def _place(self, key: str) -> None:
        """Give the tensors of a node group to the group whose channels they have, or follow."""
        draft, layout = self.drafts[key], self._layout(key)
        if draft.channels or not any(segment.group for segment in layout):
            return
        if len(layout) == 1 and layout[0].block == 1:
            whole = self.drafts[layout[0].group]
            whole.dims |= draft.dims
            whole.statistics += draft.statistics
            draft.dims, draft.statistics = {}, []
            return
        width = sum(segment.channels * segment.block for segment in layout)
        for name in [*draft.dims, *draft.statistics]:
            size = self.model.state_dict()[name].shape[draft.dims.get(name, 0)]
            if size != width or any(segment.block > 1 for segment in layout):
                self._refuse([layout], f"{name} has {size} channels of it and of others")
            self.cuts[name] = {draft.dims.get(name, 0): layout}
        ids = dict.fromkeys(self._id(segment.group) for segment in layout if segment.group)
        draft.reason = f"follows the channels of {', '.join(ids)}"

    def _read_inputs(self, node: Any) -> None:
        """Record whose channels a stem reads, and refuse those that its weight cannot lose."""
        layouts = {self._layout(key) for key in self._sources(node)}
        layer, own = node.op.module, self._layout(node.node_group_ids[0])
        tensor, sides = sides_of(layer)
        name = next((n for n in node.param_names if n.rpartition(".")[2] == tensor), "")
        if "in" not in sides or not name:
            name = name or (node.param_names[0] if node.param_names else node.op_name)
            self._refuse(layouts, f"{name} reads it and has inputs that cannot be cut")
            self._refuse([own], f"{name} has inputs that cannot be cut")
            return
        earlier = self.cuts.get(name, {}).get(sides["in"])
        layouts |= {earlier} if earlier else set()
        if len(layouts) > 1:
            self._refuse(layouts, f"{name} also reads other groups")
        for layout in layouts:
            width, total = _width(layer, "in"), sum(s.channels * s.block for s in layout)
            if not total or width % total:
                self._refuse([layout], f"{name} reads {width} channels of it")
                continue
            scaled = tuple(Segment(s.group, s.channels, s.block * width // total) for s in layout)
            self.cuts.setdefault(name, {})[sides["in"]] = scaled

    def _refuse(self, layouts: Iterable[Layout], reason: str) -> None:
        for segment in itertools.chain(*layouts):
            if segment.group:
                self.drafts[segment.group].refuse(reason)

    def _refuse_outputs(self) -> None:
        """Refuse all whose channels the network returns, and those that no layer could lose."""
        for key, node_group in self.found.node_groups.items():
            if node_group.contain_some_nodes(self.found.output_nodes.values()):
                self._refuse([self._layout(key)], "reaches the output")
            for node in node_group:
                if node.op_name == "depthtospace":
                    self._refuse([self._layout(key)], "its channels become places of a map")

    def _id(self, key: str) -> str:
        """Return a group's id: its first layer in the model's order."""
        first = min(self.drafts[key].dims, key=self.names.index)
        return first.rpartition(".")[0] or first

    def _graph(self, example: Example) -> Graph:
        used = {name for draft in self.drafts.values() for name in draft.dims}
        drafts = {key: draft for key, draft in self.drafts.items() if draft.dims}
        ids = {key: self._id(key) for key in drafts}
        for key, draft in drafts.items():
            if draft.channels:
                for name, dim in (draft.dims | dict.fromkeys(draft.statistics, 0)).items():
                    self.cuts.setdefault(name, {})[dim] = (Segment(key, draft.channels),)
        cuts = {
            name: {
                dim: tuple(Segment(ids.get(s.group, ""), s.channels, s.block) for s in dims[dim])
                for dim in sorted(dims)
            }
            for name, dims in self.cuts.items()
        }
        groups = [
            self._group(ids[key], draft, self._followers(ids[key], draft, cuts))
            for key, draft in drafts.items()
        ]
        apart = {name for draft in self.drafts.values() for name in draft.apart}
        unused = dict.fromkeys((n for n in self.names if n not in used | apart), 0)
        rest = [_Draft(1, UNUSED, unused)] * bool(unused)
        rest += [_Draft(1, "has no dimension of channels", {name: 0}) for name in sorted(apart)]
        for draft in rest:
            first = next(iter(draft.dims))
            groups.append(self._group(first.rpartition(".")[0] or first, draft, ()))
        groups.sort(key=lambda group: self.names.index(group.names[0]))
        return Graph(self.model, tuple(groups), cuts, _layer_edges(self.found), example)

    def _group(self, id_: str, draft: _Draft, followers: tuple[str, ...]) -> Group:
        own = tuple(name for name in self.names if name in draft.dims)
        layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in own))
        dims = tuple(draft.dims[name] for name in own)
        return Group(id_, own, dims, draft.channels or 1, layers, draft.reason, followers)

    def _followers(self, id_: str, draft: _Draft, cuts: Any) -> tuple[str, ...]:
        """Return parameters of other groups whose own dimension has this group's channels."""
        following = {
            name
            for other in self.drafts.values()
            if not other.channels
            for name, dim in other.dims.items()
            if any(segment.group == id_ for segment in cuts.get(name, {}).get(dim, ()))
        }
        return tuple(name for name in self.names if name in following - draft.dims.keys())


def read_graph(found: Any, model: nn.Module, example: Example) -> Graph:
    """Convert the package's graph, made of a copy of ``model``, into a `Graph` of ``model``."""
    return _Reader(found, model).read(example)


def _is_stem(node: Any) -> bool:
    return node.op is not None and node.op.is_stem


def _width(layer: nn.Module, side: str) -> int:
    """Return the ``in`` or ``out`` channels of a layer."""
    name, sides = sides_of(layer)
    if side not in sides:  # a grouped convolution
        return layer.out_channels
    return getattr(layer, name).shape[sides[side]]


def _refusal(node_group: Any, found: Any) -> str:
    if node_group.contain_some_nodes(found.output_nodes.values()):
        return "reaches the output"
    return "only_train_once marks it unprunable"


def _layer_edges(found: Any) -> tuple[tuple[str, str], ...]:
    """Return pairs of layers where the first's output reaches the second, through free nodes.

    Nodes without parameters are free: an edge passes through them. A node that the input does not
    reach computes on parameters, so they count as those of the nodes that it feeds.
    """
    import networkx as nx  # takes long to import, and a trained network is not traced

    nodes = nx.DiGraph()
    nodes.add_nodes_from(found.nodes)
    nodes.add_edges_from((s, t) for s, t, _ in found.edges if s in found.nodes and t in found.nodes)
    data = {"dummy_input"} | nx.descendants(nodes, "dummy_input")
    feeds = nx.restricted_view(nodes, [], [(s, t) for s, t in nodes.edges if s in data])
    layers = {
        node: {
            name.rpartition(".")[0]
            for part in {node} | nx.ancestors(feeds, node)
            for name in found.nodes[part].param_names
        }
        for node in data
    }
    layers |= {"dummy_input": {"input"}, "dummy_output": {"output"}}
    nodes.remove_nodes_from(found.nodes.keys() - data)
    for node in [node for node in data if not layers[node]]:
        nodes.add_edges_from(itertools.product(nodes.pred[node], nodes.succ[node]))
        nodes.remove_node(node)
    pairs = {pair for s, t in nodes.edges for pair in itertools.product(layers[s], layers[t])}
    return tuple(sorted((s, t) for s, t in pairs if s != t))
