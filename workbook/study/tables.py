"""The tidy tables of a study: one row per finished point, and one row per layer of it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gaitlib.evaluate import conditions_of
from gaitlib.system.files import replacing
from workbook import runs
from workbook.study.points import Point, load_point, state_of
from workbook.system.folders import ROOT

#: Files of the points' table and of the layers' table.
TABLE, LAYERS = "table.csv", "layers.csv"


def point_table(run: str, points: Sequence[Point]) -> pd.DataFrame:
    """Return one row per point that is done, in the order given.

    Columns:
        point, method, seed; then the grid's keys, spelled as in the study's file, empty where a
        method does not read them (as JSON if a key has neither only numbers nor only text).
        rank1_NM, rank1_BG, rank1_CL: %.
        budget: what target_macs, target_params or target_latency_ms asks for; empty if none.
        params: count. macs_per_frame: of the backbone. relative_bops: % of the dense network's.
        weight_bits, activation_bits: averages; 32 in float.
        file_bytes: size of a quantized network's file, or of the float weights in torch's format.
        group_sparsity: share of the prunable channels that were cut; empty if the method cuts none.
        total_iterations: steps that trained the weights, including the baseline's.
        training_macs: multiply-adds of all these steps, forward and backward.
        ms_1_clip, ms_16_clips: time to embed clips of 30 frames; other points may have been running
        at the same time.
        seconds: how long the point took.

    Args:
        run: the study's folder below runs/.
        points: from `workbook.study.plan.expand`.
    """
    done = [point for point in points if state_of(run, point) == "done"]
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    rows = [_row(point, load_point(run, point), keys) for point in done]
    table = pd.DataFrame(rows)
    for key in keys if rows else ():
        if table[key].dtype == object:  # a Parquet column has one type
            as_text = table[key].map(lambda v: v if isinstance(v, str) else json.dumps(v), "ignore")
            table[key] = as_text
    return table


def _row(point: Point, results: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    macs, dense = results["macs_per_frame"], results.get("dense", results)["macs_per_frame"]
    return {
        "point": point.name,
        "method": point.method,
        "seed": point.seed,
        **{key: point.settings.get(key) for key in keys},
        **{f"rank1_{c}": results["rank1"][c] for c in conditions_of(results)},
        "budget": math.nan if point.budget is None else point.budget,
        "params": results["params"],
        "macs_per_frame": macs,
        "relative_bops": results.get("relative_bops", 100 * macs / dense),
        "weight_bits": float(results["bits"]["weights"]),
        "activation_bits": float(results["bits"]["activations"]),
        "file_bytes": results.get("lowbit_bytes", results["file_bytes"]),
        "group_sparsity": results.get("group_sparsity"),
        "total_iterations": results["total_iterations"],
        "training_macs": results.get("total_training_macs"),
        "ms_1_clip": results["latency_ms"]["batch_1"],
        "ms_16_clips": results["latency_ms"]["batch_16"],
        "seconds": results["seconds"],
    }


def layer_table(run: str, points: Sequence[Point]) -> pd.DataFrame:
    """Return where each point that is done was cut: one row per convolution, in execution order.

    Columns: point, method, seed, layer; kept and total (channels); weight_bits, activation_bits.
    """
    rows = [
        {"point": point.name, "method": point.method, "seed": point.seed, **layer}
        for point in points
        if state_of(run, point) == "done"
        for layer in load_point(run, point)["layers"]
    ]
    return pd.DataFrame(rows)


def write_tables(folder: Path, points: pd.DataFrame, layers: pd.DataFrame) -> Path:
    """Write ``table.csv``, ``table.parquet`` and ``layers.csv``; return the path of the first."""
    for name, table in ((TABLE, points), (LAYERS, layers)):
        with replacing(folder / name) as part:
            table.to_csv(part, index=False)
    with replacing((folder / TABLE).with_suffix(".parquet")) as part:
        points.to_parquet(part, engine="pyarrow", index=False)
    return folder / TABLE


def read_tables(run: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a study's tables of points and of layers, from runs/<study>/ or figures/<study>/.

    The repository holds the tables of ``params/studies/quickstart.yaml`` next to their figures.

    Args:
        run: the study's folder below runs/.

    Raises:
        MissingRunError: if the study has no tables.
    """
    own = runs.runs_folder() / run
    for folder in (own, runs.figures_folder() / run, ROOT / "figures" / run):
        if (folder / TABLE).exists() and (folder / LAYERS).exists():
            return pd.read_csv(folder / TABLE), pd.read_csv(folder / LAYERS)
    raise runs.MissingRunError(
        f"{own / TABLE} is not there: run `gaitlib study params/studies/<file>.yaml`"
        f" of the study {run!r} first"
    )
