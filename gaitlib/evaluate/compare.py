"""Compare two models probe by probe, and list single probes and pairs of views."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.evaluate.evaluation import PROBE_KEYS, Averaging
from gaitlib.evaluate.features import distance
from gaitlib.evaluate.protocols import PROTOCOLS, Protocol
from gaitlib.evaluate.roles import Lists, assign_roles, view_names
from gaitlib.system.errors import UserError


def bootstrap_drop(
    hits_a: pd.DataFrame,
    hits_b: pd.DataFrame,
    n: int = 2000,
    *,
    seed: int = 0,
    level: float = 95.0,
    averaging: Averaging = Averaging(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """Estimate the change of rank-1 from model a to model b, with an interval over test subjects.

    Probes of one person are alike, so whole subjects are drawn. Each of the ``n`` draws takes as
    many subjects as there are, with replacement, and recomputes both models' rank-1, averaged as in
    the test, on the probes of those subjects. Both models get the same draw (paired), so it
    cancels how hard the subjects are. The interval holds the middle ``level`` per cent of the
    differences. The gallery does not change, because a smaller one would be an easier task. The
    interval does not cover the spread between training seeds.

    Args:
        hits_a: ``Evaluation.hits`` of the reference (the dense model).
        hits_b: the same probes under the other model (the compressed one).
        n: draws.
        seed: of the draws.
        level: of the interval, in per cent.
        averaging: ``Evaluation.averaging`` of the two.

    Returns:
        one row per condition: condition, rank1_a, rank1_b (%), difference (b - a in percentage
        points, negative: b is worse), low, high, subjects. With fewer than two subjects low and
        high are NaN. Without probes (of known subjects) there is no row.

    Raises:
        UserError: the two tables hold different probes or columns.
    """
    conditions = list(hits_a["condition"].unique())  # in the protocol's order
    hits_a, hits_b = _in_same_order(hits_a, hits_b)
    rng = np.random.default_rng(seed)
    rows = []
    for condition in conditions:
        of_condition = (hits_a["condition"] == condition).to_numpy()
        subjects = hits_a.loc[of_condition, "subject"].nunique()
        weights = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=n)
        weights = np.vstack([np.ones(subjects, dtype=int), weights])  # row 0: everyone once
        a = _weighted_rank1(hits_a[of_condition], weights, averaging)
        b = _weighted_rank1(hits_b[of_condition], weights, averaging)
        tail = (100 - level) / 2
        low, high = np.nan, np.nan
        if subjects > 1 and np.isfinite(b[0] - a[0]):
            low, high = np.nanpercentile((b - a)[1:], [tail, 100 - tail])
        rows.append(
            {"condition": condition, "rank1_a": a[0], "rank1_b": b[0], "difference": b[0] - a[0]}
            | {"low": low, "high": high, "subjects": subjects}
        )
    columns = ["condition", "rank1_a", "rank1_b", "difference", "low", "high", "subjects"]
    return pd.DataFrame(rows, columns=columns)


def _in_same_order(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sort both tables in the same order; raise ValueError if they hold different probes."""
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


def _weighted_rank1(
    hits: pd.DataFrame,
    weights: np.ndarray,
    averaging: Averaging = Averaging(),  # noqa: B008 (frozen)
) -> np.ndarray:
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
    return 100 * _nanmean(_nanmean(rate))


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 1 without NaN; NaN, and no warning, if all are NaN."""
    there = ~np.isnan(values)
    count = there.sum(1)
    return np.divide(
        np.where(there, values, 0).sum(1),
        count,
        out=np.full(count.shape, np.nan),
        where=count > 0,
    )


def worst_pairs(
    hits_a: pd.DataFrame,
    hits_b: pd.DataFrame,
    k: int = 10,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 95.0,
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
        level: of the intervals, in per cent.

    Returns:
        condition, probe and gallery view, difference (b - a in percentage points), probes (how many
        the pair has), low and high: between these, chance alone holds ``level`` per cent of this
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
    if not views:  # one gallery of all views
        return pd.DataFrame(columns=columns)
    keys = hits_a[list(PROBE_KEYS)]
    changes = keys.join(hits_b[views] - hits_a[views]).melt(PROBE_KEYS, views, "gallery", "change")
    changes = changes[changes["view"] != changes["gallery"]].dropna(subset="change")
    if changes.empty:
        return pd.DataFrame(columns=columns)
    cell = ["condition", "view", "gallery"]
    sums = changes.pivot_table(
        index="subject", columns=cell, values="change", aggfunc="sum", fill_value=0
    )
    probes = changes.groupby(cell).size()[sums.columns]
    rng = np.random.default_rng(seed)
    signs = np.vstack([np.ones(len(sums)), rng.choice([-1, 1], (n, len(sums)))])  # row 0: as it is
    differences = 100 * (signs @ sums.to_numpy()) / probes.to_numpy()  # (1 + n, pairs)
    tails = [(100 - level) / 2, (100 + level) / 2]
    low, high = np.percentile(differences[1:], tails, axis=0)
    found = probes.rename("probes").reset_index().rename(columns={"view": "probe"})
    found = found.assign(difference=differences[0], low=low, high=high)
    found = found.sort_values("condition", key=lambda c: c.map(order.index), kind="stable")
    found = found.sort_values("difference", kind="stable").head(k).reset_index(drop=True)[columns]
    found.attrs["worst_by_chance"] = tuple(np.percentile(differences[1:].min(1), tails))
    return found


def nearest(
    features: Tensor,
    table: pd.DataFrame,
    condition: str,
    metric: str = "euc",
    protocol: Protocol | None = None,
    lists: Lists | None = None,
) -> pd.DataFrame:
    """Find each probe's nearest gallery sequence; at other views, if identical ones do not count.

    Args:
        features: ``(n, C, P)``.
        table: n rows with columns subject, type, view.
        condition: one of the protocol's.
        metric: "euc" or "cos".
        protocol: CASIA-B's by default.
        lists: the partition's lists of sequences.

    Returns:
        one row per probe: probe and gallery (row positions in ``table``), probe_subject,
        gallery_subject, probe_view, gallery_view, distance, hit (bool).

    Raises:
        UserError: the condition is unknown, or the table holds no gallery.
    """
    protocol = protocol or PROTOCOLS["casia-b"]
    if condition not in protocol.conditions:
        raise UserError(f"unknown condition {condition!r}; choose from {protocol.conditions}")
    table = table.reset_index(drop=True)
    probe, gallery = assign_roles(table, protocol, lists or {})[condition]
    if not len(gallery):
        of = protocol.gallery_of(condition)
        raise UserError(f"no gallery: none of the {len(table)} sequences is {of}")
    table = table.assign(view=view_names(table, protocol))
    subject, view = table["subject"].to_numpy(), table["view"].to_numpy()
    at = {"device": features.device}
    between = distance(
        features[torch.as_tensor(probe, **at)], features[torch.as_tensor(gallery, **at)], metric
    )
    same_view = torch.as_tensor(view[probe][:, None] == view[gallery][None], **at)
    if protocol.identical_views == "excluded" and not same_view.all():
        between = between.masked_fill(same_view, torch.inf)
    between, column = between.min(1)
    match = gallery[column.cpu().numpy()]
    pairs = pd.DataFrame(
        {
            "probe": probe,
            "gallery": match,
            "probe_subject": subject[probe],
            "gallery_subject": subject[match],
            "probe_view": view[probe],
            "gallery_view": view[match],
            "distance": between.cpu().numpy(),
            "hit": subject[probe] == subject[match],
        }
    )
    return pairs[np.isfinite(pairs["distance"])].reset_index(drop=True)


def examples(pairs: pd.DataFrame, hits: int = 4, misses: int = 4, *, seed: int = 0) -> pd.DataFrame:
    """Draw at most ``hits`` hits and ``misses`` misses from :func:`nearest`, hits first."""
    rng = np.random.default_rng(seed)
    drawn = [
        pairs[pairs["hit"] == hit].sample(frac=1, random_state=rng).head(count)
        for hit, count in ((True, hits), (False, misses))
    ]
    return pd.concat(drawn, ignore_index=True)
