"""Figures of recognition: who is named at which threshold, by view, how fast; embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbook.plots.style import STYLE, condition_colour, condition_words, model_colour

MARKERS = {"NM": "o", "BG": "s", "CL": "^"}


@plt.rc_context(STYLE)
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
        style = {"color": model_colour(name, i), "label": name, "linewidth": 2}
        roc.step(table["false_accepts"], table["identified"], where="post", **style)
        cmc.plot(ranks[name]["k"], ranks[name]["share"], marker="o", markersize=4, **style)
    roc.set(xscale="log", xlabel="strangers that get a name (%)", ylabel="walks named rightly (%)")
    roc.set_title("ROC: known people against strangers")
    roc.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
    roc.set_xlim(right=100)
    roc.set_ylim(0, 101)
    cmc.set(xlabel="names looked at (k)", ylabel="walks with the right name among them (%)")
    cmc.set_title("Rank curve: no threshold")
    shares = pd.concat([table["share"] for table in ranks.values()])
    cmc.set_ylim(min(90, 5 * np.floor(shares.min() / 5)), 100.5)
    cmc.xaxis.get_major_locator().set_params(integer=True)
    roc.legend(loc="lower right")
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def rates_by_view(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw right names and false accepts by view, one column per network.

    Args:
        tables: network to a table indexed by (condition, view) with the columns named_right and
            false_accepts, in %.
    """
    fig, axes = plt.subplots(
        2, len(tables), figsize=(5.5 * len(tables), 5.6), sharex=True, sharey="row", squeeze=False
    )
    rows = {"named_right": "known walks named rightly (%)", "false_accepts": "strangers named (%)"}
    for column, (name, table) in zip(axes.T, tables.items(), strict=True):
        column[0].set_title(name)
        for ax, (measure, label) in zip(column, rows.items(), strict=True):
            for i, condition in enumerate(table.index.unique("condition")):
                line = table.loc[condition, measure]
                ax.plot(
                    line.index,
                    line,
                    marker=MARKERS.get(condition, "o"),
                    markersize=5,
                    color=condition_colour(condition, i),
                    label=condition_words(condition),
                )
            if ax in axes[:, 0]:
                ax.set_ylabel(label)
        column[0].set_ylim(0, 102)
        column[1].set_ylim(0, max(5, 1.1 * max(t["false_accepts"].max() for t in tables.values())))
        column[1].set_xlabel("view of the walk (degrees)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def speed_bars(table: pd.DataFrame) -> Figure:
    """Draw milliseconds per walk and walks per second as bars, one per network.

    Args:
        table: one row per network, with columns ms_per_walk (one at a time) and walks_per_second
            (sixteen at a time).
    """
    panels = {
        "ms_per_walk": "ms per walk of 30 frames, one at a time",
        "walks_per_second": "walks per second, 16 at a time",
    }
    fig, axes = plt.subplots(1, 2, figsize=(11, 1.1 + 0.5 * len(table)), sharey=True)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        values = table[column]
        colours = [model_colour(name, i) for i, name in enumerate(table.index)]
        ax.barh(np.arange(len(table)), values, color=colours, height=0.6)
        for y, value in enumerate(values):
            ax.annotate(f"{value:.3g}", (value, y), (4, 0), textcoords="offset points", va="center")
        ax.set_xlim(0, 1.2 * values.max())
        ax.set_title(title)
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    axes[0].set_yticks(np.arange(len(table)), table.index)
    axes[0].invert_yaxis()
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def embedding_map(points: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw embedded walks as points in two dimensions, coloured by subject, one panel per network.

    Args:
        points: panel title to a table with columns x, y, subject and condition.
    """
    fig, axes = plt.subplots(1, len(points), figsize=(5.6 * len(points), 5.2), squeeze=False)
    colours = plt.get_cmap("tab10")
    for ax, (title, table) in zip(axes[0], points.items(), strict=True):
        subjects = sorted(table["subject"].unique())
        for (subject, condition), walks in table.groupby(["subject", "condition"]):
            ax.scatter(
                walks["x"],
                walks["y"],
                s=16,
                marker=MARKERS.get(condition, "o"),
                color=colours(subjects.index(subject) % 10),
                alpha=0.75,
                linewidths=0,
            )
        for subject, walks in table.groupby("subject"):
            middle = walks[["x", "y"]].median()
            ax.annotate(
                subject,
                middle,
                ha="center",
                va="center",
                fontsize=9,
                bbox={"boxstyle": "round,pad=0.15", "color": "white", "alpha": 0.8},
            )
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set(xlabel="first principal component", ylabel="second principal component")
    shapes = [
        plt.Line2D([], [], linestyle="", marker=mark, color="#595959", label=condition_words(c))
        for c, mark in MARKERS.items()
    ]
    fig.legend(handles=shapes, loc="outside lower center", ncols=len(shapes))
    plt.close(fig)
    return fig
