"""What a finished study says: means over seeds, frontiers, gaps at equal cost, and cuts.

Reads the frames of `gaitlib.study.tables.read_tables`; trains and draws nothing. Accuracy is rank-1
in % with the identical view excluded; ``rank1`` without a condition is the mean over the conditions
that the study tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gaitlib.evaluate import CONDITIONS
from gaitlib.report.method_names import in_order, words_of

BASELINE, LONGER, HALF = DENSE = ("baseline", "dense_longer", "dense_half")


@dataclass(frozen=True)
class Cost:
    """How a column of costs is written.

    Attributes:
        axis: what an axis calls it.
        unit: what follows a value in a sentence.
        scale: of the column's numbers, to those that are written.
    """

    axis: str
    unit: str
    scale: float = 1.0

    def write(self, value: float) -> str:
        """Write a value of the column: 7144320 multiply-adds as "7.14 MMAC a frame"."""
        return f"{number(value * self.scale)} {self.unit}"


#: By column of the tables, in the order of the panels.
COSTS = {
    "macs_per_frame": Cost("MMAC a frame", "MMAC a frame", 1e-6),
    "params": Cost("parameters", "parameters"),
    "relative_bops": Cost("BOPs, % of dense", "% of the dense network's BOPs"),
    "file_bytes": Cost("file, kB", "kB", 1e-3),
    "ms_1_clip": Cost("ms to embed a clip", "ms a clip"),
}

#: Columns of points whose mean over seeds `summarise` takes beside accuracy and costs.
ALSO_MEANS = ("weight_bits", "activation_bits", "group_sparsity", "total_iterations")


def number(value: float) -> str:
    """Write 29220.4 as "29,220" and 24.31 as "24.3"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def grid_keys(points: pd.DataFrame) -> list[str]:
    """Return the grid's keys: the columns of points between ``seed`` and the first rank-1."""
    columns = list(points.columns)
    first = next(at for at, column in enumerate(columns) if column.startswith("rank1_"))
    return columns[columns.index("seed") + 1 : first]


def tested_conditions(table: pd.DataFrame) -> list[str]:
    """Return the conditions that at least one row of points, or of a summary, was tested in."""
    return [c for c in CONDITIONS if table.get(f"rank1_{c}", pd.Series(dtype=float)).notna().any()]


def summarise(points: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method and its settings: means over seeds, and their spread.

    Args:
        points: of `gaitlib.study.tables.read_tables`, a row a network.

    Returns:
        method and name (its words); the grid's keys; setting ("target_group_sparsity 0.5") and
        values ("0.5"); seeds (how many); rank1, drop and rank1_<condition>, each with _min and
        _max over seeds; the COSTS; weight_bits, activation_bits, group_sparsity and
        total_iterations. ``drop`` is in percentage points: the rank1 of the baseline of the same
        seed (and of the same settings, where a baseline has some) minus this one's; negative where
        it is better, NaN without a baseline. A network that lacks a condition which others have
        has no rank1. Rows are in the order of METHOD_WORDS, settings in that of the points.

    Raises:
        ValueError: there is no point, or two are one method's with the same settings and seed.
    """
    keys = grid_keys(points)
    table = _with_drop(points, keys)
    measured = ["rank1", "drop", *(f"rank1_{c}" for c in CONDITIONS)]
    spread = {
        f"{column}{suffix}": (column, how)
        for column in measured
        for suffix, how in (("", "mean"), ("_min", "min"), ("_max", "max"))
    }
    means = {column: (column, "mean") for column in (*COSTS, *ALSO_MEANS)}
    groups = table.groupby(["method", *keys], sort=False, dropna=False)
    summary = groups.agg(seeds=("seed", "nunique"), **spread, **means).reset_index()
    return _named(summary, keys)


def _with_drop(points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the points with columns rank1 and drop."""
    if points.empty:
        raise ValueError("the study has no finished point: run `gaitlib study FILE` first")
    twice = points[points.duplicated(["method", "seed", *keys], keep=False)]
    if len(twice):
        raise ValueError(
            f"the points {twice['point'].tolist()} have the same method, settings and seed: "
            "a table holds each network once"
        )
    columns = [f"rank1_{c}" for c in CONDITIONS]
    absent = [c for c in (*columns, *COSTS, *ALSO_MEANS) if c not in points]
    tested = [f"rank1_{c}" for c in tested_conditions(points)]
    rank1 = points[tested].mean(axis=1, skipna=False)
    table = points.assign(**dict.fromkeys(absent, np.nan), rank1=rank1, drop=np.nan)
    for _, started in table.groupby(_start(table, keys), sort=False, dropna=False):
        dense = started.loc[started["method"] == BASELINE, "rank1"]
        if len(dense):  # one: the columns of _start hold all its settings
            table.loc[started.index, "drop"] = dense.iloc[0] - started["rank1"]
    return table


def _start(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the columns that tell apart which baseline a network belongs to."""
    dense = table[table["method"] == BASELINE]
    return ["seed", *(key for key in keys if dense[key].notna().any())]


def _named(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Add name, setting and values to a table with methods and keys; sort it by method."""
    rank = {method: at for at, method in enumerate(in_order(table["method"]))}
    table = table.sort_values("method", key=lambda m: m.map(rank), kind="stable", ignore_index=True)
    rows = table[list(keys)].to_dict("records")
    at = 1 + table.columns.get_loc("method")
    table.insert(at, "name", table["method"].map(words_of))
    at += 1 + len(keys)
    table.insert(at, "setting", [", ".join(f"{k} {v}" for k, v in _spelled(row)) for row in rows])
    table.insert(at + 1, "values", [", ".join(v for _, v in _spelled(row)) for row in rows])
    return table


def _spelled(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that are there: the key's last part, or all of it where two share it."""
    leaves = [key.rpartition(".")[2] for key in settings]
    spelled = []
    for (key, value), leaf in zip(settings.items(), leaves, strict=True):
        if not pd.isna(value):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            text = f"{value:g}" if is_number else str(value)
            spelled.append((leaf if leaves.count(leaf) == 1 else key, text))
    return spelled


def overview(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as a table to read, the costs in the units of COSTS.

    Args:
        summary: of `summarise`.

    Returns:
        method's words and settings in the index; seeds, NM, BG, CL, rank1, lowest and highest (of
        the seeds' rank1), drop, and a column a cost.
    """
    scores = {f"rank1_{c}": c for c in tested_conditions(summary)}
    scores |= {"rank1": "rank1", "rank1_min": "lowest", "rank1_max": "highest", "drop": "drop"}
    costs = {
        cost.axis: summary[column] * cost.scale
        for column, cost in COSTS.items()
        if summary[column].notna().any()
    }
    columns = ["name", "values", "seeds", *scores]
    table = summary[columns].rename(columns={"values": "setting", **scores}).assign(**costs)
    return table.set_index(["name", "setting"])


def pareto(summary: pd.DataFrame, cost: str, accuracy: str = "rank1") -> pd.DataFrame:
    """Return, of each method, the settings that no cheaper one of it equals or beats.

    Args:
        summary: of `summarise`.
        cost: a column of COSTS.
        accuracy: a column of accuracies, such as rank1_CL.

    Returns:
        Rows of the summary, the methods in its order, each method's from cheap to dear. Of settings
        that agree in both the first stays; what was not measured is left out.
    """
    fronts = []
    for _, settings in summary.dropna(subset=[cost, accuracy]).groupby("method", sort=False):
        ordered = settings.sort_values([cost, accuracy], ascending=[True, False], kind="stable")
        best_before = ordered[accuracy].astype(float).cummax().shift(fill_value=-np.inf)
        fronts.append(ordered[ordered[accuracy] > best_before])
    return pd.concat(fronts) if fronts else summary[:0]


def gaps(
    points: pd.DataFrame,
    cost: str = "macs_per_frame",
    reference: str = "hesso",
    tolerance: float = 0.05,
) -> pd.DataFrame:
    """Compare every network with a reference method's of the same seed, at equal cost.

    The reference is the line through all networks of that method and the dense one, linear in the
    logarithm of the cost; not its frontier alone, which of noisy points would be the lucky ones.
    The dense end is the network that was trained on, as long as the others were, or else the
    baseline. Beyond its ends nothing is compared: a cost up to ``tolerance`` (a share) below the
    cheapest or above the dearest counts as that one's, what is farther has NaN and a note.

    Args:
        points: of `gaitlib.study.tables.read_tables`.
        cost: a column of COSTS.
        reference: a method.
        tolerance: methods that aim at the same cost hit it to within some channels.

    Returns:
        A row for each network of the other methods: method, name, setting, seed, the cost, rank1,
        reference (its rank1 at that cost), gap (percentage points; positive is better than the
        reference) and note (why there is no gap; empty where there is one).

    Raises:
        ValueError: as `summarise`, or the study has no such method.
    """
    if reference not in set(points["method"]):
        raise ValueError(
            f"no {reference!r} to compare with; the study has {in_order(points['method'])}"
        )
    keys, rows = grid_keys(points), []
    table = _with_drop(points, keys)
    for _, started in table.groupby(_start(table, keys), sort=False, dropna=False):
        line = _line(started, cost, reference)
        others = started[~started["method"].isin([reference, *DENSE])]
        for point in others.to_dict("records"):
            at, note = _rank1_at(line, point[cost], words_of(reference), tolerance)
            if np.isnan(point["rank1"]):
                note = note or "rank-1 was not measured"
            rows.append({**point, "reference": at, "gap": point["rank1"] - at, "note": note})
    columns = ["method", *keys, "seed", cost, "rank1", "reference", "gap", "note"]
    return _named(pd.DataFrame(rows, columns=columns), keys).drop(columns=[*keys, "values"])


def _line(started: pd.DataFrame, cost: str, reference: str) -> pd.Series:
    """Return the reference's rank1 by cost, ascending, with the dense network's; NaN left out."""
    ends = [m for m in (LONGER, BASELINE) if (started["method"] == m).any()]
    chosen = started[started["method"].isin([reference, *ends[:1]])].dropna(subset=[cost, "rank1"])
    if not (chosen["method"] == reference).any():
        return pd.Series(dtype=float)
    return chosen.groupby(cost)["rank1"].mean()


def _rank1_at(line: pd.Series, cost: float, name: str, tolerance: float) -> tuple[float, str]:
    """Return the line's rank1 at a cost, or NaN and the reason."""
    if line.empty:
        return np.nan, f"no {name} of this seed"
    if np.isnan(cost):
        return np.nan, "the cost was not measured"
    cheapest, dearest = line.index[0], line.index[-1]
    if cost * (1 + tolerance) < cheapest:
        return np.nan, f"{100 * (1 - cost / cheapest):.0f} % cheaper than any {name}"
    if cost > dearest * (1 + tolerance):
        return np.nan, f"{100 * (cost / dearest - 1):.0f} % dearer than any {name} or dense"
    return float(np.interp(np.log(cost), np.log(line.index), line)), ""


def mean_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise `gaps`: a row a method.

    Returns:
        name in the index; mean, lowest and highest gap of its networks; seed_lowest and
        seed_highest, the same of the seeds' means; compared (networks), outside (networks without
        a gap), seeds (among those compared).
    """
    rows = {}
    for name, networks in table.groupby("name", sort=False):
        compared = networks.dropna(subset=["gap"])
        of_seeds = compared.groupby("seed")["gap"].mean()
        rows[name] = {
            "mean": compared["gap"].mean(),
            "lowest": compared["gap"].min(),
            "highest": compared["gap"].max(),
            "seed_lowest": of_seeds.min(),
            "seed_highest": of_seeds.max(),
            "compared": len(compared),
            "outside": len(networks) - len(compared),
            "seeds": len(of_seeds),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def cuts(layers: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Return what each method and setting left of every layer, the mean over seeds.

    Args:
        layers: of `gaitlib.study.tables.read_tables`, a row for each layer of each network.
        points: its networks.

    Returns:
        method, name, the grid's keys, setting, values, layer, share (% of the channels that were
        kept), weight_bits, activation_bits. Methods in the order of METHOD_WORDS, settings in that
        of the points, layers in that of the network.
    """
    keys = grid_keys(points)
    measured = ["layer", "kept", "total", "weight_bits", "activation_bits"]
    table = points[["point", "method", *keys]].merge(layers[["point", *measured]], on="point")
    table["share"] = 100 * table["kept"] / table["total"]
    groups = table.groupby(["method", *keys, "layer"], sort=False, dropna=False)
    means = groups[["share", "weight_bits", "activation_bits"]].mean().reset_index()
    return _named(means, keys)
