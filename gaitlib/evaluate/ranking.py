"""Rank the gallery for each probe: per gallery view, or in one gallery of all views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def hits_per_view(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    views: Sequence[str],
    ranks: Sequence[int] = (1,),
    remove_no_gallery: bool = False,
) -> dict[int, pd.DataFrame]:
    """Return 1 where one of a view's k nearest gallery items shows the probe's subject, else 0.

    Args:
        between: distances ``(n, m)``.
        gallery: m rows with columns subject and view.
        probe: n rows with column subject.
        views: the V views.
        ranks: the k.
        remove_no_gallery: NaN instead of 0 if the view has no gallery item of the subject.

    Returns:
        k -> ``(n, V)``; NaN at a view without gallery.
    """
    subjects = probe["subject"].to_numpy()
    found: dict[int, dict[str, np.ndarray]] = {k: {} for k in ranks}
    for view in views:
        columns = np.flatnonzero(gallery["view"] == view)
        gallery_subjects = gallery["subject"].to_numpy()[columns]
        at_view = between[:, torch.as_tensor(columns, device=between.device)]
        for k in ranks:
            if not len(columns):
                found[k][view] = np.full(len(probe), np.nan, dtype=np.float32)
                continue
            if k == 1:
                nearest = at_view.argmin(1)[:, None]
            else:
                nearest = at_view.topk(min(k, len(columns)), dim=1, largest=False).indices
            match = gallery_subjects[nearest.cpu().numpy()] == subjects[:, None]  # (n, k)
            hit = match.any(1).astype(np.float32)
            if remove_no_gallery:
                hit[~np.isin(subjects, gallery_subjects)] = np.nan
            found[k][view] = hit
    return {k: pd.DataFrame(columns) for k, columns in found.items()}


def rank_in_whole_gallery(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    ranks: Sequence[int],
    *,
    exclude_own_view: bool,
    leave_out: bool,
) -> pd.DataFrame:
    """Return rank-k (0 or 1), average precision and inverse negative penalty of each probe.

    The inverse negative penalty is the number of matches over the rank of the last one (Ye et al.,
    "Deep Learning for Person Re-Identification: A Survey and Outlook", 2021).

    Args:
        between: distances ``(n, m)``.
        gallery: m rows with columns subject and view.
        probe: n rows with the same columns.
        ranks: the k.
        exclude_own_view: remove the probe's subject at the probe's view from its gallery.
        leave_out: a probe without match in its gallery is NaN everywhere, instead of a miss in
            rank-k and NaN in the others.

    Returns:
        columns rank<k> for each k, ap and inp (0 to 1).
    """
    match = _equal(probe, gallery, "subject", between.device)  # (n, m)
    excluded = torch.zeros_like(match)
    if exclude_own_view:
        excluded = match & _equal(probe, gallery, "view", between.device)
    order = between.masked_fill(excluded, torch.inf).argsort(dim=1, stable=True)
    ranked = (match & ~excluded).gather(1, order).double()  # (n, m); the excluded come last
    seen = ranked.cumsum(1)
    position = torch.arange(1, ranked.shape[1] + 1, device=between.device)
    total = seen[:, -1]
    scores = {f"rank{k}": ranked[:, :k].amax(1) for k in ranks}
    if leave_out:
        scores = {name: value.where(total > 0, torch.nan) for name, value in scores.items()}
    averages = {
        "ap": (ranked * seen / position).sum(1) / total,  # precision at each match
        "inp": total / (ranked * position).amax(1),
    }
    scores |= {name: value.where(total > 0, torch.nan) for name, value in averages.items()}
    return pd.DataFrame({name: value.cpu().numpy() for name, value in scores.items()})


def nearest_subjects(between: Tensor, gallery: pd.DataFrame, count: int) -> np.ndarray:
    """Return the subjects of the ``count`` nearest gallery items of each probe, ``(n, count)``.

    The gallery has at least as many items, which `gaitlib.evaluate.check_test_set` sees to.
    """
    nearest = between.topk(count, dim=1, largest=False).indices.cpu().numpy()
    return gallery["subject"].to_numpy()[nearest]


def _equal(probe: pd.DataFrame, gallery: pd.DataFrame, column: str, device: torch.device) -> Tensor:
    """Compare one column of every probe with every gallery item: bool ``(n, m)``."""
    same = probe[column].to_numpy()[:, None] == gallery[column].to_numpy()[None, :]
    return torch.as_tensor(same, device=device)
