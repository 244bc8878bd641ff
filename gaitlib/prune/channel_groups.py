"""Groups of channels that leave a network together, and the arithmetic over them.

Removing output channel ``c`` of a convolution also removes channel ``c`` of its batch
normalisation and of every convolution that is added to it. Such a set of tensors is a `Group`;
it holds ``channels`` of these minimal removal groups, one for each channel.

Letters: G channels of one group, R numbers that one channel owns in one tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Tensors of one model that share their channels.

    Attributes:
        id: name of its first layer in the model's order; unique.
        names: parameter names, in the model's order, each once.
        dims: for each name, the dimension that the channels run along.
        transforms: for each name, how only_train_once classed it (``basic``, ``accessory``, ...).
        channels: number of channels, the G of this group.
        layers: names of the modules that own the parameters.
        reason: why the group may not be pruned; empty when it may.
    """

    id: str
    names: tuple[str, ...]
    dims: tuple[int, ...]
    transforms: tuple[str, ...]
    channels: int
    layers: tuple[str, ...]
    reason: str = ""

    @property
    def prunable(self) -> bool:
        """Whether its channels may be removed."""
        return not self.reason


def channel_rows(tensor: Tensor, dim: int) -> Tensor:
    """Lay out ``tensor`` with a row for each channel: ``(G, R)``."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def zero_channels(tensors: Sequence[Tensor], dims: Sequence[int]) -> Tensor:
    """Tell which channels are exactly zero in every tensor: bool ``(G,)``."""
    zero = [
        (channel_rows(t.detach(), d) == 0).all(dim=1) for t, d in zip(tensors, dims, strict=True)
    ]
    return torch.stack(zero).all(dim=0)
