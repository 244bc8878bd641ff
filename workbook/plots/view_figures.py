"""Figures of accuracy by view; gaitlib.evaluate computes the accuracies."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from gaitlib.system.errors import UserError
from workbook.plots.style import (
    colour_of,
    condition_words,
    legend_above,
    styled,
    without_frame,
)

Maps = Mapping[str, Mapping[str, pd.DataFrame]]  # by name of a row, and condition


@styled
def view_heatmaps(maps: Maps) -> Figure:
    """Draw rank-1 for every pair of views, one row of maps per model, one column per condition.

    With two or more models a further row shows the last one minus the first. All accuracies share
    one colour scale; all differences share another, symmetric one. Pairs of the same view are
    framed, because the mean excludes them; a single view is the only one that counts.

    Args:
        maps: model name to condition to a table (probe views x gallery views) of %, NaN where
            nothing was measured.
    """
    return _draw_rows(maps, _difference(maps) if len(maps) > 1 else {})


@styled
def view_differences(maps: Maps) -> Figure:
    """Draw the rank-1 of the first model for every pair of views, and the last one minus it.

    Args:
        maps: as in `view_heatmaps`, two models or more.

    Raises:
        UserError: there is one model.
    """
    if len(maps) < 2:
        raise UserError(f"{list(maps)}: a difference needs two models")
    first = next(iter(maps))
    return _draw_rows({first: maps[first]}, _difference(maps))


def _difference(maps: Maps) -> Maps:
    """Return a row of maps, by its title: the last model minus the first."""
    first, last = next(iter(maps)), next(reversed(maps))
    return {f"{last} minus {first}": {c: maps[last][c] - maps[first][c] for c in maps[first]}}


def _draw_rows(accuracies: Maps, differences: Maps) -> Figure:
    """Draw a row of maps for each model, and one for each difference."""
    rows = {**accuracies, **differences}
    some = next(iter(accuracies.values()))
    matrix = next(iter(some.values()))
    views = max(map(len, some.values()))
    floor = 10 * np.floor(np.nanmin(_all_values(accuracies), initial=90) / 10)
    largest = np.nanmax(np.abs(_all_values(differences)), initial=1)
    side = min(1.0, 0.4 + 0.06 * views)  # of a map: full size from ten views on
    size = (3.8 * side * len(some) + 0.9, 4.0 * side * len(rows) + 0.4)
    grid = {"squeeze": False, "layout": "compressed"}  # the maps are square
    fig, axes = plt.subplots(len(rows), len(some), figsize=size, **grid)
    for line, (name, matrices) in zip(axes, rows.items(), strict=True):
        write, scale = "{:.0f}", {"cmap": "viridis", "vmin": floor, "vmax": 100}
        if name in differences:
            write, scale = "{:+.0f}", {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
        for ax, condition in zip(line, some, strict=True):
            _draw_map(ax, matrices[condition], write, scale)
            ax.set_title(f"{name}, {condition}")
        bar = fig.colorbar(ax.collections[0], ax=list(line), pad=0.01, shrink=0.9)
        bar.set_label("points" if name in differences else "rank-1 (%)")
        bar.outline.set_visible(False)
        line[0].set_ylabel(f"probe view{_unit(matrix.index)}")
    for ax in axes[-1]:
        ax.set_xlabel(f"gallery view{_unit(matrix.index)}")
    words = "framed: same view, not in the mean"
    if views == 1:
        words = "one gallery of all views" if matrix.index[0] == "all" else "one view"
        words += ": the identical view counts"
    fig.supxlabel(words, fontsize=10)
    return fig


def _all_values(rows: Maps) -> np.ndarray:
    maps = [m.to_numpy(float).ravel() for matrices in rows.values() for m in matrices.values()]
    return np.concatenate([[np.nan], *maps])


def _unit(views: Iterable[str]) -> str:
    """Return " (degrees)" if the views are named after their angles: 000, 018, ..."""
    return " (degrees)" if all(len(view) == 3 and view.isdigit() for view in views) else ""


def _draw_map(ax: plt.Axes, matrix: pd.DataFrame, write: str, scale: dict[str, object]) -> None:
    """Draw one map with its numbers; same views get frames, NaN is grey.

    seaborn's heatmap draws the whole figure once per map to see whether ticks overlap, which takes
    twenty times as long for fifteen maps.
    """
    mesh = ax.pcolormesh(matrix.to_numpy(float), **scale)
    for (i, j), value in np.ndenumerate(matrix.to_numpy(float)):
        if not np.isnan(value):
            colour = "0.15" if relative_luminance(mesh.to_rgba(value)) > 0.408 else "white"
            text = write.format(value) if round(value) else "0"
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    ax.set_facecolor("#E3E3E3")
    for i in range(len(matrix) if len(matrix) > 1 else 0):
        frame = plt.Rectangle((i + 0.06, i + 0.06), 0.88, 0.88, fill=False, edgecolor="#202020")
        ax.add_patch(frame)
    ax.set(aspect="equal", ylim=(len(matrix), 0))
    ax.set_xticks(np.arange(len(matrix.columns)) + 0.5, matrix.columns, rotation=90, fontsize=9)
    ax.set_yticks(np.arange(len(matrix)) + 0.5, matrix.index, fontsize=9)
    without_frame(ax)


@styled
def view_curves(curves: pd.DataFrame) -> Figure:
    """Draw the accuracy of each probe view (over other gallery views), one line per model.

    If there is one view, it is that of the identical view.

    Args:
        curves: tidy, with columns model, condition, view, rank1 (%).
    """
    conditions = curves["condition"].unique()
    colours = {name: colour_of(name, i) for i, name in enumerate(curves["model"].unique())}
    views = sorted(curves["view"].unique())
    size = (4 * len(conditions), 3.8)
    fig, axes = plt.subplots(1, len(conditions), figsize=size, sharey=True, squeeze=False)
    for ax, condition in zip(axes[0], conditions, strict=True):
        table = curves[curves["condition"] == condition]
        wide = table.pivot(index="view", columns="model", values="rank1").reindex(views)
        for i, (model, colour) in enumerate(colours.items()):
            look = {"marker": "s", "linestyle": "--"} if i else {"marker": "o"}
            look |= {"markersize": 5, "linewidth": 1.8, "color": colour, "label": model}
            ax.plot(wide[model], **look)
        ax.set(title=condition_words(condition), xlabel=f"probe view{_unit(views)}")
        ax.tick_params("x", rotation=90)
    which = "excluded" if len(views) > 1 else "alone"
    axes[0, 0].set_ylabel(f"rank-1 (%)\nidentical view {which}")
    legend_above(fig, axes[0, 0].lines)
    return fig


@styled
def drop_intervals(table: pd.DataFrame, name: str = "compressed") -> Figure:
    """Draw the change of rank-1 per condition with its 95 % interval over test subjects.

    Args:
        table: from `gaitlib.evaluate.bootstrap_drop`: condition, rank1_a, rank1_b,
            difference, low, high (points; NaN draws no interval), subjects.
        name: what the axis label calls model b, such as GETA.
    """
    fig, ax = plt.subplots(figsize=(8, 1.4 + 0.55 * len(table)))
    ax.axvline(0, color="#595959", linewidth=1)
    for at, row in enumerate(table.itertuples()):
        reach = [[row.difference - row.low], [row.high - row.difference]]
        look = {"color": colour_of(row.condition, at), "markersize": 9, "elinewidth": 3}
        ax.errorbar(row.difference, at, xerr=reach, fmt="o", **look)
        text = f"{row.rank1_a:.1f} to {row.rank1_b:.1f} %"
        if not np.isnan(row.low):
            text += f"   {row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})"
        ax.annotate(text, (row.difference, at), (0, 9), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(table)), table["condition"])
    ax.set_ylim(len(table) - 0.4, -0.75)
    ax.grid(axis="y", visible=False)
    subjects = table["subjects"].max()
    words = f"rank-1 points\n(95 % interval over {subjects} test subjects)"
    ax.set_xlabel(f"{name} minus dense, {words}")
    return fig
