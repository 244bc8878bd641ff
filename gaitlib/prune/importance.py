"""How important each channel is by HESSO's five scores.

The five proxies of HESSO (Chen et al., OTOv3, https://arxiv.org/abs/2312.09411, and GETA,
https://arxiv.org/abs/2502.16638). x is all the numbers that a channel owns, v the base optimizer's
next move of them. Both are flattened over all tensors of the channel's group.

Letters: G channels of one group, N channels of all groups.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gaitlib.prune.channel_groups import channel_rows

PROXIES = (
    "magnitude",
    "avg_magnitude",
    "cosine_similarity",
    "taylor_first_order",
    "taylor_second_order",
)

#: Returns the base optimizer's next move of each tensor of a group; None without a gradient.
Moves = Callable[[dict[str, Any]], Sequence[Tensor | None]]

_EPS = 1e-8  # keeps divisions finite


def proxies(
    params: Sequence[Tensor], moves: Sequence[Tensor | None], dims: Sequence[int]
) -> Tensor:
    """Return the five proxies of the channels of one group: ``(5, G)``, in the order of PROXIES.

    Magnitude ``|x|``; average magnitude ``|x| / number of entries``; cosine
    ``1 + <x, v> / (|x| |v|)``; first-order Taylor ``|<x, v>|``; second-order ``<x, v>^2 / 2``.

    Args:
        params: the group's tensors.
        moves: v for each tensor; None without a gradient, and the last three proxies then skip the
            tensor.
        dims: for each tensor, the dimension of the channels.
    """
    square_x = square_moved = square_v = product = torch.zeros((), device=params[0].device)
    entries = 0
    for param, move, dim in zip(params, moves, dims, strict=True):
        x = channel_rows(param.detach(), dim)
        square = x.norm(dim=1) ** 2
        square_x = square_x + square
        entries += x.shape[1]
        if move is not None:
            v = channel_rows(move, dim)
            square_moved = square_moved + square
            square_v = square_v + v.norm(dim=1) ** 2
            product = product + (x * v).sum(dim=1)
    magnitude = square_x.sqrt()
    cosine = product / (square_moved.sqrt() + _EPS) / (square_v.sqrt() + _EPS) + 1
    taylor = product.abs()
    rows = [magnitude, magnitude / (entries + 1e-6), cosine, taylor, 0.5 * taylor**2]
    return torch.stack([row.expand_as(magnitude) for row in rows])


def weigh(raw: Tensor, criteria: Mapping[str, float]) -> Tensor:
    """Scale each proxy to length 1 over all channels, then by its weight: ``(5, N)`` to ``(5, N)``.

    The column sums are the scores. Channels with the lowest scores leave first.
    """
    weights = raw.new_tensor([criteria[name] for name in PROXIES])
    length = ((raw**2).sum(dim=1) + _EPS).sqrt() + _EPS
    return raw * (weights / length).unsqueeze(1)


def five_scores(
    groups: Sequence[dict[str, Any]], moves: Moves, criteria: Mapping[str, float]
) -> Tensor:
    """Return the weighted proxies of the channels of all parameter groups, ``(5, N)``."""
    raw = [proxies(g["params"], moves(g), g["p_dims"]).float() for g in groups]
    return weigh(torch.cat(raw, dim=1), criteria)
