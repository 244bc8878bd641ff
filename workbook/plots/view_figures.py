"""Figures of accuracy by view; gaitlib.evaluate computes the accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from gaitlib.system.errors import UserError
from workbook.plots.style import (
    STYLE,
    condition_colour,
    condition_words,
    model_colour,
    without_frame,
)


@plt.rc_context(STYLE)
def view_heatmaps(maps: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Draw rank-1 for every pair of views, one row of maps per model, one column per condition.

    With two or more models a further row shows the last one minus the first. All accuracies share
    one colour scale; all differences share another, symmetric one. Pairs of the same view are
    framed, because the mean excludes them; a single view is the only one that counts.

    Args:
        maps: model name to condition to a table (probe views x gallery views) of %, NaN where
            nothing was measured.
    """
    rows = dict(maps)
    if len(maps) > 1:
        rows |= _difference(maps)
    return _draw_rows(rows, maps)


@plt.rc_context(STYLE)
def view_differences(maps: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Draw the rank-1 of the first model for every pair of views, and the last one minus it.

    Args:
        maps: as in `view_heatmaps`, two models or more.

    Raises:
        UserError: there is one model.
    """
    if len(maps) < 2:
        raise UserError(f"{list(maps)}: a difference needs two models")
    first = next(iter(maps))
    return _draw_rows({first: maps[first], **_difference(maps)}, {first: maps[first]})


def _difference(
    maps: Mapping[str, Mapping[str, pd.DataFrame]],
) -> dict[str, dict[str, pd.DataFrame]]:
    """Return a row of maps, by its title: the last model minus the first."""
    first, last = next(iter(maps)), next(reversed(maps))
    return {f"{last} minus {first}": {c: maps[last][c] - maps[first][c] for c in maps[first]}}


def _draw_rows(
    rows: Mapping[str, Mapping[str, pd.DataFrame]], maps: Mapping[str, Mapping[str, pd.DataFrame]]
) -> Figure:
    """Draw rows of maps: those in ``maps`` are accuracies, the others differences."""
    conditions = list(next(iter(maps.values())))
    accuracies = np.concatenate(
        [m.to_numpy().ravel() for name in maps for m in maps[name].values()]
    )
    floor = 10 * np.floor(np.nanmin(accuracies, initial=90) / 10)
    signed = [m.to_numpy() for name in rows if name not in maps for m in rows[name].values()]
    largest = max([1.0, *(np.nanmax(np.abs(m), initial=0) for m in signed)])

    views = max(len(m) for matrices in maps.values() for m in matrices.values())
    unit = _unit(maps[next(iter(maps))][conditions[0]].index)
    side = min(1.0, 0.4 + 0.06 * views)  # of a map: full size from ten views on
    fig, axes = plt.subplots(
        len(rows),
        len(conditions),
        figsize=(3.8 * side * len(conditions) + 0.9, 4.0 * side * len(rows) + 0.4),
        squeeze=False,
        layout="compressed",  # the maps are square
    )
    for line, (name, matrices) in zip(axes, rows.items(), strict=True):
        difference = name not in maps
        scale = {"cmap": "viridis", "vmin": floor, "vmax": 100}
        if difference:
            scale = {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
        for ax, condition in zip(line, conditions, strict=True):
            image = _draw_map(ax, matrices[condition], scale, difference, frames=views > 1)
            ax.set_title(f"{name}, {condition}")
        line[0].set_ylabel(f"probe view{unit}")
        bar = fig.colorbar(image, ax=list(line), pad=0.01, shrink=0.9)
        bar.set_label("points" if difference else "rank-1 (%)")
        bar.outline.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(f"gallery view{unit}")
    words = "framed: same view, not in the mean"
    if views == 1:
        words = "one gallery of all views" if matrices[condition].index[0] == "all" else "one view"
        words += ": the identical view counts"
    fig.supxlabel(words, fontsize=10)
    plt.close(fig)
    return fig


def _unit(views: Iterable[str]) -> str:
    """Return " (degrees)" if the views are named after their angles: 000, 018, ..."""
    return " (degrees)" if all(len(view) == 3 and view.isdigit() for view in views) else ""


def _draw_map(
    ax: Axes, matrix: pd.DataFrame, scale: dict[str, object], signed: bool, frames: bool
) -> QuadMesh:
    """Draw one map with its numbers; same views get frames, NaN is grey.

    seaborn's heatmap draws the whole figure once per map to see whether ticks overlap, which takes
    twenty times as long for fifteen maps.
    """
    write = "{:+.0f}" if signed else "{:.0f}"
    values = matrix.to_numpy(dtype=float)
    mesh = ax.pcolormesh(values, **scale)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = relative_luminance(mesh.cmap(mesh.norm(value))) > 0.408
            text = write.format(value) if round(value) else "0"
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8)
            ax.texts[-1].set_color("0.15" if dark else "white")
    ax.set_facecolor("#E3E3E3")
    for i in range(len(matrix) if frames else 0):
        frame = plt.Rectangle((i + 0.06, i + 0.06), 0.88, 0.88, fill=False, edgecolor="#202020")
        ax.add_patch(frame)
    ax.set(aspect="equal", xlim=(0, values.shape[1]), ylim=(values.shape[0], 0))
    ax.set_xticks(np.arange(len(matrix.columns)) + 0.5, matrix.columns, rotation=90, fontsize=9)
    ax.set_yticks(np.arange(len(matrix.index)) + 0.5, matrix.index, rotation=0, fontsize=9)
    without_frame(ax)
    return mesh


@plt.rc_context(STYLE)
def view_curves(curves: pd.DataFrame) -> Figure:
    """Draw the accuracy of each probe view (over other gallery views), one line per model.

    If there is one view, it is that of the identical view.

    Args:
        curves: tidy, with columns model, condition, view, rank1 (%).
    """
    conditions = list(dict.fromkeys(curves["condition"]))
    models = list(dict.fromkeys(curves["model"]))
    views = sorted(curves["view"].unique())
    fig, axes = plt.subplots(
        1, len(conditions), figsize=(4 * len(conditions), 3.8), sharey=True, squeeze=False
    )
    for ax, condition in zip(axes[0], conditions, strict=True):
        for i, model in enumerate(models):
            chosen = curves[(curves["condition"] == condition) & (curves["model"] == model)]
            rank1 = chosen.set_index("view")["rank1"].reindex(views)
            marker, line = ("o", "-") if i == 0 else ("s", "--")
            ax.plot(
                views,
                rank1,
                line,
                marker=marker,
                markersize=5,
                linewidth=1.8,
                color=model_colour(model, i),
                label=model,
            )
        ax.set_title(condition_words(condition))
        ax.set_xlabel(f"probe view{_unit(views)}")
        ax.set_xticks(range(len(views)), views, rotation=90)
    which = "excluded" if len(views) > 1 else "alone"
    axes[0, 0].set_ylabel(f"rank-1 (%)\nidentical view {which}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(models))
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def drop_intervals(table: pd.DataFrame, name: str = "compressed", level: float = 95.0) -> Figure:
    """Draw the change of rank-1 per condition with its interval over test subjects.

    Args:
        table: from `gaitlib.evaluate.bootstrap_drop`: condition, rank1_a, rank1_b,
            difference, low, high (points; NaN draws no interval), subjects.
        name: what the axis label calls model b, such as GETA.
        level: of the interval in %, for the axis label.
    """
    y = np.arange(len(table))
    fig, ax = plt.subplots(figsize=(8, 1.4 + 0.55 * len(table)))
    ax.axvline(0, color="#595959", linewidth=1)
    for at, row in zip(y, table.itertuples(), strict=True):
        colour = condition_colour(row.condition, at)
        ax.plot([row.low, row.high], [at, at], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot(row.difference, at, "o", color=colour, markersize=9)
        text = f"{row.rank1_a:.1f} to {row.rank1_b:.1f} %"
        if not np.isnan(row.low):
            text += f"   {row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})"
        ax.annotate(text, (row.difference, at), (0, 9), textcoords="offset points", ha="center")
    ax.set_yticks(y, table["condition"])
    ax.set_ylim(len(table) - 0.4, -0.75)
    ax.grid(axis="y", visible=False)
    subjects = int(table["subjects"].max()) if len(table) else 0
    ax.set_xlabel(
        f"{name} minus dense, rank-1 points\n({level:g} % interval over {subjects} test subjects)"
    )
    plt.close(fig)
    return fig
