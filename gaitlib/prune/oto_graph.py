"""Convert only_train_once's graph of a network into a `Graph` of plain values.

It reads the package's node groups (tensors that share channels), nodes (operations, some of a
layer) and edges, and does not change them. This file does not import the package.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gaitlib.model.float_state import of_quantizer
from gaitlib.prune.channel_groups import Group
from gaitlib.prune.graph import Graph

_INPUT_DIMS = {"Conv2d": 1, "Linear": 1, "SeparateFCs": 1}  # dimension that reads the input


@dataclass
class _Draft:
    """A group while it is read; ``dims`` maps a parameter's name to the dimension of channels."""

    channels: int
    reason: str
    dims: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        self.reason = self.reason or reason


def read_graph(found: Any, model: nn.Module) -> Graph:
    """Convert the package's graph, made of a copy of ``model``, into a `Graph` of ``model``."""
    names = [name for name, _ in model.named_parameters() if not of_quantizer(name)]
    drafts = _draft_groups(found, model)
    inputs = _input_sources(found, drafts, model)
    used = {name for draft in drafts.values() for name in draft.dims}
    unused = {name: 0 for name in names if name not in used}
    drafts[""] = _Draft(1, "not used by the traced forward pass", unused)
    groups: dict[str, Group] = {}  # by the package's id
    cuts: list[tuple[str, int, str]] = []
    for key, draft in drafts.items():
        if not draft.dims:
            continue
        own = tuple(name for name in names if name in draft.dims)
        dims = tuple(draft.dims[name] for name in own)
        layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in own))
        id_ = layers[0] or own[0]
        groups[key] = Group(id_, own, dims, draft.channels, layers, draft.reason)
        statistics = [
            f"{layer}.{name}"
            for layer in layers
            for name, buffer in model.get_submodule(layer).named_buffers(recurse=False)
            if buffer.dim() == 1
        ]
        if not draft.reason:
            cuts += [(name, dim, id_) for name, dim in zip(own, dims, strict=True)]
            cuts += [(name, 0, id_) for name in statistics]
    for name, (dim, source) in inputs.items():
        if not drafts[source].reason:
            cuts.append((name, dim, groups[source].id))
    by_name: dict[str, dict[int, str]] = {}
    for name, dim, id_ in sorted(cuts, key=lambda cut: cut[1]):
        by_name.setdefault(name, {})[dim] = id_
    ordered = sorted(groups.values(), key=lambda group: names.index(group.names[0]))
    return Graph(model, tuple(ordered), by_name, _layer_edges(found))


def _draft_groups(found: Any, model: nn.Module) -> dict[str, _Draft]:
    """Read the package's node groups; if two list the same parameter, neither is prunable."""
    drafts: dict[str, _Draft] = {}
    owner: dict[str, _Draft] = {}
    for node_group in found.node_groups.values():
        listed = node_group.get_param_groups()
        draft = _Draft(node_group.get_num_groups(), _refusal(node_group, found))
        drafts[node_group.id] = draft
        for name, transform in zip(listed["p_names"], listed["p_transform"], strict=True):
            if owner.setdefault(name, draft) is not draft:
                draft.refuse(f"shares {name} with another group")
                owner[name].refuse(f"shares {name} with another group")
                continue
            shape = model.get_parameter(name).shape
            draft.dims[name] = dim = int(transform.name == "TRANSPOSE" and len(shape) > 1)
            if shape[dim] != draft.channels:
                draft.refuse(f"{name} has {shape[dim]} channels, the group {draft.channels}")
    return drafts


def _refusal(node_group: Any, found: Any) -> str:
    if node_group.contain_some_nodes(found.output_nodes.values()):
        return "reaches the output"
    if node_group.is_auxiliary:
        return "joins channels of several groups"
    if not node_group.contain_stem_op():
        return "has no layer that makes channels"
    return "" if node_group.is_prunable else "only_train_once marks it unprunable"


def _input_sources(
    found: Any, drafts: dict[str, _Draft], model: nn.Module
) -> dict[str, tuple[int, str]]:
    """Return the group that each weight reads: name -> (input dimension, node group id).

    Marks a group unprunable if the weight that reads it cannot be cut.
    """
    sources: dict[str, tuple[int, str]] = {}
    for node in found.nodes.values():
        if node.op is None or not node.op.is_stem:
            continue
        before = {i for n in found.incoming(node) for i in n.node_group_ids}
        weights = [name for name in node.param_names if model.get_parameter(name).dim() > 1]
        dim = _INPUT_DIMS.get(node.op._type)
        for source, name in itertools.product(before, weights):
            draft, shape = drafts[source], model.get_parameter(name).shape
            if dim is None or getattr(node.op.module, "groups", 1) != 1:
                draft.refuse(f"{name} reads it and has inputs that cannot be cut")
                drafts[node.node_group_ids[0]].refuse(f"{name} has inputs that cannot be cut")
            elif draft.dims and shape[dim] != draft.channels:
                draft.refuse(f"{name} reads {shape[dim]} channels of it")
            elif sources.setdefault(name, (dim, source)) != (dim, source):
                for reader in (draft, drafts[sources[name][1]]):
                    reader.refuse(f"{name} also reads other groups")
    return sources


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
