"""Analyse a finished study: means over seeds, frontiers, differences at equal cost, and cuts.

The functions take the tables of `workbook.study.tables.read_tables`. Accuracy is rank-1 in %, with
the identical view excluded; ``rank1`` without a condition is the mean over the tested conditions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from gaitlib.system.errors import UserError
from workbook.report.method_names import in_order, words_of

BASELINE, LONGER, _ = DENSE_METHODS = ("baseline", "dense_longer", "dense_half")


@dataclass(frozen=True)
class Cost:
    """How figures and sentences write a column of costs.

    Attributes:
        axis: label of an axis.
        unit: follows a value in a sentence.
        scale: factor from the column's numbers to the written ones.
    """

    axis: str
    unit: str
    scale: float = 1.0

    def write(self, value: float) -> str:
        """Write a value of the column: 7144320 multiply-adds as "7.14 MMAC per frame"."""
        return f"{number(value * self.scale)} {self.unit}"


#: By column of the tables, in the order of a figure's panels.
COSTS = {
    "macs_per_frame": Cost("MMAC per frame", "MMAC per frame", 1e-6),
    "params": Cost("parameters", "parameters"),
    "relative_bops": Cost("BOPs, % of dense", "% of the dense network's BOPs"),
    "file_bytes": Cost("file, kB", "kB", 1e-3),
    "ms_1_clip": Cost("ms per clip", "ms per clip"),
}

#: The share by which methods with the same target cost may differ: a few channels.
TOLERANCE = 0.05


def number(value: float) -> str:
    """Write 29220.4 as "29,220" and 24.31 as "24.3"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def grid_keys(points: pd.DataFrame) -> list[str]:
    """Return the grid's keys: the columns of points between ``seed`` and the first rank-1."""
    columns = list(points.columns)
    first_rank1 = next(i for i, column in enumerate(columns) if column.startswith("rank1_"))
    return columns[columns.index("seed") + 1 : first_rank1]


def tested_conditions(table: pd.DataFrame) -> list[str]:
    """Return the conditions that at least one row of points, or of a summary, has a rank-1 of."""
    rank1 = table.filter(regex=r"^rank1_(?!(.+_)?(min|max)$)").dropna(axis=1, how="all")
    return rank1.columns.str.removeprefix("rank1_").tolist()


def summarise(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method and setting: means over seeds, and their spread.

    Args:
        points: from `workbook.study.tables.read_tables`, one row per network.

    Returns:
        method and name (as tables show it); the grid's keys; setting ("target_group_sparsity 0.5")
        and values ("0.5"); seeds (how many); rank1, drop and rank1_<condition>, each with _min and
        _max over seeds; and the COSTS. ``drop`` is in percentage points: rank1 of the baseline
        minus rank1 of this network, negative if this one is better, NaN without a baseline. The
        baseline has the same seed, and the same settings as far as it has any. A network that lacks
        one of the tested conditions has no rank1. Methods are in the order of METHOD_WORDS,
        settings in the order of the points.

    Raises:
        UserError: there is no point, or two points share method, settings and seed.
    """
    keys = grid_keys(points)
    table = _with_drop(points, keys)
    measured = ["rank1", "drop", *(f"rank1_{c}" for c in tested_conditions(points))]
    groups = table.groupby(["method", *keys], sort=False, dropna=False)
    spread = groups[measured].agg(["mean", "min", "max"])
    spread.columns = [f"{column}_{how}".removesuffix("_mean") for column, how in spread]
    seeds = groups["seed"].nunique().rename("seeds")
    summary = pd.concat([seeds, spread, groups[list(COSTS)].mean()], axis=1).reset_index()
    return _named(summary, keys)


def _with_drop(points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the points with columns rank1 and drop."""
    if points.empty:
        raise UserError("the study has no finished point: run `gaitlib study FILE` first")
    twice = points[points.duplicated(["method", "seed", *keys], keep=False)]
    if len(twice):
        raise UserError(
            f"the points {twice['point'].tolist()} have the same method, settings and seed: "
            "a table holds each network once"
        )
    tested = [f"rank1_{c}" for c in tested_conditions(points)]
    columns = dict.fromkeys([*points, "budget", *COSTS])  # NaN if not measured
    rank1 = points[tested].mean(axis=1, skipna=False)
    table = points.reindex(columns=list(columns)).assign(rank1=rank1)
    baseline_keys = _baseline_keys(table, keys)  # all settings of a baseline
    dense = table.loc[table["method"] == BASELINE, [*baseline_keys, "rank1"]]
    compared = table[baseline_keys].merge(dense, on=baseline_keys, how="left")
    return table.assign(drop=compared["rank1"].to_numpy() - rank1)


def _baseline_keys(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the columns that determine which baseline a network is compared with."""
    dense = table[table["method"] == BASELINE]
    return ["seed", *(key for key in keys if dense[key].notna().any())]


def _named(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Add name, setting and values to a table with methods and keys; sort it by method."""
    rank = {method: i for i, method in enumerate(in_order(table["method"]))}
    table = table.sort_values("method", key=lambda m: m.map(rank), kind="stable", ignore_index=True)
    settings = [_spelled_settings(row) for row in table[list(keys)].to_dict("records")]
    column = 1 + table.columns.get_loc("method")
    table.insert(column, "name", table["method"].map(words_of))
    column += 1 + len(keys)
    table.insert(column, "setting", [", ".join(f"{k} {v}" for k, v in row) for row in settings])
    table.insert(column + 1, "values", [", ".join(v for _, v in row) for row in settings])
    return table


def _spelled_settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that are not NaN, as pairs of text.

    A key is its last part, or all of it where two keys end in the same part.
    """
    leaves = [key.rpartition(".")[2] for key in settings]
    spelled = []
    for (key, value), leaf in zip(settings.items(), leaves, strict=True):
        if not pd.isna(value):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            text = f"{value:g}" if is_number else str(value)
            spelled.append((leaf if leaves.count(leaf) == 1 else key, text))
    return spelled


def overview(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as a table for people to read, with costs in the units of COSTS.

    Args:
        summary: from `summarise`.

    Returns:
        Index: name and setting. Columns: seeds, one per tested condition, rank1, lowest and
        highest (rank1 of a seed), drop, and one column per cost.
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
    """Return each method's frontier: a cheaper setting never equals or beats one of its rows.

    Args:
        summary: from `summarise`.
        cost: a column of COSTS.
        accuracy: a column of accuracies, such as rank1_CL.

    Returns:
        Rows of the summary, methods in its order, each method's settings from cheap to expensive.
        Of settings equal in cost and accuracy the first is kept. Settings without a measurement
        are omitted.
    """
    fronts = []
    for _, settings in summary.dropna(subset=[cost, accuracy]).groupby("method", sort=False):
        ordered = settings.sort_values([cost, accuracy], ascending=[True, False], kind="stable")
        best_before = ordered[accuracy].astype(float).cummax().shift(fill_value=-np.inf)
        fronts.append(ordered[ordered[accuracy] > best_before])
    return pd.concat(fronts) if fronts else summary[:0]


def gaps(points: pd.DataFrame, cost: str, reference: str) -> pd.DataFrame:
    """Compare every network with a reference method of the same seed, at equal cost.

    The reference is a line through all networks of that method and the dense network, linear in
    the logarithm of the cost. It uses all networks, because the frontier of noisy points would
    select the lucky ones. Its dense end is the dense network with as many steps as the others, or
    else the baseline. The line is not extrapolated: a cost up to `TOLERANCE` below the
    cheapest or above the most expensive counts as that one's; farther away the gap is NaN and has
    a note.

    Args:
        points: from `workbook.study.tables.read_tables`.
        cost: a column of COSTS.
        reference: a method.

    Returns:
        One row per network of the other methods: method, name, setting, seed, the cost, rank1,
        reference (the reference's rank1 at that cost), gap (percentage points; positive is better
        than the reference) and note (why there is no gap; empty if there is one).

    Raises:
        UserError: as `summarise`, or the study has no such method.
    """
    _check_reference(points, reference)
    keys, rows = grid_keys(points), []
    table = _with_drop(points, keys)
    for _, comparable in table.groupby(_baseline_keys(table, keys), sort=False, dropna=False):
        line = _reference_line(comparable, cost, reference)
        others = comparable[~comparable["method"].isin([reference, *DENSE_METHODS])]
        for point in others.to_dict("records"):
            rank1, note = _rank1_at(line, point[cost], words_of(reference))
            if np.isnan(point["rank1"]):
                note = note or "rank-1 was not measured"
            rows.append({**point, "reference": rank1, "gap": point["rank1"] - rank1, "note": note})
    columns = ["method", *keys, "seed", cost, "rank1", "reference", "gap", "note"]
    return _named(pd.DataFrame(rows, columns=columns), keys).drop(columns=[*keys, "values"])


def default_reference(points: pd.DataFrame) -> str:
    """Return the method that others are compared with: budget, else hesso, geta or the first."""
    present = list(points["method"])
    return next(method for method in ("budget", "hesso", "geta", *present) if method in present)


def paired_differences(points: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Compare a method with every other at the same setting, seed by seed.

    Networks of one seed share their batches, and so a part of their luck: it cancels in the
    difference, which therefore varies less than the two accuracies do. A method that does not
    depend on a key of the grid, such as the baseline, is compared at each of its values.

    Args:
        points: from `workbook.study.tables.read_tables`.
        reference: a method.

    Returns:
        One row per setting of the reference and other method: method, name, the grid's keys,
        setting, values, budget, seeds (how many both have), the
        mean over them of ``difference`` (percentage points of rank1, the reference's minus the
        method's), its standard_error, low and high (95 % interval of Student's t with seeds - 1
        degrees of freedom: wide for three seeds, and NaN for one), macs_per_frame and
        reference_macs (means). Methods without a common seed have no row.

    Raises:
        UserError: as `summarise`, or the study has no such method.
    """
    _check_reference(points, reference)
    keys = grid_keys(points)
    table = _with_drop(points, keys)
    is_reference = table["method"] == reference
    pairs = table[is_reference].merge(table[~is_reference], on="seed", suffixes=("", "_other"))
    pairs["difference"] = pairs["rank1"] - pairs["rank1_other"]
    pairs = pairs.dropna(subset="difference")
    for key in keys:
        other = pairs[f"{key}_other"]
        pairs = pairs[other.isna() | (other == pairs[key])]
    pairs = pairs.drop(columns="method").rename(columns={"method_other": "method"})
    found = pairs.groupby(["method", *keys], sort=False, dropna=False).agg(
        budget=("budget", "mean"),
        seeds=("difference", "count"),
        difference=("difference", "mean"),
        standard_error=("difference", lambda d: d.std() / np.sqrt(len(d))),
        macs_per_frame=("macs_per_frame_other", "mean"),
        reference_macs=("macs_per_frame", "mean"),
    )
    reach = found["standard_error"] * scipy.stats.t.ppf(0.975, found["seeds"] - 1)
    limits = {"low": found["difference"] - reach, "high": found["difference"] + reach}
    return _named(found.assign(**limits).reset_index(), keys)


def _check_reference(points: pd.DataFrame, reference: str) -> None:
    if reference not in set(points["method"]):
        raise UserError(
            f"no {reference!r} to compare with; the study has {in_order(points['method'])}"
        )


def _reference_line(table: pd.DataFrame, cost: str, reference: str) -> pd.Series:
    """Return rank1 by ascending cost of the reference and the dense network, without NaN."""
    dense_ends = [m for m in (LONGER, BASELINE) if (table["method"] == m).any()]
    chosen = table[table["method"].isin([reference, *dense_ends[:1]])]
    chosen = chosen.dropna(subset=[cost, "rank1"])
    if not (chosen["method"] == reference).any():
        return pd.Series(dtype=float)
    return chosen.groupby(cost)["rank1"].mean()


def _rank1_at(line: pd.Series, cost: float, name: str) -> tuple[float, str]:
    """Return the line's rank1 at a cost, or NaN and the reason."""
    if line.empty:
        return np.nan, f"no {name} of this seed"
    if np.isnan(cost):
        return np.nan, "the cost was not measured"
    cheapest, most_expensive = line.index[0], line.index[-1]
    if cost * (1 + TOLERANCE) < cheapest:
        return np.nan, f"{100 * (1 - cost / cheapest):.0f} % cheaper than any {name}"
    if cost > most_expensive * (1 + TOLERANCE):
        excess = 100 * (cost / most_expensive - 1)
        return np.nan, f"{excess:.0f} % more expensive than any {name} or dense"
    return float(np.interp(np.log(cost), np.log(line.index), line)), ""


def mean_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise `gaps` in one row per method.

    Returns:
        Index: name. Columns: mean, lowest and highest gap of its networks; seed_lowest and
        seed_highest, the lowest and highest mean gap of a seed; compared (number of networks),
        outside (number of networks without a gap), seeds (number of seeds that were compared).
    """
    by_seed = table.groupby(["name", "seed"], sort=False)["gap"].mean().groupby("name")
    seeds = by_seed.agg(seed_lowest="min", seed_highest="max", seeds="count")
    found = table.groupby("name", sort=False)["gap"].agg(
        mean="mean", lowest="min", highest="max", compared="count", outside="size"
    )
    found["outside"] -= found["compared"]
    columns = ["mean", "lowest", "highest", *seeds.columns[:2], "compared", "outside", "seeds"]
    return found.join(seeds)[columns].rename_axis(None)


def cuts(layers: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Return what each method and setting kept of every layer, as the mean over seeds.

    Args:
        layers: from `workbook.study.tables.read_tables`, one row per layer of a network.
        points: the networks, from the same call.

    Returns:
        method, name, the grid's keys, setting, values, layer, share (% of the channels that were
        kept), weight_bits, activation_bits. Methods are in the order of METHOD_WORDS, settings in
        the order of the points, layers in the order of the network.
    """
    keys = grid_keys(points)
    measured = ["layer", "kept", "total", "weight_bits", "activation_bits"]
    table = points[["point", "method", *keys]].merge(layers[["point", *measured]], on="point")
    table["share"] = 100 * table["kept"] / table["total"]
    groups = table.groupby(["method", *keys, "layer"], sort=False, dropna=False)
    means = groups[["share", "weight_bits", "activation_bits"]].mean().reset_index()
    return _named(means, keys)
