"""Losses on embeddings and logits: batch-all triplets, cross-entropy, and their weighted sum.

As in OpenGait, every part has a separate loss, and the losses of the parts are averaged. Values are
computed in float32, for any precision of the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaitlib.model.gaitbase import GaitOutput
from gaitlib.system.errors import UserError


def pairwise_distances(x: Tensor) -> Tensor:
    """Return Euclidean distances between all rows, with gradient 0 where two rows are equal.

    Args:
        x: float32 ``(P, N, C)``.

    Returns:
        ``(P, N, N)``.
    """
    squares = x.square().sum(-1)  # (P, N)
    squared = squares[:, :, None] + squares[:, None, :] - 2 * x @ x.mT  # (P, N, N)
    apart = squared > 0  # sqrt has no slope at 0, and rounding makes some values negative
    return torch.where(apart, squared, 1).sqrt() * apart


class TripletLoss(nn.Module):
    """Batch-all triplet loss: a positive has to be nearer than a negative by ``margin``.

    For each part, take the mean of ``max(0, margin + d(a, p) - d(a, n))`` over the triplets where
    it is not zero (0 if there is none); then take the mean over parts. Anchor, positive and
    negative run over all clips of a batch. As in OpenGait the anchor is also one of its positives,
    so every negative has to be at least ``margin`` away. After Hermans et al., 2017,
    https://arxiv.org/abs/1703.07737.

    Subjects may have different numbers of clips. Memory is P * N * K * (N - k) floats instead of
    P * N**3, where K and k are the most and the fewest clips of one subject in the batch.

    Args:
        margin: how much nearer a clip of the same subject has to be than one of another.

    Shape:
        embeddings: ``(N, C, P)``
        labels: ``(N,)`` integers
        returns: the loss, and detached scalars averaged over parts: ``loss``, ``hard_loss`` (the
            largest triplet), ``loss_num`` (number of triplets that are not zero), ``mean_dist``
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the scalars to log."""
        with torch.autocast(embeddings.device.type, enabled=False):
            distances = pairwise_distances(embeddings.float().permute(2, 0, 1))  # (P, N, N)
            hinges = F.relu(self.margin + self._differences(distances, labels))
        counts = hinges.count_nonzero(1)  # (P,)
        loss = (hinges.sum(1) / counts.clamp_min(1)).mean()
        with torch.no_grad():
            scalars = {
                "loss": loss.detach(),
                "hard_loss": F.pad(hinges, (0, 1)).amax(1).mean(),
                "loss_num": counts.float().mean(),
                "mean_dist": distances.mean(),
            }
        return loss, scalars

    @staticmethod
    def _differences(distances: Tensor, labels: Tensor) -> Tensor:
        """Return d(a, p) - d(a, n) of all triplets ``(P, triplets)``; -inf where there is none."""
        parts, n, _ = distances.shape
        same = labels[:, None] == labels[None, :]  # (N, N)
        num_positives = same.sum(1)  # (N,) clips of each anchor's subject
        most, fewest = int(num_positives.max()), int(num_positives.min())
        # Each row lists the anchor's positives first, then its negatives.
        order = same.byte().argsort(dim=1, descending=True, stable=True)
        ordered = distances.gather(2, order.expand(parts, n, n))
        differences = ordered[:, :, :most, None] - ordered[:, :, None, fewest:]
        if most != fewest:
            # For some anchors, the slices then hold negatives among positives, or the reverse.
            rank = torch.arange(n, device=labels.device)
            is_positive = rank < num_positives[:, None]  # (N, N)
            valid = is_positive[:, :most, None] & ~is_positive[:, None, fewest:]
            differences = differences.masked_fill(~valid, -torch.inf)
        return differences.flatten(1)


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of scaled cosine logits, averaged over clips and parts.

    Args:
        scale: factor on the logits, which lie in -1..1.
        label_smooth: spread ``eps`` of the target equally over all classes.
        eps: the share of the target to spread.
        log_accuracy: report the share (0..1) of clips and parts whose largest logit is correct.

    Shape:
        logits: ``(N, K, P)``
        labels: ``(N,)`` integers in 0..K-1
        returns: the loss, and detached scalars: ``loss``, ``accuracy``
    """

    def __init__(
        self,
        scale: float = 16.0,
        label_smooth: bool = True,
        eps: float = 0.1,
        log_accuracy: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.smoothing = eps if label_smooth else 0.0
        self.log_accuracy = log_accuracy

    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the scalars to log."""
        targets = labels[:, None].expand(-1, logits.size(2))  # (N, P)
        with torch.autocast(logits.device.type, enabled=False):
            scaled = logits.float() * self.scale
            loss = F.cross_entropy(scaled, targets, label_smoothing=self.smoothing)
        scalars = {"loss": loss.detach()}
        if self.log_accuracy:
            scalars["accuracy"] = (logits.detach().argmax(1) == targets).float().mean()
        return loss, scalars


def divergence(logits: Tensor, teacher: Tensor, scale: float, temperature: float = 4.0) -> Tensor:
    """Return how far a network's classes are from a teacher's, averaged over parts.

    ``T^2 KL(softmax(scale teacher / T) || softmax(scale logits / T))``, the distillation loss of
    Hinton et al., 2015, https://arxiv.org/abs/1503.02531, for each part.

    Args:
        logits: of the network, ``(N, K, P)``.
        teacher: its teacher's, in the same form.
        scale: of the cross-entropy that both were trained with.
        temperature: T.

    Returns:
        float32 ``(N,)``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        ours, theirs = (
            F.log_softmax(x.float() * scale / temperature, 1) for x in (logits, teacher)
        )
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1).mean(1)


class GaitLoss(nn.Module):
    """The weighted sum of losses: triplets on embeddings, cross-entropy on logits.

    Args:
        terms: the weight and the loss, by name (OpenGait's ``log_prefix``).
    """

    def __init__(self, terms: Mapping[str, tuple[float, TripletLoss | CrossEntropyLoss]]) -> None:
        super().__init__()
        if not terms:
            raise UserError("loss_cfg is empty: give at least one loss")
        self.terms = dict(terms)  # no ModuleDict: losses hold no tensors; names may contain a dot

    def forward(self, output: GaitOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total, and each term's detached, unweighted scalars as ``<name>/<scalar>``.

        Raises:
            UserError: if a loss needs logits and the network has no BNNecks.
        """
        total: Tensor | float = 0.0
        logged = {}
        for name, (weight, loss) in self.terms.items():
            value = output.embeddings if isinstance(loss, TripletLoss) else output.logits
            if value is None:
                raise UserError(f"the loss {name!r} needs logits, and the network has no BNNecks")
            term, scalars = loss(value, labels)
            total = total + weight * term
            logged |= {f"{name}/{key}": scalar for key, scalar in scalars.items()}
        return total, logged


LOSSES = {
    "TripletLoss": (TripletLoss, "triplet"),
    "CrossEntropyLoss": (CrossEntropyLoss, "softmax"),
}


def build_losses(loss_cfg: Sequence[Mapping[str, Any]]) -> GaitLoss:
    """Build the sum of losses from a list like OpenGait's ``loss_cfg``.

    Args:
        loss_cfg: ``type``, ``loss_term_weight`` (1), ``log_prefix`` (``triplet`` or ``softmax``)
            and the arguments of the class named by ``type``.

    Raises:
        UserError: for an unknown type, or two losses with one ``log_prefix``.
        TypeError: for an argument the named class does not take.
    """
    terms = {}
    for entry in loss_cfg:
        arguments = dict(entry)
        kind = arguments.pop("type", None)
        if kind not in LOSSES:
            raise UserError(f"unknown loss_cfg type {kind!r}; choose from {sorted(LOSSES)}")
        loss, name = LOSSES[kind]
        name = arguments.pop("log_prefix", name)
        if name in terms:
            raise UserError(f"two losses have the log_prefix {name!r}: give each its own")
        weight = arguments.pop("loss_term_weight", 1.0)
        terms[name] = (weight, loss(**arguments))
    return GaitLoss(terms)
