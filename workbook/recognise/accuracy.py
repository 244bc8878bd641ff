"""How often a gallery names people rightly, and strangers at all, at every threshold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.evaluate.protocols import PROTOCOLS
from workbook.recognise.gallery import UNKNOWN, Gallery
from workbook.recognise.private_files import Embeddings

RATES = 10.0 ** np.linspace(-3, 0, 61)  # false-accept rates of a curve


def trials(gallery: Gallery, walks: Embeddings) -> pd.DataFrame:
    """Identify walks whose people are known to us.

    Args:
        gallery: with a threshold or without.
        walks: ``table["subject"]`` is the true person, enrolled or a stranger.

    Returns:
        One row per walk: subject, type, view and condition (the type's beginning, in capitals);
        ``distance`` from the nearest person; ``rank``, the true person's place among the nearest
        (NaN for a stranger); ``named``, whether the walk got a name.
    """
    found = gallery.identify(walks)
    table = walks.table[["subject", "type", "view"]].reset_index(drop=True)
    condition = table["type"].str.split("-").str[0].str.upper()
    first = PROTOCOLS["casia-b"].conditions
    others = sorted(set(condition) - set(first))
    table["condition"] = pd.Categorical(condition, [*first, *others])
    table["distance"] = found["distance"]
    ranks = []
    for subject, nearest in zip(table["subject"], found["nearest"], strict=True):
        names = [name for name, _ in nearest]
        ranks.append(names.index(subject) + 1 if subject in names else np.nan)
    return table.assign(rank=ranks, named=(found["name"] != UNKNOWN).to_numpy())


def rates(
    known: pd.DataFrame, strangers: pd.DataFrame, by: Sequence[str] = ("condition",)
) -> pd.DataFrame:
    """Return what share of walks is named, in %, by condition or view.

    Args:
        known: `trials` of people in the gallery.
        strangers: `trials` of others.
        by: columns to group by.

    Returns:
        ``rank1``: nearest person is the right one, whatever the distance; ``named_right``: and is
        near enough; ``named_wrong``: another person is nearest and near enough; ``unknown``: nobody
        is; ``false_accepts``: strangers that get a name.
    """
    by = list(by)
    right = known["rank"] == 1
    table = known[by].assign(
        rank1=right,
        named_right=right & known["named"],
        named_wrong=~right & known["named"],
        unknown=~known["named"],
    )
    shares = 100 * table.groupby(by, observed=True).mean()
    shares["false_accepts"] = 100 * strangers.groupby(by, observed=True)["named"].mean()
    return shares


def open_set_curve(known: pd.DataFrame, strangers: pd.DataFrame) -> pd.DataFrame:
    """Return the detection and identification rate at each false-accept rate.

    It is the ROC of open-set identification (Phillips, Grother and Micheals, "Evaluation Methods in
    Face Recognition", 2005): a walk of a known person counts if that person is the nearest and
    within the threshold.

    Args:
        known: `trials` of people in the gallery.
        strangers: `trials` of others; they set the threshold for each rate.

    Returns:
        Columns ``false_accepts`` and ``identified``, in %, from as low a rate as the strangers can
        tell.
    """
    distances = np.sort(strangers["distance"].to_numpy())
    right = np.sort(known.loc[known["rank"] == 1, "distance"].to_numpy())
    accepted = np.unique(np.floor(RATES * len(distances)).astype(int))
    accepted = accepted[accepted > 0]
    within = np.searchsorted(right, distances[accepted - 1], side="right")
    return pd.DataFrame(
        {
            "false_accepts": 100 * accepted / len(distances),
            "identified": 100 * within / len(known),
        }
    )


def rank_curve(known: pd.DataFrame) -> pd.DataFrame:
    """Return the share of walks whose person is among the k nearest, in %: columns k, share."""
    most = int(known["rank"].max())
    return pd.DataFrame(
        {
            "k": range(1, most + 1),
            "share": [100 * (known["rank"] <= k).mean() for k in range(1, most + 1)],
        }
    )


def principal_components(features: Tensor, count: int = 2) -> tuple[np.ndarray, float]:
    """Return the features along their directions of largest variance.

    Args:
        features: ``(n, C, P)``.
        count: number of directions.

    Returns:
        float32 ``(n, count)``, and the share of the variance that they hold.
    """
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    sign = u.abs().argmax(0)  # the sign of a direction is free: make the largest entry positive
    sign = u[sign, torch.arange(u.shape[1])].sign()
    points = (u * s * sign)[:, :count]
    return points.float().numpy(), float(s[:count].square().sum() / s.square().sum())
