"""Recommend which network of a finished study to deploy, under limits, in one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gaitlib.system.errors import UserError
from workbook.report.frontier import BASELINE, COSTS, number

#: What `recommend` can limit, and the column of a summary that it reads.
LIMITS = {
    "max_macs": "macs_per_frame",
    "max_bytes": "file_bytes",
    "max_latency_ms": "ms_1_clip",
    "max_drop": "drop",
}


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Which network to deploy.

    Attributes:
        row: the recommended row of the summary; None if no setting meets the limits.
        limits: the limits that were set, by `recommend`'s argument names.
        sentence: names the setting, its costs, and the next best method.
    """

    row: pd.Series | None
    limits: Mapping[str, float]
    sentence: str


def recommend(summary: pd.DataFrame, asked: Mapping[str, float]) -> Recommendation:
    """Choose one of a study's settings by its means over seeds.

    It chooses the most accurate setting that meets every limit (of equals, the one with fewer BOPs,
    then fewer bytes). If ``max_drop`` is the only limit, it chooses the setting with the fewest
    BOPs (then fewer bytes, then more accurate). Dense networks are candidates too. A cost that was
    not measured meets no limit. 0 means no limit.

    Args:
        summary: from `workbook.report.frontier.summarise`.
        asked: limits by name: max_macs (multiply-adds of the backbone per frame), max_bytes (of the
            file), max_latency_ms (to embed one clip, as the study measured it), max_drop
            (percentage points of rank1 below the baseline of the same seed).

    Raises:
        UserError: a limit is negative or NaN, or no network has an accuracy.
    """
    for name, value in asked.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}: write a positive limit, or 0 for no limit")
    limits = {name: float(value) for name, value in asked.items() if value}
    known = summary.dropna(subset=["rank1"])
    if known.empty:
        raise UserError("no network of the study has a mean rank-1: nothing to choose from")
    within = {name: known[LIMITS[name]] <= limit for name, limit in limits.items()}
    fitting = known[pd.DataFrame(within, known.index).all(axis=1)]
    if fitting.empty:
        return Recommendation(None, limits, _none_fits(known, limits))
    by_bops = set(limits) == {"max_drop"}
    costs = ["relative_bops", "file_bytes"]
    order = [*costs, "rank1"] if by_bops else ["rank1", *costs]
    ascending = [column != "rank1" for column in order]
    ordered = fitting.sort_values(order, ascending=ascending, kind="stable")
    best = ordered.iloc[0]
    others = ordered[ordered["method"] != best["method"]]
    if len(fitting) == 1:
        chosen = f"is the only one of {len(known)} settings"
    else:
        among = f"the {len(fitting)} settings (of {len(known)})"
        among = among if limits else f"all {len(known)} settings"
        chosen = f"{'has the fewest BOPs' if by_bops else 'is the most accurate'} of {among}"
    shown = [c for c in COSTS if c != "ms_1_clip" or "max_latency_ms" in limits]
    sentence = (
        f"{_label(best)} {chosen}{_within(limits)}: {_accuracy(best)}, with "
        f"{_joined([COSTS[c].write(best[c]) for c in shown])}; {_runner_up(best, others, by_bops)}."
    )
    return Recommendation(best, limits, sentence)


def _label(row: pd.Series) -> str:
    return f"{row['name']} ({row['setting']})" if row["setting"] else row["name"]


def _within(limits: Mapping[str, float]) -> str:
    texts = [_write(name, value) for name, value in limits.items()]
    return f" within {_joined(texts)}" if texts else ""


def _write(limit: str, value: float) -> str:
    """Write a limit, or a value that it limits, with its unit."""
    column = LIMITS[limit]
    if column in COSTS:
        return COSTS[column].write(value)
    return f"a drop of {number(value)} {'point' if value == 1 else 'points'}"


def _joined(texts: Sequence[str]) -> str:
    return " and ".join([*filter(None, [", ".join(texts[:-1])]), *texts[-1:]])


def _accuracy(row: pd.Series) -> str:
    seeds = "one seed"
    if row["seeds"] > 1:
        seeds = f"{row['rank1_min']:.1f} to {row['rank1_max']:.1f} over {row['seeds']} seeds"
    text = f"rank-1 {row['rank1']:.1f} % ({seeds})"
    if row["method"] == BASELINE or np.isnan(row["drop"]):
        return text
    gains = -row[["drop", "drop_max", "drop_min"]].astype(float)
    gain, low, high = (gains.round(1) + 0.0).map("{:+.1f}".format)  # no -0.0
    spread = f" ({low} to {high})" if row["seeds"] > 1 else ""
    return f"{text}, {gain} points{spread} against the dense network"


def _runner_up(best: pd.Series, others: pd.DataFrame, by_bops: bool) -> str:
    if others.empty:
        return "no other method has a setting to compare with it"
    second = others.iloc[0]
    text = f"next comes {_label(second)} with "
    if by_bops:
        bops = COSTS["relative_bops"].write(second["relative_bops"])
        return f"{text}{bops} and rank-1 {second['rank1']:.1f} %"
    text += f"{second['rank1']:.1f} %"
    spread = max(row["rank1_max"] - row["rank1_min"] for row in (best, second))
    if best["rank1"] - second["rank1"] < spread:
        text += ", closer than the seeds are to each other"
    return text


def _none_fits(known: pd.DataFrame, limits: Mapping[str, float]) -> str:
    """Name the setting that exceeds its worst limit by the smallest share, and what it exceeds."""
    over = pd.DataFrame({name: known[LIMITS[name]] / limit - 1 for name, limit in limits.items()})
    text = f"None of {len(known)} settings is{_within(limits)}"
    worst = over.max(axis=1, skipna=False)
    if worst.isna().all():
        missing = [LIMITS[name] for name in limits if over[name].isna().any()]
        return f"{text}: {_joined(missing)} was not measured."
    nearest, shares = known.loc[worst.idxmin()], over.loc[worst.idxmin()]
    parts = [
        f"{_write(name, nearest[LIMITS[name]])}, {number(100 * shares[name])} % over {name}"
        for name, limit in limits.items()
        if nearest[LIMITS[name]] > limit
    ]
    return f"{text}: {_label(nearest)} comes nearest, with {_joined(parts)}."
