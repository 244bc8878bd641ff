"""Figures of recognition: who is named at which threshold and by view; embeddings."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbook.plots.style import (
    colour_of,
    condition_words,
    legend_above,
    styled,
)

MARKERS = {"NM": "o", "BG": "s", "CL": "^"}


@styled
def recognition_curves(
    curves: Mapping[str, pd.DataFrame], ranks: Mapping[str, pd.DataFrame]
) -> Figure:
    """Draw the ROC of open-set identification, and the rank curve, one line per network.

    Args:
        curves: network to a table with columns false_accepts and identified, in %.
        ranks: network to a table with columns k and share, in %.
    """
    fig, (roc, cmc) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, (name, table) in enumerate(curves.items()):
        style = {"color": colour_of(name, i), "label": name, "linewidth": 2}
        roc.step(table["false_accepts"], table["identified"], where="post", **style)
        cmc.plot(ranks[name]["k"], ranks[name]["share"], marker="o", markersize=4, **style)
    roc.set(xscale="log", xlabel="strangers that get a name (%)", ylabel="walks named rightly (%)")
    roc.set_title("ROC: known people against strangers")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    roc.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    roc.set_xlim(right=100)
    roc.set_ylim(0, 101)
    cmc.set(xlabel="names looked at (k)", ylabel="walks with the right name among them (%)")
    cmc.set_title("Rank curve: no threshold")
    least = min(table["share"].min() for table in ranks.values())
    cmc.set_ylim(min(90, 5 * np.floor(least / 5)), 100.5)
    cmc.xaxis.get_major_locator().set_params(integer=True)
    roc.legend(loc="lower right")
    return fig


@styled
def rates_by_view(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw right names and false accepts by view, one column per network.

    Args:
        tables: network to a table indexed by (condition, view) with the columns named_right and
            false_accepts, in %.
    """
    size = (5.5 * len(tables), 5.6)
    fig, axes = plt.subplots(2, len(tables), figsize=size, sharex=True, sharey="row", squeeze=False)
    rows = {"named_right": "known walks named rightly (%)", "false_accepts": "strangers named (%)"}
    for line, (measure, label) in zip(axes, rows.items(), strict=True):
        for ax, table in zip(line, tables.values(), strict=True):
            by_condition = table[measure].unstack("condition", sort=False)
            for i, (condition, rates) in enumerate(by_condition.items()):
                look = {"marker": MARKERS.get(condition, "o"), "label": condition_words(condition)}
                ax.plot(rates, color=colour_of(condition, i), markersize=5, **look)
        line[0].set_ylabel(label)
    for (top, bottom), name in zip(axes.T, tables, strict=True):
        top.set_title(name)
        bottom.set_xlabel("view of the walk (degrees)")
    axes[0, 0].set_ylim(0, 102)
    axes[1, 0].set_ylim(0, max(5, 1.1 * max(t["false_accepts"].max() for t in tables.values())))
    legend_above(fig, axes[0, 0].lines)
    return fig


@styled
def embedding_map(points: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw embedded walks as points in two dimensions, coloured by subject, one panel per network.

    Args:
        points: panel title to a table with columns x, y, subject and condition.
    """
    fig, axes = plt.subplots(1, len(points), figsize=(5.6 * len(points), 5.2), squeeze=False)
    for ax, (title, table) in zip(axes[0], points.items(), strict=True):
        markers = dict.fromkeys(table["condition"], "o") | MARKERS
        columns = {"x": "x", "y": "y", "hue": "subject", "style": "condition"}
        palette = sns.color_palette("tab10", table["subject"].nunique())
        look = {"s": 16, "alpha": 0.75, "linewidth": 0, "palette": palette, "markers": markers}
        sns.scatterplot(table.sort_values("subject"), ax=ax, legend=False, **columns, **look)
        middles = table.groupby("subject")[["x", "y"]].median()
        box = {"boxstyle": "round,pad=0.15", "color": "white", "alpha": 0.8}
        for subject, x, y in middles.itertuples():
            ax.text(x, y, subject, ha="center", va="center", fontsize=9, bbox=box)
        ax.set(title=title, xticks=[], yticks=[])
        ax.set(xlabel="first principal component", ylabel="second principal component")
    shapes = [
        Line2D([], [], linestyle="", marker=mark, color="#595959", label=condition_words(c))
        for c, mark in MARKERS.items()
    ]
    legend_above(fig, shapes)
    return fig
