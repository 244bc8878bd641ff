"""Figures of a finished study: differences, accuracy against costs, and each method's cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS
from gaitlib.system.errors import UserError
from workbook.plots.style import (
    METHOD_COLOURS,
    PALE_GREY,
    STYLE,
    condition_words,
    with_prefix,
    without_frame,
)
from workbook.report.frontier import (
    BASELINE,
    COSTS,
    DENSE_METHODS,
    HALF,
    LONGER,
    number,
    pareto,
    tested_conditions,
)
from workbook.report.method_names import in_order, words_of
from workbook.report.recommendation import LIMITS, Recommendation

MARKERS = {
    BASELINE: "o",
    LONGER: "p",
    HALF: "H",
    "budget": "<",
    "budget_longer": "d",
    "geta": "s",
    "hesso": "D",
    "ptq": "^",
    "magnitude": "v",
    "only_train_once": "P",
    "uniform": "X",
    "uniform_longer": ">",
    "uniform_extra": "h",
    "torch_pruning": "*",
}
#: A colour and a marker for each method, in every figure.
METHOD_STYLES = {method: (METHOD_COLOURS[method], marker) for method, marker in MARKERS.items()}
#: For unknown methods, in the order in which they appear.
SPARE_STYLES = tuple((colour, "8") for colour in ("#661100", "#4477AA", "#888800", "#000000"))
#: Sizes of markers that look too small in the usual size.
MARKER_SIZES = {"*": 12, "P": 9, "X": 9, "p": 9, "h": 9}
BAR_SHIFT = 2  # largest sideways shift of a seed bar, in points, so that bars do not overlap
FAR_BELOW = 15  # settings this many rank-1 points below the dense network are named, not drawn
LEAST_REACH = 10  # points of rank-1 that the axis of differences may always show on either side
EXCLUDED_STYLE = {"facecolor": "none", "edgecolor": "#C0C0C0", "hatch": "///", "linewidth": 0}
LIMIT_STYLE = {"color": "#202020", "linewidth": 1, "linestyle": "--"}
SHARE_COLOURS = {"cmap": "viridis", "vmin": 0, "vmax": 100}
BIT_COLOURS = {"cmap": "Blues_r", "vmin": -2, "vmax": 9}
RING_STYLE = {"marker": "o", "color": "none", "markeredgecolor": "#202020", "markeredgewidth": 1.8}


def _styles_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return each method's colour and marker."""
    unknown = [method for method in methods if method not in METHOD_STYLES]
    spare = {m: SPARE_STYLES[i % len(SPARE_STYLES)] for i, m in enumerate(unknown)}
    return {method: (METHOD_STYLES | spare)[method] for method in methods}


@plt.rc_context(STYLE)
def paired_differences(table: pd.DataFrame, reference: str = "budget") -> Figure:
    """Draw how far a method is above every other at each setting, with the 95 % interval.

    A panel is a setting of the reference, a row is a method. The mean over the seeds is a marker,
    the interval a bar (none for a single seed; one much longer than all means leaves the panel).
    Right of 0 the reference is better. The numbers at the right edge are the methods' MACs,
    in % of the reference's.

    Args:
        table: from `workbook.report.frontier.paired_differences`.
        reference: the method that was given there.

    Raises:
        UserError: nothing was compared.
    """
    if table.empty:
        raise UserError(f"no method has a seed in common with {reference!r}: nothing to draw")
    methods = in_order(table["method"])
    names = dict(zip(table["method"], table["name"], strict=True))
    settings = list(dict.fromkeys(table["values"]))
    fig, axes = plt.subplots(
        1,
        len(settings),
        figsize=(max(8.5, 2.6 + 3.1 * len(settings)), 1.5 + 0.38 * len(methods)),  # its label
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, setting in zip(axes[0], settings, strict=True):
        _draw_differences(ax, table[table["values"] == setting], methods)
    axes[0, 0].set_yticks(range(len(methods)), [names[method] for method in methods])
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    reach = max(LEAST_REACH, 1.5 * table["difference"].abs().max())
    ends = table[["low", "high", "difference"]].clip(-reach, reach)
    axes[0, 0].set_xlim(ends.min().min() - 1, ends.max().max() + 1)
    low, high = table["seeds"].min(), table["seeds"].max()
    seeds = f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"
    fig.supxlabel(
        f"mean rank-1 of {words_of(reference)} minus the method's, in points\n"
        f"mean and 95 % interval of {seeds}; right edge: MACs, {words_of(reference)} = 100 %",
        fontsize=STYLE["axes.labelsize"],
    )
    plt.close(fig)
    return fig


def _draw_differences(ax: Axes, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    """Draw one panel: the differences at one setting."""
    ax.axvline(0, color="#202020", linewidth=1)
    styles = _styles_of(methods)
    for row in rows.to_dict("records"):
        colour, marker = styles[row["method"]]
        height = methods.index(row["method"])
        ax.hlines(height, row["low"], row["high"], color=colour, linewidth=2)
        ax.plot(row["difference"], height, linestyle="none", **_marker_style(colour, marker))
        ax.annotate(
            f"{100 * row['macs_per_frame'] / row['reference_macs']:.0f} %",
            (1, height),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#595959",
        )
    ax.set_title(rows["setting"].iloc[0] or "all settings", loc="left")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


@plt.rc_context(STYLE)
def frontiers(summary: pd.DataFrame, recommendation: Recommendation | None = None) -> Figure:
    """Draw mean rank-1 against each cost, on log axes, with a line through each method's frontier.

    Every setting has a marker, and a bar from its worst to its best seed. The dense network is a
    line at the mean of its seeds, and a band over their range. Settings 15 points or more below it
    are named in the legend and not drawn, because they would squeeze the others.

    Args:
        summary: from `workbook.report.frontier.summarise`. A cost that was not measured has no
            panel.
        recommendation: its setting gets a ring; the area outside its limits is hatched.
    """
    summary, below = _near_dense(summary)
    costs = [cost for cost in COSTS if summary[cost].notna().any()]
    columns = min(3, len(costs) + 1)
    rows = -(-(len(costs) + 1) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.7 * rows), sharey=True, squeeze=False
    )
    panels = axes.ravel()
    for ax, cost in zip(panels, costs, strict=False):
        _draw_panel(ax, summary, cost, "rank1")
        if recommendation is not None:
            _draw_limits(ax, summary, cost, recommendation)
    for ax in panels[len(costs) :]:
        ax.axis("off")
    conditions = ", ".join(tested_conditions(summary))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"rank-1 (%), mean of {conditions}")
    handles = _legend_entries(summary, below, recommendation)
    panels[len(costs)].legend(handles=handles, loc="center", labelspacing=0.8)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def accuracy_and_cost(summary: pd.DataFrame, cost: str = "macs_per_frame") -> Figure:
    """Draw mean rank-1 against one cost, as `frontiers` does, in one panel with its legend beside.

    Args:
        summary: from `workbook.report.frontier.summarise`.
        cost: a column of COSTS.
    """
    summary, below = _near_dense(summary)
    fig, ax = plt.subplots(figsize=(9.5, 4.2))
    _draw_panel(ax, summary, cost, "rank1")
    ax.set_ylabel(f"rank-1 (%), mean of {', '.join(tested_conditions(summary))}")
    ax.set_xlabel(f"{COSTS[cost].axis} (log axis)")
    fig.legend(handles=_legend_entries(summary, below), loc="outside right center")
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def frontier_by_condition(summary: pd.DataFrame, cost: str = "macs_per_frame") -> Figure:
    """Draw rank-1 of each condition against one cost, with a line through each method's frontier.

    Args:
        summary: from `workbook.report.frontier.summarise`.
        cost: a column of COSTS.
    """
    summary, below = _near_dense(summary)
    conditions = tested_conditions(summary)
    fig, axes = plt.subplots(1, len(conditions), figsize=(4 * len(conditions), 4.6), squeeze=False)
    for ax, condition in zip(axes[0], conditions, strict=True):
        _draw_panel(ax, summary, cost, f"rank1_{condition}")
        ax.set_title(condition_words(condition))
    axes[0, 0].set_ylabel("rank-1 (%)\nidentical view excluded")
    columns = max(1, 5 * len(conditions) // 3)
    fig.legend(handles=_legend_entries(summary, below), loc="outside upper center", ncols=columns)
    plt.close(fig)
    return fig


def _near_dense(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the settings to draw, and those far below the dense network."""
    dense = summary.loc[summary["method"] == BASELINE, "rank1"].mean()
    below = summary["rank1"] <= dense - FAR_BELOW  # none without a dense network
    return summary[~below], summary[below]


def _draw_panel(ax: Axes, summary: pd.DataFrame, cost: str, accuracy: str) -> None:
    """Draw one panel: an accuracy against a cost."""
    dense = summary[summary["method"] == BASELINE]
    if dense[accuracy].notna().any():
        band = dense[f"{accuracy}_min"].min(), dense[f"{accuracy}_max"].max()
        ax.axhspan(*band, color=PALE_GREY, alpha=0.6, linewidth=0)
        ax.axhline(dense[accuracy].mean(), color=METHOD_COLOURS[BASELINE], linewidth=0.8)
    fronts = pareto(summary, cost, accuracy)
    styles = _styles_of(in_order(summary["method"]))
    shifts = np.linspace(-BAR_SHIFT, BAR_SHIFT, len(styles))
    for (method, (colour, marker)), shift in zip(styles.items(), shifts, strict=True):
        front, settings = (table[table["method"] == method] for table in (fronts, summary))
        ax.plot(front[cost], front[accuracy], color=colour, linewidth=1.6)
        bars = ax.vlines(
            settings[cost],
            settings[f"{accuracy}_min"],
            settings[f"{accuracy}_max"],
            color=colour,
            linewidth=1.3,
        )
        sideways = ScaledTranslation(shift / 72, 0, ax.get_figure().dpi_scale_trans)
        bars.set_transform(ax.transData + sideways)
        ax.plot(
            settings[cost], settings[accuracy], linestyle="none", **_marker_style(colour, marker)
        )
    ax.set_xscale("log")
    _label_ticks(ax, cost)
    ax.set_xlabel(COSTS[cost].axis)


def _marker_style(colour: str, marker: str) -> dict[str, object]:
    size = MARKER_SIZES.get(marker, 7.5)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.8}
    return {"marker": marker, "markersize": size, "color": colour, "zorder": 3, **edge}


def _label_ticks(ax: Axes, cost: str) -> None:
    """Label at least three numbers of a log axis, as round as possible."""
    low, high = ax.get_xlim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for steps in ([1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]):
        ticks = np.outer(powers, steps).ravel()
        if ((low <= ticks) & (ticks <= high)).sum() >= 3:
            break
    else:
        ticks = MaxNLocator(4).tick_values(low, high)
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    write = with_prefix if cost == "params" else number
    ax.set_xticks(ticks, [write(tick * COSTS[cost].scale) for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw_limits(
    ax: Axes, summary: pd.DataFrame, cost: str, recommendation: Recommendation
) -> None:
    """Hatch the area outside the limits, and ring the recommended setting."""
    limits = recommendation.limits
    low, high = ax.get_xlim()
    for limit in [value for name, value in limits.items() if LIMITS[name] == cost]:
        low, high = min(low, 0.9 * limit), max(high, 1.1 * limit)
        ax.axvspan(limit, high, **EXCLUDED_STYLE)
        ax.axvline(limit, **LIMIT_STYLE)
    dense = summary.loc[summary["method"] == BASELINE, "rank1"].mean()
    if "max_drop" in limits and not np.isnan(dense):
        bottom, top = ax.get_ylim()
        least = dense - limits["max_drop"]
        ax.axhspan(least - 100, least, **EXCLUDED_STYLE)
        ax.axhline(least, **LIMIT_STYLE)
        ax.set_ylim(min(bottom, least - 0.05 * (top - least)), top)
    ax.set_xlim(low, high)
    _label_ticks(ax, cost)
    if (row := recommendation.row) is not None:
        ax.plot(row[cost], row["rank1"], markersize=17, **RING_STYLE)


def _legend_entries(
    summary: pd.DataFrame, below: pd.DataFrame, recommendation: Recommendation | None = None
) -> list[Line2D | plt.Rectangle]:
    """Return the legend's entries: methods, recommendation, limits, and settings not drawn."""
    words = dict(zip(summary["method"], summary["name"], strict=True))
    handles = []
    for method, (colour, marker) in _styles_of(in_order(words)).items():
        line = "none" if method in DENSE_METHODS else "-"
        style = _marker_style(colour, marker)
        handles.append(Line2D([], [], linestyle=line, label=words[method], **style))
    if recommendation is not None and recommendation.row is not None:
        handles.append(
            Line2D([], [], linestyle="none", label="recommended", markersize=13, **RING_STYLE)
        )
    if recommendation is not None and recommendation.limits:
        handles.append(plt.Rectangle((0, 0), 1, 1, label="outside the limits", **EXCLUDED_STYLE))
    for row in below.to_dict("records"):
        label = f"{row['name']}, {row['values']}:\n{row['rank1']:.0f} %, below the figure"
        handles.append(Line2D([], [], linestyle="none", label=label))
    return handles


@plt.rc_context(STYLE)
def cuts_by_method(table: pd.DataFrame) -> Figure:
    """Draw the share of channels that each method and setting kept in each layer, and the bits.

    Settings that cut nothing have no row. A second map shows the bits of weights and inputs, for
    settings that have any.

    Args:
        table: from `workbook.report.frontier.cuts`.

    Raises:
        UserError: no method cut or rounded anything.
    """
    table = table.assign(layer=table["layer"].str.removeprefix(BACKBONE))
    settings = table.groupby(["method", "values"])
    cut = table[settings["share"].transform("min") < 100]
    rounded = table[settings["weight_bits"].transform("min") < FLOAT_BITS]
    keys = table.columns[2 : table.columns.get_loc("setting")]  # after method and name
    by = ", ".join(["method", *(key.rpartition(".")[2] for key in keys)])
    maps = {
        f"channels kept, %  (by {by})": (cut, "share", "{:.0f}", SHARE_COLOURS),
        "bits of weights / of inputs": (rounded, "weight_bits", "{:.2g} / {:.2g}", BIT_COLOURS),
    }
    maps = {title: arguments for title, arguments in maps.items() if len(arguments[0])}
    if not maps:
        raise UserError(f"no cuts to draw: {in_order(table['method'])} kept all, in float")
    layers = list(dict.fromkeys(table["layer"]))
    heights = [len(rows[["method", "values"]].drop_duplicates()) for rows, *_ in maps.values()]
    fig, axes = plt.subplots(
        len(maps),
        1,
        figsize=(2.8 + 0.66 * len(layers), 1.8 + 0.29 * sum(heights) + 0.4 * len(maps)),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
    )
    for ax, (title, arguments) in zip(axes[:, 0], maps.items(), strict=True):
        _draw_map(ax, layers, *arguments)
        ax.set_title(title, loc="left")
    axes[-1, 0].set_xticks(np.arange(len(layers)) + 0.5, layers, rotation=90)
    plt.close(fig)
    return fig


def _draw_map(
    ax: Axes,
    layers: Sequence[str],
    rows: pd.DataFrame,
    column: str,
    write: str,
    scale: Mapping[str, object],
) -> None:
    """Draw one map, with gaps between methods and a method's name at its first setting only."""
    settings = rows[["method", "name", "values"]].drop_duplicates(ignore_index=True)
    texts = [
        write.format(*values) for values in zip(rows[column], rows["activation_bits"], strict=True)
    ]
    wide = rows.assign(text=texts).pivot(index=["method", "values"], columns="layer")
    wide = wide.loc[list(zip(settings["method"], settings["values"], strict=True))]
    sns.heatmap(
        wide[column][layers],
        ax=ax,
        annot=wide["text"][layers],
        fmt="",
        annot_kws={"fontsize": 8.5},
        cbar=False,
        **scale,
    )
    first = ~settings["method"].duplicated()
    for at in settings.index[first][1:]:
        ax.axhline(at, color="white", linewidth=3)
    labels = (settings["name"].where(first, "") + "   " + settings["values"]).str.rstrip()
    ax.set_yticks(np.arange(len(settings)) + 0.5, labels, rotation=0)
    ax.set(xlabel="", ylabel="")
    without_frame(ax)
