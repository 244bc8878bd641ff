"""Groups of tensors that share channels, and the arithmetic over them.

Removing output channel ``c`` of a convolution also removes channel ``c`` of its batch
normalisation and of every convolution that is added to it. Such a set of tensors is a `Group`. Each
of its channels can leave separately, from all of its tensors at once.

Letters: G channels of one group, R numbers that one channel owns in one tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    id: str
    names: tuple[str, ...]
    dims: tuple[int, ...]
    channels: int
    layers: tuple[str, ...]
    reason: str


def channel_rows(tensor: Tensor, dim: int) -> Tensor:
    """Return ``tensor`` with one row per channel: ``(G, R)``."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def zero_channels(tensors: Sequence[Tensor], dims: Sequence[int]) -> Tensor:
    """Return which channels are exactly zero in every tensor: bool ``(G,)``."""
    zero = [
        (channel_rows(t.detach(), d) == 0).all(dim=1) for t, d in zip(tensors, dims, strict=True)
    ]
    return torch.stack(zero).all(dim=0)
