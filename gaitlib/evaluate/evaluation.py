"""What a test measures: accuracy by condition and by pair of views, and each probe's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gaitlib.evaluate.protocols import Protocol

PROBE_KEYS = ("condition", "subject", "type", "view")  # the columns that identify a probe


@dataclass(frozen=True)
class Averaging:
    """How the hits of probes become one number per condition.

    Attributes:
        mean_over: ``probes``; or ``views``, first over the probes of a view, then over views.
        identical_views: ``excluded`` leaves the pairs of equal views out of the mean, unless no
            other pair was measured.
    """

    mean_over: str = "views"
    identical_views: str = "excluded"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model on one test set; percentages are 0-100 and NaN means not measurable.

    Attributes:
        metric: "euc" or "cos".
        protocol: who was gallery and probe, and what is measured.
        views: the V views, in the order of every matrix.
        rank1: condition -> rank-1.
        rank1_by_view: condition -> ``(V, V)`` frame, probe views in rows, gallery views in
            columns, diagonal included; empty for a protocol with one gallery of all views.
        hits: one row per probe: condition, subject, type, view, then one 0/1 column per gallery
            view (NaN if there is no gallery); with one gallery of all views the columns are
            rank<k>, ap and inp, as far as they are reported.
        scores: further measures by their names in results.json -> condition -> %.
        submission: the file for a server, if the protocol writes one; nothing else is measured.
        problems: what was missing, one sentence each.
    """

    metric: str
    protocol: Protocol
    views: tuple[str, ...]
    rank1: dict[str, float]
    rank1_by_view: dict[str, pd.DataFrame]
    hits: pd.DataFrame
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    submission: pd.DataFrame | None = None
    problems: tuple[str, ...] = ()

    @property
    def averaging(self) -> Averaging:
        """How rank-1 is averaged."""
        cfg = self.protocol
        mean_over = cfg.mean_over if cfg.ranking == "whole_gallery" else "views"
        return Averaging(mean_over, cfg.identical_views)


def rank1_by_view(hits: pd.DataFrame, views: Sequence[str]) -> pd.DataFrame:
    """Return rank-1 accuracy (%) for every probe view (rows) and gallery view (columns).

    Args:
        hits: probes of one condition: a column ``view`` and a 0/1/NaN column per gallery view.
        views: the V views, in order.

    Returns:
        ``(V, V)``; a pair without probes or without gallery is NaN.
    """
    table = 100 * hits.groupby("view")[list(views)].mean().reindex(list(views))
    return table.rename_axis(index="probe", columns="gallery").astype(float)


def mean_rank1(by_view: pd.DataFrame, averaging: Averaging = Averaging()) -> float:  # noqa: B008
    """Return the mean over gallery views, then over probe views, without NaN.

    Equal views are left out as ``averaging`` says.
    """
    return float(_probe_means(by_view, averaging).mean())  # pandas' mean skips NaN


def probe_view_means(
    by_view: Mapping[str, pd.DataFrame],
    averaging: Averaging = Averaging(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """Return rank-1 (%) of each probe view, the mean over the other gallery views.

    Returns:
        tidy: condition, view, rank1.
    """
    rows = [
        {"condition": condition, "view": view, "rank1": value}
        for condition, table in by_view.items()
        for view, value in _probe_means(table, averaging).items()
    ]
    return pd.DataFrame(rows, columns=["condition", "view", "rank1"])


def _probe_means(by_view: pd.DataFrame, averaging: Averaging) -> pd.Series:
    """Return the mean of every row; see `Averaging.identical_views`."""
    others = by_view.mask(np.eye(len(by_view), dtype=bool))
    only_identical = others.isna().all(axis=None)
    included = averaging.identical_views == "included" or only_identical
    return (by_view if included else others).mean(axis=1)


def conditions_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the conditions of a results.json in the protocol's order."""
    return tuple(results.get("conditions", results["rank1"]))


def averaging_of(results: Mapping[str, Any]) -> Averaging:
    """Return how the rank-1 of a results.json was averaged."""
    return Averaging(**results["averaging"])
