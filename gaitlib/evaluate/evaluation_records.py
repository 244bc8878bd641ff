"""Write and read an evaluation: plain values for results.json, and a CSV file of probes."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gaitlib.evaluate.evaluation import PROBE_KEYS, Evaluation, conditions_of
from gaitlib.evaluate.protocols import ONE_CONDITION
from gaitlib.system.files import write_atomically


def to_results(evaluation: Evaluation) -> dict[str, Any]:
    """Return the entries of results.json that an evaluation provides.

    They are ``protocol``, ``conditions``, ``rank1``, ``rank1_by_view`` (probe views in rows),
    ``views``, ``metric``, ``cross_view_gallery`` and ``averaging``, and the protocol's further
    measures: rank5, rank10, rank20, mAP, mINP. A protocol with one gallery of all views has no
    ``rank1_by_view``. Percentages have two decimals; None means not measurable.
    """
    results: dict[str, Any] = {
        "protocol": evaluation.protocol.name,
        "conditions": list(evaluation.protocol.conditions),
        "rank1": _rounded(evaluation.rank1),
        "views": list(evaluation.views),
        "metric": evaluation.metric,
        "cross_view_gallery": evaluation.protocol.name.endswith("-cross-view"),
        "averaging": dataclasses.asdict(evaluation.averaging),
        **{name: _rounded(values) for name, values in evaluation.scores.items()},
    }
    if evaluation.rank1_by_view:
        results["rank1_by_view"] = {
            condition: [[_round(value) for value in row] for row in matrix.to_numpy()]
            for condition, matrix in evaluation.rank1_by_view.items()
        }
    return results


def from_results(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Read ``rank1_by_view`` back: condition -> probe views x gallery views, None as NaN.

    For a protocol with one gallery of all views the tables have one cell, ``all`` against ``all``:
    its rank-1.
    """
    views, tables = results["views"], results.get("rank1_by_view")
    if tables is None:
        views = [ONE_CONDITION]
        tables = {condition: [[value]] for condition, value in results["rank1"].items()}
    probe, gallery = pd.Index(views, name="probe"), pd.Index(views, name="gallery")
    return {
        condition: pd.DataFrame(tables[condition], probe, gallery, dtype=float)
        for condition in conditions_of(results)
    }


def write_hits(hits: pd.DataFrame, path: str | Path) -> None:
    """Write ``Evaluation.hits`` as CSV, for :func:`gaitlib.evaluate.bootstrap_drop`."""
    write_atomically(Path(path), hits.to_csv(index=False, float_format="%.6g"))


def read_hits(path: str | Path) -> pd.DataFrame:
    """Read the file of :func:`write_hits`; subjects and views are text ("001" is not 1)."""
    types = defaultdict(lambda: "float64", dict.fromkeys(PROBE_KEYS, str))
    return pd.read_csv(path, dtype=types)


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 2)
