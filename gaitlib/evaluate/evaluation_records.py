"""Write and read an evaluation: plain values for results.json, and a CSV file of probes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gaitlib.evaluate.protocol import CONDITIONS, PROBE_KEYS, Evaluation


def to_results(evaluation: Evaluation) -> dict[str, Any]:
    """Return the entries of results.json that an evaluation provides.

    They are ``rank1``, ``rank1_by_view`` (11 x 11, probe views in rows), ``views``, ``metric`` and
    ``cross_view_gallery``. With the cross-view gallery ``rank5`` and ``mAP`` replace
    ``rank1_by_view``. Percentages have two decimals; None means not measurable.
    """
    results: dict[str, Any] = {
        "rank1": _rounded(evaluation.rank1),
        "views": list(evaluation.views),
        "metric": evaluation.metric,
        "cross_view_gallery": evaluation.cross_view_gallery,
    }
    if evaluation.cross_view_gallery:
        results["rank5"] = _rounded(evaluation.rank5)
        results["mAP"] = _rounded(evaluation.mean_average_precision)
    else:
        results["rank1_by_view"] = {
            condition: [[_round(value) for value in row] for row in matrix.to_numpy()]
            for condition, matrix in evaluation.rank1_by_view.items()
        }
    return results


def from_results(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Read ``rank1_by_view`` back: condition -> probe views x gallery views, None as NaN.

    Raises:
        ValueError: the results hold no matrices.
    """
    if "rank1_by_view" not in results:
        raise ValueError(
            f"results hold {sorted(results)} but no rank1_by_view: "
            "evaluate with cross_view_gallery: false to compare views"
        )
    views = list(results["views"])
    return {
        condition: pd.DataFrame(
            rows,
            index=pd.Index(views, name="probe"),
            columns=pd.Index(views, name="gallery"),
            dtype=float,
        )
        for condition in CONDITIONS
        if (rows := results["rank1_by_view"].get(condition)) is not None
    }


def write_hits(hits: pd.DataFrame, path: str | Path) -> None:
    """Write ``Evaluation.hits`` as CSV, for :func:`gaitlib.evaluate.bootstrap_drop`."""
    hits.to_csv(path, index=False, float_format="%.6g")


def read_hits(path: str | Path) -> pd.DataFrame:
    """Read the file of :func:`write_hits`; subjects and views are text ("001" is not 1)."""
    hits = pd.read_csv(path, dtype=dict.fromkeys(PROBE_KEYS, str))
    scores = [column for column in hits if column not in PROBE_KEYS]
    return hits.astype(dict.fromkeys(scores, "float64"))


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 2)
