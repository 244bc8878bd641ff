"""How important each channel is, and which ones to remove.

The five proxies of HESSO (Chen et al., OTOv3, https://arxiv.org/abs/2312.09411, and GETA,
https://arxiv.org/abs/2502.16638). x is all the numbers that a channel owns, v the base optimizer's
next move of them. Both are flattened over all tensors of the channel's group.

Letters: G channels of one group, N channels of all groups.
"""

import heapq
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
    weights = raw.new_tensor([criteria.get(name, 0.0) for name in PROXIES])
    length = ((raw**2).sum(dim=1) + _EPS).sqrt() + _EPS
    return raw * (weights / length).unsqueeze(1)


def five_scores(
    groups: Sequence[Mapping[str, Any]],
    moves: Callable[[dict[str, Any]], Sequence[Tensor | None]],
    criteria: Mapping[str, float],
) -> Tensor:
    """Return the weighted proxies of the channels of all parameter groups, ``(5, N)``."""
    raw = [proxies(g["params"], moves(g), g["p_dims"]).float() for g in groups]
    return weigh(torch.cat(raw, dim=1), criteria)


def removable(channels: int, divisible: int) -> int:
    """Return how many of a group's channels may leave, so that ``divisible`` or more stay."""
    return max(channels - max(divisible, 1), 0)


def choose(
    scores: Sequence[Sequence[float]],
    removed: Sequence[Sequence[int]],
    quota: int,
    divisible: int = 1,
) -> list[list[int]]:
    """Choose the next channels to remove, over all groups.

    With ``divisible`` 1 it chooses the ``quota`` lowest scores among the remaining channels, but
    never the last channel of a group.

    With ``divisible`` m, channels leave in bundles, so that each group keeps a multiple of m. The
    score of a bundle is the mean of its channels' scores. Bundles are taken lowest first, as long
    as they fit into the quota; up to m - 1 of the quota can remain unused.

    Ties are broken by group, then by channel.

    Args:
        scores: for each group, a score for each of its channels.
        removed: for each group, the channels removed before.
        quota: how many to choose.
        divisible: m; each group keeps a multiple of it. A group of fewer than m channels keeps all.

    Returns:
        For each group, the chosen channels in the order in which they were chosen.
    """
    m = max(divisible, 1)
    chosen: list[list[int]] = [[] for _ in scores]
    queues = []  # the remaining channels of each group, lowest score first
    for values, gone in zip(scores, removed, strict=True):
        left = set(range(len(values))) - set(gone)
        queues.append(sorted(left, key=lambda c, values=values: (values[c], c)))

    def next_bundle(group: int) -> tuple[float, int, list[int]] | None:
        queue = queues[group]
        size = len(queue) % m or m
        if len(scores[group]) < m or len(queue) - size < m:
            return None
        bundle = queue[:size]
        return sum(scores[group][c] for c in bundle) / size, group, bundle

    heap = [bundle for group in range(len(scores)) if (bundle := next_bundle(group))]
    heapq.heapify(heap)
    while heap and quota > 0:
        _, group, bundle = heapq.heappop(heap)
        if len(bundle) > quota:
            continue  # a smaller bundle of another group may still fit
        quota -= len(bundle)
        chosen[group] += bundle
        del queues[group][: len(bundle)]
        if (following := next_bundle(group)) is not None:
            heapq.heappush(heap, following)
    return chosen
