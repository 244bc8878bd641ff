"""Embed whole sequences and measure how far apart they are."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitlib.data.batches import Batch
from gaitlib.model.eval_mode import in_eval_mode
from gaitlib.system.errors import UserError

METRICS = ("euc", "cos")

#: Squared distances below this share of the features' squared lengths (minus the gallery's mean)
#: are summed from differences: products lose two of float32's seven digits there.
NEAR_SHARE = 1e-2
PROBES_PER_PIECE = 256  # compared at a time
PAIRS_PER_PIECE = 2**13  # summed from differences at a time


def embed_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    transform: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Run ``model`` once over one process's share of a set, in evaluation mode.

    The mode of every submodule is restored afterwards (a frozen batch norm stays frozen). For half
    precision, wrap the call in ``torch.autocast``; the result is always float32.

    Args:
        model: on ``device``; called as ``model(sils, seqL)`` and read at ``.embeddings``.
        batches: concatenated clips, uint8 ``(1, sum of T, H, W)`` with lengths ``seqL``, or clips
            of one length, ``(N, T, H, W)`` with ``seqL`` None. May be empty.
        transform: uint8 ``(N, T, H, W)`` to float ``(N, T, H, W')``, on ``device``.
        device: to move the clips to.

    Returns:
        The sequences' indices, int64 ``(m,)``, and their features, float32 ``(m, C, P)``, in the
        order of the batches and on the CPU; without batches ``(0,)`` and ``(0, 0, 0)``.
    """
    found = [torch.empty(0, dtype=torch.int64)]
    pieces = []
    with in_eval_mode(model), torch.inference_mode():
        for batch in batches:
            seq_l = None if batch.seqL is None else batch.seqL.to(device)
            sils = transform(batch.clips.to(device, non_blocking=True))
            embeddings = model(sils, seq_l).embeddings  # (N, C, P)
            pieces.append(embeddings.float().cpu())
            found.append(batch.indices.cpu())
    return torch.cat(found), torch.cat(pieces) if pieces else torch.empty(0, 0, 0)


def collect(indices: Tensor, features: Tensor) -> Tensor:
    """Sort the features of a whole set in the order of its sequences.

    Args:
        indices: int64 ``(n,)``, 0..n-1 once each, in any order.
        features: ``(n, C, P)``, those of ``indices``.

    Returns:
        ``(n, C, P)``; row i is the sequence with index i.

    Raises:
        ValueError: an index is missing or repeated.
    """
    found, order = indices.sort()
    if found.tolist() != list(range(n := len(features))):
        raise ValueError(f"{n} features need each index of 0..{n - 1} once: {indices.tolist()}")
    return features[order]


def distance(probe: Tensor, gallery: Tensor, metric: str = "euc") -> Tensor:
    """Return the distance from every probe to every gallery item, as OpenGait measures it.

    ``euc`` is the mean over parts of the Euclidean distance, ``cos`` is one minus the mean over
    parts of the cosine. Euclidean distances are expanded into float32 products, as in OpenGait, but
    after subtracting the mean of the gallery. Features of one network share a large mean, next to
    which their differences would be lost in rounding. For nearly equal features, distances are
    summed from differences, so equal features are at distance 0. Besides the result, this needs
    memory for ``4 * PROBES_PER_PIECE * m`` numbers and twice the gallery.

    Args:
        probe: ``(n, C, P)`` on any device, finite.
        gallery: ``(m, C, P)`` on the same device, finite.
        metric: "euc" or "cos".

    Returns:
        float32 ``(n, m)``, smaller is closer.

    Raises:
        UserError: the metric is unknown, or the features differ in C or P.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; choose from {METRICS}")
    if probe.ndim != 3 or probe.shape[1:] != gallery.shape[1:]:
        raise UserError(
            f"probe {tuple(probe.shape)} and gallery {tuple(gallery.shape)} are not (n, C, P) "
            "and (m, C, P) with the same C and P"
        )
    probe, gallery = probe.float(), gallery.float()
    if metric == "cos":
        probe, gallery = F.normalize(probe, dim=1), F.normalize(gallery, dim=1)
    gallery = gallery.permute(2, 0, 1).contiguous()  # (P, m, C)
    if metric == "euc":
        mean = gallery.mean(1, keepdim=True)  # (P, 1, C)
        centred = gallery - mean
    rows = []
    for piece in probe.split(PROBES_PER_PIECE):
        piece = piece.permute(2, 0, 1).contiguous()  # (P, piece, C)
        if metric == "euc":
            rows.append(_euclidean(piece, piece - mean, gallery, centred))  # (piece, m)
        else:
            rows.append(1 - torch.bmm(piece, gallery.transpose(1, 2)).mean(0))  # (piece, m)
    return torch.cat(rows)


def _euclidean(
    probe: Tensor, centred_probe: Tensor, gallery: Tensor, centred_gallery: Tensor
) -> Tensor:
    """Return the mean over parts of the distances between ``(P, n, C)`` and ``(P, m, C)``.

    Args:
        probe: ``(P, n, C)``.
        centred_probe: the same minus a mean.
        gallery: ``(P, m, C)``.
        centred_gallery: the same minus that mean.
    """
    total = torch.zeros(probe.shape[1], gallery.shape[1], device=probe.device)
    for part, (x, y) in enumerate(zip(centred_probe, centred_gallery, strict=True)):
        lengths, others = x.square().sum(1), y.square().sum(1)
        squared = torch.addmm(others, x, y.T, alpha=-2).add_(lengths[:, None])  # (n, m)
        if squared.min() < NEAR_SHARE * (lengths.max() + others.max()):
            near = (squared < NEAR_SHARE * (lengths[:, None] + others)).nonzero()  # (pairs, 2)
            for rows, columns in (pairs.unbind(1) for pairs in near.split(PAIRS_PER_PIECE)):
                apart = probe[part, rows] - gallery[part, columns]
                squared[rows, columns] = apart.square_().sum(1)
        total += squared.sqrt_()
    return total / len(probe)
