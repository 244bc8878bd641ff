"""How important each channel is, and which ones to remove.

The five proxies of HESSO (Chen et al., OTOv3, https://arxiv.org/abs/2312.09411, and GETA,
https://arxiv.org/abs/2502.16638). x is all that a channel owns, v what the base optimizer is about
to move it by, both flattened over all tensors of its group.

Letters: G channels of one group, N channels of all groups.
"""

import heapq
from collections.abc import Mapping, Sequence

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

_SAFE = 1e-8


def proxies(
    params: Sequence[Tensor], moves: Sequence[Tensor | None], dims: Sequence[int]
) -> Tensor:
    """Return the five proxies of the channels of one group: ``(5, G)``, in the order of PROXIES.

    Magnitude ``|x|``; average magnitude ``|x| / number of entries``; cosine
    ``1 + <x, v> / (|x| |v|)``; first-order Taylor ``|<x, v>|``; second-order ``<x, v>^2 / 2``.

    Args:
        params: the group's tensors.
        moves: v for each tensor; None where it had no gradient, which leaves the tensor out of
            the last three.
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
    cosine = product / (square_moved.sqrt() + _SAFE) / (square_v.sqrt() + _SAFE) + 1
    taylor = product.abs()
    rows = [magnitude, magnitude / (entries + 1e-6), cosine, taylor, 0.5 * taylor**2]
    return torch.stack([row.expand_as(magnitude) for row in rows])


def weigh(raw: Tensor, criteria: Mapping[str, float]) -> Tensor:
    """Scale each proxy to length 1 over all channels and by its weight: ``(5, N)`` to the same.

    The column sums are the scores; a small one means a channel that can go.
    """
    weights = raw.new_tensor([criteria.get(name, 0.0) for name in PROXIES])
    length = ((raw**2).sum(dim=1) + _SAFE).sqrt() + _SAFE
    return raw * (weights / length).unsqueeze(1)


def removable(channels: int, divisible: int) -> int:
    """Return how many of a group's channels may go: ``divisible`` stay, a smaller group whole."""
    return max(channels - max(divisible, 1), 0)


def choose(
    scores: Sequence[Sequence[float]],
    removed: Sequence[Sequence[int]],
    quota: int,
    divisible: int = 1,
) -> list[list[int]]:
    """Choose the next channels to remove, over all groups.

    With ``divisible`` 1 these are the ``quota`` lowest scores among the channels still there, save
    that the last channel of a group stays. With ``divisible`` m, channels go in bundles that leave
    a multiple of m in their group; a bundle is as low as the mean of its scores, and bundles are
    taken lowest first as long as they fit in the quota. Up to m - 1 of the quota can be left over.
    Equal scores go by group, then by channel.

    Args:
        scores: for each group, a score for each of its channels.
        removed: for each group, the channels that have gone.
        quota: how many to choose.
        divisible: m, what the channels left in a group have to be a multiple of. A group of fewer
            than m channels stays whole.

    Returns:
        For each group, the chosen channels in the order in which they were chosen.
    """
    m = max(divisible, 1)
    chosen: list[list[int]] = [[] for _ in scores]
    queues = []  # for each group its channels, lowest first
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
