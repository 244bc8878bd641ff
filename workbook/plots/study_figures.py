"""Figures of a finished study: differences, accuracy against costs, and each method's cuts."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS
from gaitlib.system.errors import UserError
from workbook.plots.style import (
    METHOD_STYLES,
    PALE_GREY,
    STYLE,
    condition_words,
    styled,
    with_prefix,
    without_frame,
)
from workbook.report.frontier import BASELINE, COSTS, number, pareto, tested_conditions
from workbook.report.method_names import in_order, words_of
from workbook.report.recommendation import LIMITS, Recommendation

SPARE_COLOURS = ("#661100", "#4477AA", "#888800", "#000000")  # of unknown methods, by appearance
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


def _marker_styles(methods: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return each method's marker and colour, as arguments of `Axes.plot`, in the usual order."""
    styles, spare = {}, iter(SPARE_COLOURS * 99)
    for method in in_order(methods):
        colour, marker = METHOD_STYLES.get(method) or (next(spare), "8")
        size = MARKER_SIZES.get(marker, 7.5)
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 3}
        styles[method] = {"color": colour, "marker": marker, "markersize": size, **edge}
    return styles


@styled
def paired_differences(table: pd.DataFrame, reference: str) -> Figure:
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
    styles = _marker_styles(table["method"])
    settings = table["values"].unique()
    size = (max(8.5, 2.6 + 3.1 * len(settings)), 1.5 + 0.38 * len(styles))  # its label is long
    grid = {"sharex": True, "sharey": True, "squeeze": False}
    fig, axes = plt.subplots(1, len(settings), figsize=size, **grid)
    for ax, setting in zip(axes[0], settings, strict=True):
        rows = table[table["values"] == setting]
        heights = rows["method"].map(list(styles).index)
        ax.axvline(0, color="#202020", linewidth=1)
        for y, row in zip(heights, rows.itertuples(), strict=True):
            reach = [[row.difference - row.low], [row.high - row.difference]]
            ax.errorbar(row.difference, y, xerr=reach, elinewidth=2, **styles[row.method])
        macs = 100 * rows["macs_per_frame"] / rows["reference_macs"]
        right = ax.secondary_yaxis("right")
        right.set_yticks(heights, macs.map("{:.0f} %".format), fontsize=9, color="#595959")
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
        ax.set_title(rows["setting"].iloc[0] or "all settings", loc="left")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(styles)), map(words_of, styles))
    axes[0, 0].set_ylim(len(styles) - 0.5, -0.5)
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
    return fig


@styled
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
    panels = [(cost, "rank1") for cost in COSTS if summary[cost].notna().any()]
    return _draw_panels(summary, panels, _mean_label(summary), recommendation)


@styled
def accuracy_and_cost(summary: pd.DataFrame) -> Figure:
    """Draw mean rank-1 against the multiply-adds, as `frontiers` does, in one panel."""
    return _draw_panels(summary, [("macs_per_frame", "rank1")], _mean_label(summary))


@styled
def frontier_by_condition(summary: pd.DataFrame) -> Figure:
    """Draw rank-1 of each condition against the multiply-adds, as `frontiers` does the mean."""
    conditions = tested_conditions(summary)
    panels = [("macs_per_frame", f"rank1_{condition}") for condition in conditions]
    fig = _draw_panels(summary, panels, "rank-1 (%)\nidentical view excluded")
    for ax, condition in zip(fig.axes, conditions, strict=False):
        ax.set_title(condition_words(condition))
    return fig


def _mean_label(summary: pd.DataFrame) -> str:
    return f"rank-1 (%), mean of {', '.join(tested_conditions(summary))}"


def _draw_panels(
    summary: pd.DataFrame,
    panels: Sequence[tuple[str, str]],
    label: str,
    recommendation: Recommendation | None = None,
) -> Figure:
    """Draw panels, each a cost and an accuracy, with a legend in a spare panel or at the right."""
    dense = summary.loc[summary["method"] == BASELINE, "rank1"].mean()
    is_below = summary["rank1"] <= dense - FAR_BELOW  # none without a dense network
    shown, below = summary[~is_below], summary[is_below]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    spare = rows * columns - len(panels)
    size = (4.4 * columns + 3.4 * (not spare), 3.7 * rows)
    sharey = len({accuracy for _, accuracy in panels}) == 1
    fig, axes = plt.subplots(rows, columns, figsize=size, sharey=sharey, squeeze=False)
    for ax, (cost, accuracy) in zip(axes.flat, panels, strict=False):
        _draw_panel(ax, shown, cost, accuracy)
        if recommendation is not None:
            _draw_limits(ax, dense, cost, recommendation)
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    entries = {}
    for ax in fig.axes:
        handles, words = ax.get_legend_handles_labels()
        entries |= dict(zip(words, handles, strict=True))
    for row in below.itertuples():
        words = f"{row.name}, {row.values}:\n{row.rank1:.0f} %, below the figure"
        entries[words] = Line2D([], [], linestyle="none")
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    place = {"handles": entries.values(), "labels": entries.keys(), "labelspacing": 0.8}
    if spare:
        axes.flat[len(panels)].legend(loc="center", **place)
    else:
        fig.legend(loc="outside right center", **place)
    return fig


def _draw_panel(ax: Axes, summary: pd.DataFrame, cost: str, accuracy: str) -> None:
    """Draw one panel: an accuracy against a cost."""
    dense = summary[summary["method"] == BASELINE]
    if dense[accuracy].notna().any():
        band = dense[f"{accuracy}_min"].min(), dense[f"{accuracy}_max"].max()
        ax.axhspan(*band, color=PALE_GREY, alpha=0.6, linewidth=0)
        ax.axhline(dense[accuracy].mean(), color=METHOD_STYLES[BASELINE][0], linewidth=0.8)
    fronts = pareto(summary, cost, accuracy)
    styles = _marker_styles(summary["method"])
    shifts = np.linspace(-BAR_SHIFT, BAR_SHIFT, len(styles)) / 72
    for (method, style), shift in zip(styles.items(), shifts, strict=True):
        front, rows = (table[table["method"] == method] for table in (fronts, summary))
        ax.plot(front[cost], front[accuracy], color=style["color"], linewidth=1.6)
        span = rows[f"{accuracy}_min"], rows[f"{accuracy}_max"]
        bars = ax.vlines(rows[cost], *span, style["color"])
        sideways = ScaledTranslation(shift, 0, ax.get_figure().dpi_scale_trans)
        bars.set(linewidth=1.3, transform=ax.transData + sideways)
        ax.plot(rows[cost], rows[accuracy], linestyle="none", label=words_of(method), **style)
    ax.set_xscale("log")
    _label_ticks(ax, cost)
    ax.set_xlabel(f"{COSTS[cost].axis} (log axis)")


def _label_ticks(ax: Axes, cost: str) -> None:
    """Label at least three numbers of a log axis, as round as possible."""
    low, high = ax.get_xlim()
    some = [LogLocator(subs=subs) for subs in ([1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8])]
    for locator in (*some, MaxNLocator(4)):
        ticks = locator.tick_values(low, high)
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    write = with_prefix if cost == "params" else number
    ax.set_xticks(ticks, [write(tick * COSTS[cost].scale) for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw_limits(ax: Axes, dense: float, cost: str, recommendation: Recommendation) -> None:
    """Hatch the area outside the limits, and ring the recommended setting."""
    limits = recommendation.limits
    excluded = EXCLUDED_STYLE | {"label": "outside the limits"}
    low, high = ax.get_xlim()
    for limit in [value for name, value in limits.items() if LIMITS[name] == cost]:
        low, high = min(low, 0.9 * limit), max(high, 1.1 * limit)
        ax.axvspan(limit, high, **excluded)
        ax.axvline(limit, **LIMIT_STYLE)
    if "max_drop" in limits and not np.isnan(dense):
        bottom, top = ax.get_ylim()
        least = dense - limits["max_drop"]
        ax.axhspan(least - 100, least, **excluded)
        ax.axhline(least, **LIMIT_STYLE)
        ax.set_ylim(min(bottom, least - 0.05 * (top - least)), top)
    ax.set_xlim(low, high)
    _label_ticks(ax, cost)
    if (row := recommendation.row) is not None:
        ring = {"markersize": 17, "linestyle": "none", "label": "recommended"}
        ax.plot(row[cost], row["rank1"], **ring, **RING_STYLE)


@styled
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
    shares = table.assign(text=table["share"].map("{:.0f}".format))
    bits = [table[f"{kind}_bits"].map("{:.2g}".format) for kind in ("weight", "activation")]
    bits = table.assign(text=bits[0] + " / " + bits[1])
    keys = table.columns[2 : table.columns.get_loc("setting")]  # after method and name
    by = ", ".join(["method", *(key.rpartition(".")[2] for key in keys)])
    cut = settings["share"].transform("min") < 100
    rounded = settings["weight_bits"].transform("min") < FLOAT_BITS
    maps = {
        f"channels kept, %  (by {by})": (shares[cut], "share", SHARE_COLOURS),
        "bits of weights / of inputs": (bits[rounded], "weight_bits", BIT_COLOURS),
    }
    maps = {title: arguments for title, arguments in maps.items() if len(arguments[0])}
    if not maps:
        raise UserError(f"no cuts to draw: {in_order(table['method'])} kept all, in float")
    layers = table["layer"].nunique()
    heights = [len(rows) // layers for rows, *_ in maps.values()]
    size = (2.8 + 0.66 * layers, 1.8 + 0.29 * sum(heights) + 0.4 * len(maps))
    grid = {"height_ratios": heights, "squeeze": False, "sharex": True}
    fig, axes = plt.subplots(len(maps), 1, figsize=size, **grid)
    for ax, (title, arguments) in zip(axes[:, 0], maps.items(), strict=True):
        _draw_map(ax, *arguments)
        ax.set_title(title, loc="left")
    axes[-1, 0].tick_params("x", rotation=90)
    return fig


def _draw_map(ax: Axes, rows: pd.DataFrame, column: str, scale: Mapping[str, object]) -> None:
    """Draw one map, with gaps between methods and a method's name at its first setting only."""
    cells = rows.set_index(["name", "values", "layer"])[[column, "text"]]
    wide = cells.unstack("layer", sort=False)
    look = {"annot_kws": {"fontsize": 8.5}, "cbar": False, **scale}
    sns.heatmap(wide[column], ax=ax, annot=wide["text"], fmt="", **look)
    first = ~wide.index.get_level_values("name").duplicated()
    for at in np.flatnonzero(first)[1:]:
        ax.axhline(at, color="white", linewidth=3)
    names = np.where(first, wide.index.get_level_values("name"), "")
    labels = names + "   " + wide.index.get_level_values("values")
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels.str.rstrip(), rotation=0)
    ax.set(xlabel="", ylabel="")
    without_frame(ax)
