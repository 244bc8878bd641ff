"""Re-rank a gallery: items are near whose nearest neighbours are the same.

k-reciprocal encoding (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017, https://arxiv.org/abs/1701.08398). It also reads the other probes, so use it
only where they are known together, as in a submission. The constants are those of OpenGait's
HID_submission, which encodes plain distances instead of squared ones, in half precision.
"""

import numpy as np
import torch
from torch import Tensor

#: Neighbours of an item, neighbours that its encoding is averaged over, and the weight of the
#: distance itself: k1, k2 and lambda of the paper.
K1, K2, DISTANCE_WEIGHT = 6, 6, 0.3
#: A neighbour's own neighbours join if more than this share of them is among the item's.
COMMON_SHARE = 2 / 3

Encoding = tuple[np.ndarray, np.ndarray]


def rerank(between: Tensor, probes: int) -> Tensor:
    """Return new distances between probes and gallery, float64 ``(probes, n - probes)``.

    They are ``(1 - DISTANCE_WEIGHT)`` times the Jaccard distance of the items' neighbourhoods, plus
    ``DISTANCE_WEIGHT`` times the distance as a share of the item's largest one (equation 12).

    Args:
        between: distances of all n items ``(n, n)``, symmetric, the probes first.
        probes: their number.
    """
    distances = between.cpu().numpy()
    largest = np.maximum(distances.max(1), np.finfo(np.float32).tiny).astype(np.float64)
    nearest = np.stack([row.argsort(kind="stable")[: K1 + 1] for row in distances])
    encodings = [_encode(item, nearest, row / largest[item]) for item, row in enumerate(distances)]
    encodings = [_mean([encodings[other] for other in row[:K2]]) for row in nearest]
    columns = _columns(encodings)
    found = np.empty((probes, len(nearest) - probes))
    for probe, (items, weights) in enumerate(encodings[:probes]):
        common = np.zeros(len(nearest))
        for item, weight in zip(items, weights, strict=True):
            rows, theirs = columns[item]
            common[rows] += np.minimum(weight, theirs)
        jaccard = 1 - common / (2 - common)  # each encoding sums to 1 (equation 10)
        found[probe] = (1 - DISTANCE_WEIGHT) * jaccard[probes:]
        found[probe] += DISTANCE_WEIGHT * distances[probe, probes:] / largest[probe]
    return torch.from_numpy(found)


def _reciprocal(item: int, nearest: np.ndarray, k: int) -> np.ndarray:
    """Return those of an item's k nearest that count it among theirs (equation 3)."""
    own = nearest[item, : k + 1]  # the item itself is one of them
    return own[(nearest[own, : k + 1] == item).any(1)]


def _encode(item: int, nearest: np.ndarray, distances: np.ndarray) -> Encoding:
    """Return the items of a neighbourhood and their weights, which sum to 1 (equations 5 and 7)."""
    own = _reciprocal(item, nearest, K1)
    members = [own]
    for neighbour in own:
        others = _reciprocal(neighbour, nearest, K1 // 2)
        if np.isin(others, own).sum() > COMMON_SHARE * len(others):
            members.append(others)
    items = np.unique(np.concatenate(members))
    weights = np.exp(-distances[items])
    return items, weights / weights.sum()


def _mean(encodings: list[Encoding]) -> Encoding:
    """Return the mean of an item's and its neighbours' encodings (equation 11)."""
    items, place = np.unique(np.concatenate([one for one, _ in encodings]), return_inverse=True)
    weights = np.concatenate([weights for _, weights in encodings])
    return items, np.bincount(place, weights, minlength=len(items)) / len(encodings)


def _columns(encodings: list[Encoding]) -> list[Encoding]:
    """Return for each item the items whose encodings hold it, and its weights there."""
    items = np.concatenate([one for one, _ in encodings])
    weights = np.concatenate([weights for _, weights in encodings])
    rows = np.repeat(np.arange(len(encodings)), [len(one) for one, _ in encodings])
    order = items.argsort(kind="stable")
    ends = np.searchsorted(items[order], np.arange(1, len(encodings)))
    return list(zip(np.split(rows[order], ends), np.split(weights[order], ends), strict=True))
