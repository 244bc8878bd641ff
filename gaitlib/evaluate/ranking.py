"""Rank the gallery for each probe: per gallery view, or in one gallery of all views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.evaluate.protocols import Protocol

#: Averages by their names in results.json: the column of hits.
AVERAGES = {"mAP": "ap", "mINP": "inp"}


def hits_per_view(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    views: Sequence[str],
    protocol: Protocol,
    remove_no_gallery: bool = False,
) -> dict[str, pd.DataFrame]:
    """Return 1 where one of a view's k nearest gallery items shows the probe's subject, else 0.

    Args:
        between: distances ``(n, m)``.
        gallery: m rows with columns subject and view.
        probe: n rows with column subject.
        views: the V views.
        protocol: gives the k.
        remove_no_gallery: NaN instead of 0 if the view has no gallery item of the subject.

    Returns:
        ``rank<k>`` -> ``(n, V)``; NaN at a view without gallery.
    """
    subjects = probe["subject"].to_numpy()
    found = {f"rank{k}": {} for k in protocol.ranks}
    for view in views:
        columns = np.flatnonzero(gallery["view"] == view)
        gallery_subjects = gallery["subject"].to_numpy()[columns]
        at_view = between[:, torch.as_tensor(columns, device=between.device)]
        unknown = not len(columns) or remove_no_gallery & ~np.isin(subjects, gallery_subjects)
        for k, hits in zip(protocol.ranks, found.values(), strict=True):
            if k == 1 and len(columns):
                nearest = at_view.argmin(1)[:, None]
            else:
                nearest = at_view.topk(min(k, len(columns)), dim=1, largest=False).indices
            match = gallery_subjects[nearest.cpu().numpy()] == subjects[:, None]  # (n, k)
            hits[view] = np.where(unknown, np.nan, match.any(1)).astype(np.float32)
    return {name: pd.DataFrame(hits) for name, hits in found.items()}


def rank_in_whole_gallery(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    protocol: Protocol,
    remove_no_gallery: bool = False,
) -> pd.DataFrame:
    """Return rank-k (0 or 1), average precision and inverse negative penalty of each probe.

    The inverse negative penalty is the number of matches over the rank of the last one (Ye et al.,
    "Deep Learning for Person Re-Identification: A Survey and Outlook", 2021).

    Args:
        between: distances ``(n, m)``.
        gallery: m rows with columns subject and view.
        probe: n rows with the same columns.
        protocol: gives the k; whether the probe's subject at its view leaves its gallery; and
            whether a probe without match is NaN everywhere, or a miss in rank-k and NaN elsewhere.
        remove_no_gallery: it is NaN everywhere, whatever the protocol says.

    Returns:
        columns rank<k> for each k, ap and inp (0 to 1), those that the protocol reports.
    """
    match = are_equal(probe, gallery, "subject", between.device)  # (n, m)
    excluded = torch.zeros_like(match)
    if protocol.identical_views == "excluded":
        excluded = match & are_equal(probe, gallery, "view", between.device)
    order = between.masked_fill(excluded, torch.inf).argsort(dim=1, stable=True)
    ranked = (match & ~excluded).gather(1, order).double()  # (n, m); the excluded come last
    seen = ranked.cumsum(1)
    position = torch.arange(1, ranked.shape[1] + 1, device=between.device)
    total = seen[:, -1]
    scores = {f"rank{k}": ranked[:, :k].amax(1) for k in protocol.ranks}
    averages = {
        "ap": (ranked * seen / position).sum(1) / total,  # precision at each match
        "inp": total / (ranked * position).amax(1),
    }
    for name, values in (scores | averages).items():
        if name in averages or remove_no_gallery or protocol.unmatched == "left_out":
            values = values.where(total > 0, torch.nan)
        scores[name] = values.cpu().numpy()
    return pd.DataFrame(
        {name: scores[name] for name in scores if name in measure_columns(protocol)}
    )


def measure_columns(protocol: Protocol) -> list[str]:
    """Return the columns of hits of the measures that a protocol reports, in its order."""
    return [AVERAGES.get(name, name) for name in protocol.report]


def nearest_subjects(between: Tensor, gallery: pd.DataFrame, count: int) -> np.ndarray:
    """Return the subjects of the ``count`` nearest gallery items of each probe, ``(n, count)``.

    The gallery has at least as many items, which `gaitlib.evaluate.check_test_set` sees to.
    """
    nearest = between.topk(count, dim=1, largest=False).indices.cpu().numpy()
    return gallery["subject"].to_numpy()[nearest]


def are_equal(
    probe: pd.DataFrame, gallery: pd.DataFrame, column: str, device: torch.device
) -> Tensor:
    """Compare one column of every probe with every gallery item: bool ``(n, m)``."""
    same = probe[column].to_numpy()[:, None] == gallery[column].to_numpy()[None, :]
    return torch.as_tensor(same, device=device)
