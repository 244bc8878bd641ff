"""CASIA-B's two protocols: rank-1 for every pair of views, and the cross-view gallery.

Both are defined by OpenGait's ``evaluate_indoor_dataset`` (``evaluator_cfg.cross_view_gallery``).
The second is from Hou et al., "A Comprehensive Experiment on the Evaluation of Silhouette-based
Gait Recognition" (2022).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.data.casia_b import VIEWS, join_some
from gaitlib.evaluate.features import distance

logger = logging.getLogger(__name__)

CONDITIONS = ("NM", "BG", "CL")
PROBES = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}
GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")
CROSS_VIEW_PROBES = {"NM": ("nm-01",), "BG": ("bg-01",), "CL": ("cl-01",)}
CROSS_VIEW_GALLERY = ("nm-02", "bg-02", "cl-02")
MAX_DISTANCES = 2**26  # in memory at a time: 256 MiB
FEATURES_PER_PIECE = 2048  # checked, or compared with the probes, at a time
PROBE_KEYS = ("condition", "subject", "type", "view")  # the columns that identify a probe


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model on one test set; percentages are 0-100 and NaN means not measurable.

    Attributes:
        metric: "euc" or "cos".
        cross_view_gallery: whether the gallery is the cross-view one.
        views: the V views, in the order of every matrix.
        rank1: condition -> rank-1 without identical view.
        rank1_by_view: condition -> ``(V, V)`` frame, probe views in rows, gallery views in
            columns, diagonal included; empty for the cross-view gallery.
        hits: one row per probe: condition, subject, type, view, then one 0/1 column per gallery
            view (NaN if there is no gallery); with the cross-view gallery the columns are rank1,
            rank5 and ap.
        rank5, mean_average_precision: condition -> %; cross-view gallery only.
        problems: what was missing, one sentence each.
    """

    metric: str
    cross_view_gallery: bool
    views: tuple[str, ...]
    rank1: dict[str, float]
    rank1_by_view: dict[str, pd.DataFrame]
    hits: pd.DataFrame
    rank5: dict[str, float] = field(default_factory=dict)
    mean_average_precision: dict[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def rank1_by_view(hits: pd.DataFrame, views: Sequence[str] = VIEWS) -> pd.DataFrame:
    """Return rank-1 accuracy (%) for every probe view (rows) and gallery view (columns).

    Args:
        hits: probes of one condition: a column ``view`` and a 0/1/NaN column per gallery view.
        views: the V views, in order.

    Returns:
        ``(V, V)``; a pair without probes or without gallery is NaN.
    """
    table = 100 * hits.groupby("view")[list(views)].mean().reindex(list(views))
    return table.rename_axis(index="probe", columns="gallery").astype(float)


def mean_without_identical_view(by_view: pd.DataFrame) -> float:
    """Return the mean over gallery views, then over probe views, without the diagonal and NaN."""
    return float(_probe_means(by_view).mean())  # pandas' mean skips NaN


def probe_view_means(by_view: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return rank-1 (%) of each probe view, the mean over the other gallery views.

    Returns:
        tidy: condition, view, rank1.
    """
    rows = [
        {"condition": condition, "view": view, "rank1": value}
        for condition, table in by_view.items()
        for view, value in _probe_means(table).items()
    ]
    return pd.DataFrame(rows, columns=["condition", "view", "rank1"])


def _probe_means(by_view: pd.DataFrame) -> pd.Series:
    """Return the mean of every row without its diagonal entry."""
    return by_view.mask(np.eye(len(by_view), dtype=bool)).mean(axis=1)


def evaluate_indoor(
    features: Tensor,
    table: pd.DataFrame,
    metric: str = "euc",
    cross_view_gallery: bool = False,
    *,
    remove_no_gallery: bool = False,
    views: Sequence[str] = VIEWS,
    chunk: int = 256,
) -> Evaluation:
    """Measure rank-1 of the probes NM, BG and CL by one of CASIA-B's protocols.

    By default: gallery nm-01..04, probes nm-05/06, bg-01/02, cl-01/02. A probe is a hit at a
    gallery view if the nearest gallery sequence of that view shows its subject. The mean excludes
    identical views, and pairs of views without data.

    With ``cross_view_gallery``: gallery nm-02, bg-02 and cl-02 of all views together, probes nm-01,
    bg-01 and cl-01. For each probe, sequences of its subject at its view are removed from the
    gallery. Each number is the mean over probe views. A probe whose subject is then not in the
    gallery is excluded, as in OpenGait.

    Args:
        features: ``(n, C, P)``; distances are computed on its device.
        table: n rows in the order of ``features``, with columns subject, type, view.
        metric: "euc" or "cos".
        cross_view_gallery: use the cross-view gallery.
        remove_no_gallery: exclude probes whose subject has no gallery sequence at a view, instead
            of counting a miss (default protocol only).
        views: the views of the matrices, in order.
        chunk: probes at a time. Except for ``hits``, memory does not grow with their number.

    Raises:
        ValueError: features and table differ in length, a feature is not finite, or the table
            cannot be measured at all, see :func:`check_test_set`.
    """
    check_test_set(table, cross_view_gallery, views)
    table = _check_features(features, table)
    gallery_types, probe_types = _types_of_protocol(cross_view_gallery)
    gallery_rows = np.flatnonzero(table["type"].isin(gallery_types))
    gallery = table.iloc[gallery_rows]

    parts = []
    for condition in CONDITIONS:
        probe_rows = np.flatnonzero(table["type"].isin(probe_types[condition]))
        probe = table.iloc[probe_rows]
        if not len(probe_rows):
            continue
        found = []
        for rows in np.array_split(probe_rows, -(-len(probe) * len(gallery) // MAX_DISTANCES)):
            between = _distances(features, rows, gallery_rows, metric, chunk)  # (n, m)
            if cross_view_gallery:
                ranked = _rank_in_whole_gallery(between, gallery, table.iloc[rows])
            else:
                ranked = _hits_per_view(
                    between, gallery, table.iloc[rows], views, remove_no_gallery
                )
            found.append(ranked)
        found = pd.concat(found, ignore_index=True)
        keys = probe[["subject", "type", "view"]].reset_index(drop=True)
        keys.insert(0, "condition", condition)
        parts.append(pd.concat([keys, found], axis=1))
    hits = pd.concat(parts, ignore_index=True)
    problems = [
        *_list_missing_views(gallery, hits, views),
        *_list_missing_gallery(gallery, hits, cross_view_gallery, remove_no_gallery),
    ]
    for problem in problems:
        logger.warning("%s", problem)
    build = _cross_view_evaluation if cross_view_gallery else _indoor_evaluation
    return build(hits, metric, tuple(views), tuple(problems))


def _distances(
    features: Tensor, probe: np.ndarray, gallery: np.ndarray, metric: str, chunk: int
) -> Tensor:
    """Return the distances ``(n, m)`` between rows of ``features``, without copying all of them."""
    probe = torch.as_tensor(probe, device=features.device)
    gallery = torch.as_tensor(gallery, device=features.device)
    between = torch.empty(len(probe), len(gallery), device=features.device)
    probe_features = features[probe]
    pieces = gallery.split(FEATURES_PER_PIECE), between.split(FEATURES_PER_PIECE, dim=1)
    for rows, columns in zip(*pieces, strict=True):
        columns.copy_(distance(probe_features, features[rows], metric, chunk))
    return between


def check_test_set(
    table: pd.DataFrame, cross_view_gallery: bool = False, views: Sequence[str] = VIEWS
) -> None:
    """Refuse a test set that cannot be measured. Call it before training.

    Args:
        table: one row per sequence, with columns subject, type, view.
        cross_view_gallery: use the cross-view gallery.
        views: the views of the matrices.

    Raises:
        ValueError: the table holds a view not in ``views``, no gallery at all, or no probes at all.
    """
    unknown = sorted(set(table["view"]) - set(views))
    if unknown:
        raise ValueError(
            f"the test set has views {unknown}, which are not among {list(views)}: rename the "
            "folders, or leave them out"
        )
    gallery, probes = _types_of_protocol(cross_view_gallery)
    for name, types in (("gallery", gallery), ("probe", sum(probes.values(), ()))):
        if not table["type"].isin(types).any():
            found = ", ".join(sorted(table["type"].unique()))
            raise ValueError(
                f"no {name}: none of the {len(table)} test sequences is of the types "
                f"{', '.join(types)}; they are of {found}"
            )


def _types_of_protocol(
    cross_view_gallery: bool,
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the types of a protocol's gallery, and of each condition's probes."""
    return (CROSS_VIEW_GALLERY, CROSS_VIEW_PROBES) if cross_view_gallery else (GALLERY, PROBES)


def _indoor_evaluation(
    hits: pd.DataFrame, metric: str, views: tuple[str, ...], problems: tuple[str, ...]
) -> Evaluation:
    """Average hits per pair of views."""
    by_view = {c: rank1_by_view(hits[hits["condition"] == c], views) for c in CONDITIONS}
    rank1 = {c: mean_without_identical_view(matrix) for c, matrix in by_view.items()}
    return Evaluation(metric, False, views, rank1, by_view, hits, problems=problems)


def _cross_view_evaluation(
    hits: pd.DataFrame, metric: str, views: tuple[str, ...], problems: tuple[str, ...]
) -> Evaluation:
    """Average over the probes of a view, then over probe views."""
    means = hits.groupby(["condition", "view"])[["rank1", "rank5", "ap"]].mean()
    means = 100 * means.groupby("condition").mean().reindex(list(CONDITIONS))
    rank1, rank5, ap = ({c: float(means.at[c, key]) for c in CONDITIONS} for key in means)
    return Evaluation(metric, True, views, rank1, {}, hits, rank5, ap, problems)


def _hits_per_view(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    views: Sequence[str],
    remove_no_gallery: bool,
) -> pd.DataFrame:
    """Return 1 where a view's nearest gallery item shows the probe's subject, else 0 or NaN.

    Returns:
        ``(n, V)``.
    """
    subjects = probe["subject"].to_numpy()
    found = {}
    for view in views:
        columns = np.flatnonzero(gallery["view"] == view)
        if not len(columns):
            found[view] = np.full(len(probe), np.nan, dtype=np.float32)
            continue
        gallery_subjects = gallery["subject"].to_numpy()[columns]
        nearest = between[:, torch.as_tensor(columns, device=between.device)].argmin(1)
        hit = (gallery_subjects[nearest.cpu().numpy()] == subjects).astype(np.float32)
        if remove_no_gallery:
            hit[~np.isin(subjects, gallery_subjects)] = np.nan
        found[view] = hit
    return pd.DataFrame(found)


def _rank_in_whole_gallery(
    between: Tensor, gallery: pd.DataFrame, probe: pd.DataFrame
) -> pd.DataFrame:
    """Return rank-1, rank-5 (0 or 1), average precision (0-1) of each probe; NaN if no match."""
    match = _equal(probe, gallery, "subject", between.device)  # (n, m)
    excluded = match & _equal(probe, gallery, "view", between.device)
    order = between.masked_fill(excluded, torch.inf).argsort(dim=1, stable=True)
    ranked = (match & ~excluded).gather(1, order).double()  # (n, m); the excluded come last
    seen = ranked.cumsum(1)
    ranks = torch.arange(1, ranked.shape[1] + 1, device=between.device)
    total = seen[:, -1]
    scores = {
        "rank1": ranked[:, 0],
        "rank5": ranked[:, :5].amax(1),
        "ap": (ranked * seen / ranks).sum(1) / total,  # precision at each match
    }
    return pd.DataFrame(
        {name: value.where(total > 0, torch.nan).cpu().numpy() for name, value in scores.items()}
    )


def _equal(probe: pd.DataFrame, gallery: pd.DataFrame, column: str, device: torch.device) -> Tensor:
    """Compare one column of every probe with every gallery item: bool ``(n, m)``."""
    same = probe[column].to_numpy()[:, None] == gallery[column].to_numpy()[None, :]
    return torch.as_tensor(same, device=device)


def _check_features(features: Tensor, table: pd.DataFrame) -> pd.DataFrame:
    """Refuse features that give wrong results; return the table's three columns, index 0..n-1."""
    if len(features) != len(table):
        raise ValueError(f"{len(features)} features for a table of {len(table)} sequences")
    finite = [piece.isfinite().flatten(1).all(1) for piece in features.split(FEATURES_PER_PIECE)]
    bad = int((~torch.cat(finite)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} features are not finite: training diverged?")
    return table[["subject", "type", "view"]].reset_index(drop=True)


def _list_missing_views(
    gallery: pd.DataFrame, hits: pd.DataFrame, views: Sequence[str]
) -> list[str]:
    """List the views, and the conditions, that have no data to measure."""
    in_gallery, in_probes = set(gallery["view"]), set(hits["view"])
    nowhere = [v for v in views if v not in in_gallery | in_probes]
    nothing = _at_views("no gallery and no probe sequence", nowhere)
    problems = [f"{problem}: not measured" for problem in nothing]
    problems += _at_views("no gallery sequence", [v for v in views if v in in_probes - in_gallery])
    for condition in CONDITIONS:
        seen = set(hits.loc[hits["condition"] == condition, "view"])
        if not seen:
            problems.append(f"{condition}: no probe sequence, so nothing to measure")
        else:
            missing = [v for v in views if v not in seen and v not in nowhere]
            problems += _at_views(f"{condition}: no probe sequence", missing)
    return problems


def _at_views(problem: str, views: Sequence[str]) -> list[str]:
    """Return the problem with the views it concerns; nothing if there are none."""
    return [f"{problem} at view {', '.join(views)}"] if views else []


def _list_missing_gallery(
    gallery: pd.DataFrame, hits: pd.DataFrame, cross_view_gallery: bool, remove_no_gallery: bool
) -> list[str]:
    """List the subjects without a gallery sequence, and how their probes are counted."""
    at = {subject: set(rows) for subject, rows in gallery.groupby("subject")["view"]}
    done = "each counts as a miss; data_cfg.remove_no_gallery: true leaves them out"
    if cross_view_gallery:
        pairs = zip(hits["subject"], hits["view"], strict=True)
        strangers = hits.loc[[not at.get(s, set()) - {v} for s, v in pairs], "subject"]
        lack, done = "no gallery sequence of another view", "they are left out"
    else:
        strangers = hits.loc[~hits["subject"].isin(list(at)), "subject"]
        lack = "no gallery sequence"
        if remove_no_gallery:
            done = "they are left out (data_cfg.remove_no_gallery)"
    problems = []
    if len(strangers):
        names = join_some(sorted(strangers.unique()))
        problems.append(f"{len(strangers)} probes of {names} have {lack}: {done}")
    seen = set(gallery["view"])
    absent = {s: seen - at[s] for s in sorted(set(hits["subject"]) & at.keys())}
    gaps = [f"{s} at {', '.join(sorted(views))}" for s, views in absent.items() if views]
    if gaps and not cross_view_gallery:
        missing = f"no gallery sequence of {join_some(gaps, separator='; ')}"
        problems.append(f"{missing}; their probes against these views: {done}")
    return problems
