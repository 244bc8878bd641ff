"""Convert only_train_once's graph of a network into a `Graph` of plain values.

It reads the package's node groups (tensors that share channels), nodes (operations, some of a
layer) and edges, and does not change them. This file does not import the package.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gaitlib.model.float_state import of_quantizer
from gaitlib.prune.channel_groups import Group
from gaitlib.prune.graph import Cut, Graph

_CHANNEL_DIMS = {"BASIC": 0, "ACCESSORY": 0, "TRANSPOSE": 1}
_INPUT_DIMS = {"Conv2d": 1, "Linear": 1, "SeparateFCs": 1}  # dimension that reads the input


@dataclass
class _Draft:
    """A group while it is read; ``transforms`` maps parameter name to class name."""

    channels: int
    reason: str
    transforms: dict[str, str] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        self.reason = self.reason or reason


def read_graph(found: Any, model: nn.Module) -> Graph:
    """Convert the package's graph, made of a copy of ``model``, into a `Graph` of ``model``."""
    names = [name for name, _ in model.named_parameters()]
    order = {name: i for i, name in enumerate(names) if not of_quantizer(name)}
    drafts = _draft_groups(found, model)
    inputs = _input_sources(found, drafts, model)
    spare = _Draft(1, "not used by the traced forward pass")
    used = {name for draft in drafts.values() for name in draft.transforms}
    spare.transforms = dict.fromkeys(order.keys() - used, "BASIC")

    groups: list[Group] = []
    cuts: list[Cut] = []
    ids: dict[str, str] = {}
    for node_group_id, draft in [*drafts.items(), ("", spare)]:
        if not draft.transforms:
            continue
        names = sorted(draft.transforms, key=order.__getitem__)
        layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
        dims = [_channel_dim(draft.transforms[n], model.get_parameter(n)) for n in names]
        ids[node_group_id] = layers[0] or names[0]
        kinds = [draft.transforms[n].lower() for n in names]
        groups.append(
            Group(
                ids[node_group_id],
                tuple(names),
                tuple(dims),
                tuple(kinds),
                draft.channels,
                layers,
                draft.reason,
            )
        )
        if not draft.reason:
            cuts += [Cut(name, dim, groups[-1].id) for name, dim in zip(names, dims, strict=True)]
            cuts += [Cut(name, 0, groups[-1].id) for name in _statistics(model, layers)]
    for name, (dim, node_group_id) in inputs.items():
        if not drafts[node_group_id].reason:
            cuts.append(Cut(name, dim, ids[node_group_id]))
    groups.sort(key=lambda group: order[group.names[0]])
    return Graph(model, tuple(groups), tuple(cuts), tuple(_layer_edges(found)))


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
            draft.transforms[name] = transform.name
            shape = model.get_parameter(name).shape
            dim = _channel_dim(transform.name, model.get_parameter(name))
            if transform.name not in _CHANNEL_DIMS:
                draft.refuse(f"{name} is laid out by attention heads")
            elif shape[dim] != draft.channels:
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


def _channel_dim(transform: str, tensor: Tensor) -> int:
    return _CHANNEL_DIMS.get(transform, 0) if tensor.dim() > 1 else 0


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
        for source in before:
            for name in weights:
                shape = model.get_parameter(name).shape
                if dim is None or getattr(node.op.module, "groups", 1) != 1:
                    drafts[source].refuse(f"{name} reads it and has inputs that cannot be cut")
                    drafts[node.node_group_ids[0]].refuse(f"{name} has inputs that cannot be cut")
                elif drafts[source].transforms and shape[dim] != drafts[source].channels:
                    drafts[source].refuse(f"{name} reads {shape[dim]} channels of it")
                elif sources.setdefault(name, (dim, source)) != (dim, source):
                    drafts[source].refuse(f"{name} also reads other groups")
                    drafts[sources[name][1]].refuse(f"{name} also reads other groups")
    return sources


def _statistics(model: nn.Module, layers: Sequence[str]) -> Iterator[str]:
    """Yield the names of the running statistics of the batch norms among ``layers``."""
    for layer in layers:
        for name, buffer in model.get_submodule(layer).named_buffers(recurse=False):
            if buffer.dim() == 1:
                yield f"{layer}.{name}"


def _layer_edges(found: Any) -> Iterator[tuple[str, str]]:
    """Yield pairs of layers where the first's output reaches the second, through free nodes.

    Nodes without parameters are free: an edge passes through them.
    """
    after: dict[str, list[str]] = {node: [] for node in found.nodes}
    before: dict[str, list[str]] = {node: [] for node in found.nodes}
    for source, target, _ in found.edges:
        if source in after and target in after:
            after[source].append(target)
            before[target].append(source)
    data, queue = {"dummy_input"}, ["dummy_input"]
    while queue:  # collect the nodes that the input reaches; the others compute on parameters
        queue = [node for q in queue for node in after[q] if node not in data]
        data.update(queue)

    @functools.cache
    def layers(node: str) -> frozenset[str]:
        own = {name.rpartition(".")[0] for name in found.nodes[node].param_names}
        return frozenset(own).union(*(layers(n) for n in before[node] if n not in data))

    def reached(node: str, seen: set[str]) -> Iterator[str]:
        for target in after[node]:
            if target in seen:
                continue
            seen.add(target)
            if target == "dummy_output":
                yield "output"
            elif layers(target):
                yield from layers(target)
            else:
                yield from reached(target, seen)

    edges: dict[tuple[str, str], None] = {}
    for node in found.nodes:
        if node in data and node != "dummy_output":
            starts = {"input"} if node == "dummy_input" else layers(node)
            ends = list(reached(node, set())) if starts else []
            edges.update(dict.fromkeys((s, e) for s in starts for e in ends if s != e))
    yield from sorted(edges)
