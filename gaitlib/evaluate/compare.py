"""Compare two models probe by probe, and list single probes and pairs of views."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.evaluate.evaluation import PROBE_KEYS, Averaging
from gaitlib.evaluate.features import distance
from gaitlib.evaluate.protocols import Protocol
from gaitlib.evaluate.ranking import are_equal
from gaitlib.evaluate.roles import Lists, assign_roles, view_names
from gaitlib.system.errors import UserError

TAILS = [2.5, 97.5]  # per cent: intervals hold the middle 95


def bootstrap_drop(
    hits_a: pd.DataFrame,
    hits_b: pd.DataFrame,
    n: int = 2000,
    *,
    seed: int = 0,
    averaging: Averaging = Averaging(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """Estimate the change of rank-1 from model a to model b, with an interval over test subjects.

    Probes of one person are alike, so whole subjects are drawn. Each of the ``n`` draws takes as
    many subjects as there are, with replacement, and recomputes both models' rank-1, averaged as in
    the test, on the probes of those subjects. Both models get the same draw (paired), so it
    cancels how hard the subjects are. The interval holds the middle 95 per cent of the
    differences. The gallery does not change, because a smaller one would be an easier task. The
    interval does not cover the spread between training seeds.

    Args:
        hits_a: ``Evaluation.hits`` of the reference (the dense model).
        hits_b: the same probes under the other model (the compressed one).
        n: draws.
        seed: of the draws.
        averaging: ``Evaluation.averaging`` of the two.

    Returns:
        one row per condition: condition, rank1_a, rank1_b (%), difference (b - a in percentage
        points, negative: b is worse), low, high, subjects. With fewer than two subjects low and
        high are NaN. Without probes (of known subjects) there is no row.

    Raises:
        UserError: the two tables hold different probes or columns.
    """
    conditions = hits_a["condition"].unique()  # in the protocol's order
    tables = _in_same_order(hits_a, hits_b)
    rng = np.random.default_rng(seed)
    rows = []
    for condition in conditions:
        tested = [table[table["condition"] == condition] for table in tables]
        subjects = tested[0]["subject"].nunique()
        weights = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=n)
        weights = np.vstack([np.ones(subjects, dtype=int), weights])  # row 0: everyone once
        a, b = (_weighted_rank1(hits, weights, averaging) for hits in tested)
        low, high = np.nan, np.nan
        if subjects > 1 and np.isfinite(b[0] - a[0]):
            low, high = np.nanpercentile((b - a)[1:], TAILS)
        rows.append((condition, a[0], b[0], b[0] - a[0], low, high, subjects))
    columns = ["condition", "rank1_a", "rank1_b", "difference", "low", "high", "subjects"]
    return pd.DataFrame(rows, columns=columns)


def _in_same_order(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sort both tables in the same order; refuse different probes."""
    keys = list(PROBE_KEYS)
    if set(a.columns) != set(b.columns):
        raise UserError(f"columns differ: {sorted(set(a.columns) ^ set(b.columns))}")
    a, b = (t.sort_values(keys).reset_index(drop=True) for t in (a, b[list(a.columns)]))
    if not a[keys].equals(b[keys]):
        both = a[keys].merge(b[keys], how="outer", indicator=True)
        raise UserError(
            f"{(both['_merge'] != 'both').sum()} of {len(both)} probes are in one table only: "
            "compare two evaluations of the same test set"
        )
    return a, b


def _weighted_rank1(hits: pd.DataFrame, weights: np.ndarray, averaging: Averaging) -> np.ndarray:
    """Return rank-1 (%) per row of subject weights ``(draws, subjects)``."""
    scores = ["rank1"] if "rank1" in hits else [c for c in hits.columns if c not in PROBE_KEYS]
    values = hits[scores]
    others = values.mask(hits[["view"]].to_numpy() == np.array(scores)[None])
    if averaging.identical_views == "excluded" and others.notna().any(axis=None):
        values = others
    views = hits["view"] if averaging.mean_over == "views" else pd.Series("", hits.index)
    groups = values.groupby([hits["subject"], views.rename("view")])
    sums, counts = groups.sum().unstack(), groups.count().unstack()  # (subjects, gallery * probe)
    total = weights @ sums.fillna(0).to_numpy()
    seen = weights @ counts.fillna(0).to_numpy()
    rate = np.divide(total, seen, out=np.full(total.shape, np.nan), where=seen > 0)
    rate = rate.reshape(len(weights), len(scores), -1)  # (draws, gallery views, probe views)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of means without a number, which are NaN
        return 100 * np.nanmean(np.nanmean(rate, 1), 1)


def worst_pairs(
    hits_a: pd.DataFrame,
    hits_b: pd.DataFrame,
    k: int = 10,
    *,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the ``k`` pairs of different views that lose the most accuracy, and what chance does.

    Chance alone: if the two models were equally good, it would not matter whose hits are whose. So
    each of ``n`` draws swaps the two models for each test subject, with all its probes, or does
    not, and takes the differences of all pairs of views again (a permutation test by subject).

    Args:
        hits_a: ``Evaluation.hits`` of the reference (the dense model), by view pairs.
        hits_b: the same probes under the other model (the compressed one).
        k: number of rows.
        n: draws.
        seed: of the draws.

    Returns:
        condition, probe and gallery view, difference (b - a in percentage points), probes (how many
        the pair has), low and high: between these, chance alone holds 95 per cent of this
        pair's differences. The largest loss comes first. ``attrs["worst_by_chance"]`` is the same
        interval of the largest loss among all pairs, which is what the first row is to be compared
        with. Without a pair of different views there is no row.

    Raises:
        UserError: the two tables hold different probes or columns.
    """
    columns = ["condition", "probe", "gallery", "difference", "probes", "low", "high"]
    order = list(hits_a["condition"].unique())
    hits_a, hits_b = _in_same_order(hits_a, hits_b)
    views = [column for column in hits_a if column not in PROBE_KEYS and column != "rank1"]
    keys = hits_a[list(PROBE_KEYS)]
    changes = keys.join(hits_b[views] - hits_a[views]).melt(PROBE_KEYS, views, "gallery", "change")
    changes = changes[changes["view"] != changes["gallery"]].dropna(subset="change")
    if changes.empty:  # one gallery of all views, or none of another view
        return pd.DataFrame(columns=columns)
    cell = ["condition", "view", "gallery"]
    sums = changes.pivot_table(
        index="subject", columns=cell, values="change", aggfunc="sum", fill_value=0
    )
    probes = changes.groupby(cell).size()[sums.columns]
    rng = np.random.default_rng(seed)
    signs = np.vstack([np.ones(len(sums)), rng.choice([-1, 1], (n, len(sums)))])  # row 0: as it is
    differences = 100 * (signs @ sums.to_numpy()) / probes.to_numpy()  # (1 + n, pairs)
    low, high = np.percentile(differences[1:], TAILS, axis=0)
    found = probes.rename("probes").reset_index().rename(columns={"view": "probe"})
    found = found.assign(difference=differences[0], low=low, high=high)
    found = found.sort_values("condition", key=lambda c: c.map(order.index), kind="stable")
    found = found.sort_values("difference", kind="stable").head(k).reset_index(drop=True)[columns]
    found.attrs["worst_by_chance"] = tuple(np.percentile(differences[1:].min(1), TAILS))
    return found


def nearest(
    features: Tensor,
    table: pd.DataFrame,
    condition: str,
    metric: str,
    protocol: Protocol,
    lists: Lists | None = None,
) -> pd.DataFrame:
    """Find each probe's nearest gallery sequence; at other views, if identical ones do not count.

    Args:
        features: ``(n, C, P)``.
        table: n rows with columns subject, type, view.
        condition: one of the protocol's.
        metric: "euc" or "cos".
        protocol: who is gallery and probe.
        lists: the partition's lists of sequences.

    Returns:
        one row per probe: probe and gallery (row positions in ``table``), probe_subject,
        gallery_subject, probe_view, gallery_view, distance, hit (bool).

    Raises:
        UserError: the condition is unknown, or the table holds no gallery.
    """
    roles = assign_roles(table, protocol, lists)
    if condition not in roles:
        raise UserError(f"unknown condition {condition!r}; choose from {protocol.conditions}")
    rows, gallery_rows = roles[condition]
    if not len(gallery_rows):
        of = protocol.gallery_of(condition)
        raise UserError(f"no gallery: none of the {len(table)} sequences is {of}")
    table = table.assign(view=view_names(table, protocol))
    probe, gallery = table.iloc[rows], table.iloc[gallery_rows]
    at = {"device": features.device}
    sides = (features[torch.as_tensor(side, **at)] for side in (rows, gallery_rows))
    between = distance(*sides, metric)
    same_view = are_equal(probe, gallery, "view", features.device)
    if protocol.identical_views == "excluded" and not same_view.all():
        between = between.masked_fill(same_view, torch.inf)
    between, column = between.min(1)
    column = column.cpu().numpy()
    match = gallery.iloc[column]
    pairs = pd.DataFrame({"probe": rows, "gallery": gallery_rows[column]})
    for key in ("subject", "view"):
        for side, found in (("probe", probe), ("gallery", match)):
            pairs[f"{side}_{key}"] = found[key].to_numpy()
    pairs["distance"] = between.cpu().numpy()
    pairs["hit"] = pairs["probe_subject"] == pairs["gallery_subject"]
    return pairs[np.isfinite(pairs["distance"])].reset_index(drop=True)


def examples(pairs: pd.DataFrame, hits: int = 4, misses: int = 4, *, seed: int = 0) -> pd.DataFrame:
    """Draw at most ``hits`` hits and ``misses`` misses from :func:`nearest`, hits first."""
    rng = np.random.default_rng(seed)
    mixed = [pairs[pairs["hit"] == hit].sample(frac=1, random_state=rng) for hit in (True, False)]
    return pd.concat([mixed[0].head(hits), mixed[1].head(misses)], ignore_index=True)
