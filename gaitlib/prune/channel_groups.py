"""Groups of tensors that share channels, and the arithmetic over them.

Removing output channel ``c`` of a convolution also removes channel ``c`` of its batch
normalisation and of every convolution that is added to it. Such a set of tensors is a `Group`. Each
of its channels can leave separately, from all of its tensors at once.

A dimension of a tensor is made of `Segment`s: behind a concatenation, one for each part.

Letters: G channels of one group, R numbers that one channel owns in one tensor.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A set of tensors of one model that share channels.

    Attributes:
        id: name of its first layer in the model's order; unique.
        names: parameter names, in the model's order, each once.
        dims: for each name, the dimension of the channels.
        channels: G, the number of channels.
        layers: names of the modules that own the parameters.
        reason: why no channel may leave; empty if channels may.
        followers: names of parameters of other groups that have a segment of this group's channels
            in their first dimension, such as a batch norm behind a concatenation. They become zero
            and leave with the channels.
    """

    id: str
    names: tuple[str, ...]
    dims: tuple[int, ...]
    channels: int
    layers: tuple[str, ...]
    reason: str
    followers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segment:
    """Consecutive places of one dimension of a tensor.

    Attributes:
        group: id of the group whose channels they are, in their order; empty if no group's.
        channels: how many channels, of the whole network.
        block: places of each channel: 1, or behind a flatten the size of the map.
    """

    group: str
    channels: int
    block: int = 1

    def places(self, start: int, channels: Tensor) -> Tensor:
        """Return the places of channels, given by their number, if the segment begins at start."""
        return (start + channels.unsqueeze(1) * self.block + torch.arange(self.block)).flatten()


def spans(
    segments: Sequence[Segment], left: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Segment, int, int]]:
    """Yield each segment with its first place and its channels, in a network with those left."""
    start = 0
    for segment in segments:
        count = len(left[segment.group]) if segment.group in left else segment.channels
        yield segment, start, count
        start += count * segment.block


def channel_rows(tensor: Tensor, dim: int) -> Tensor:
    """Return ``tensor`` with one row per channel: ``(G, R)``."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def group_tensors(
    group: Mapping[str, Any],
    groups: Iterable[Mapping[str, Any]],
    left: Mapping[str, Sequence[int]],
) -> Iterator[tuple[str, Tensor, int, int]]:
    """Yield the tensors that have the channels of a parameter group, also those that follow it.

    Args:
        group: of ``Graph.param_groups``.
        groups: all parameter groups, which hold the tensors that follow.
        left: the channels that the network still has, by group id; all of a group that is missing.

    Yields:
        Name, tensor, the dimension of the channels, and the first one's place in it.
    """
    for name, param, dim in zip(group["p_names"], group["params"], group["p_dims"], strict=True):
        yield name, param, dim, 0
    for name, parts in group["followers"].items():
        owner = next(g for g in groups if name in g["p_names"])
        param = owner["params"][owner["p_names"].index(name)]
        for segment, start, _ in spans([Segment(*part) for part in parts], left):
            if segment.group == group["id"]:
                yield name, param, 0, start
