"""Figures of a data set: its sequences, their lengths, and their silhouettes."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workbook.plots.style import (
    CONDITION_COLOURS,
    colour_of,
    condition_of,
    condition_words,
    draw_mosaic,
    legend_above,
    styled,
    types_in_order,
    without_frame,
)

FRAMES = 10  # of a clip in `views_strip`
BARS = 30  # of a histogram of lengths


@styled
def sequences_heatmap(table: pd.DataFrame, expected: int) -> Figure:
    """Draw how many views each subject has of each walking type.

    Args:
        table: one row per sequence with columns subject, type, view.
        expected: views per subject and type in a complete set.
    """
    counts = pd.crosstab(table["type"], table["subject"]).loc[types_in_order(table["type"])]
    fig, ax = plt.subplots(figsize=(10, 3.4))
    cells = {"cmap": plt.get_cmap("viridis", expected + 1), "linewidths": 0.4}
    bar = {"ticks": [0, expected // 2, expected], "pad": 0.01, "label": "views on disk"}
    every = max(1, -(-counts.shape[1] // 16))  # at most 16 subjects are named
    limits = {"vmin": -0.5, "vmax": expected + 0.5}
    sns.heatmap(counts, ax=ax, xticklabels=every, cbar_kws=bar, **cells, **limits)
    ax.tick_params(axis="y", rotation=0)
    without_frame(ax)
    missing = int((expected - counts.clip(upper=expected)).to_numpy().sum())
    title = f"{len(table)} sequences, {missing} missing"
    ax.set(xlabel="subject", ylabel="", title=title)
    return fig


@styled
def frames_histogram(table: pd.DataFrame) -> Figure:
    """Draw histograms of the sequences' lengths, one panel per condition.

    Args:
        table: one row per sequence with columns type, frames.
    """
    condition = table["type"].map(condition_of)
    low, high = table["frames"].min(), table["frames"].max()
    bins = {"bins": BARS, "binrange": (low, high)}
    if high - low < BARS:  # each length has a bar of its own
        bins = {"discrete": True}
    names = list(dict.fromkeys(condition_of(t) for t in types_in_order(table["type"])))
    if set(names) <= set(CONDITION_COLOURS):
        names = list(CONDITION_COLOURS)
    size = (8, max(5, 1.7 * len(names)))
    fig, axes = plt.subplots(len(names), 1, figsize=size, sharex=True, squeeze=False)
    for i, (ax, name) in enumerate(zip(axes[:, 0], names, strict=True)):
        frames, look = table.loc[condition == name, "frames"], {"alpha": 1, "shrink": 0.9}
        sns.histplot(x=frames, ax=ax, color=colour_of(name, i), **bins, **look)
        ax.set_title(condition_words(name), loc="left", fontsize=11)
        ax.set_ylabel("sequences")
        ax.grid(axis="x", visible=False)
        if len(frames):
            ax.axvline(frames.median(), color="black", linewidth=1, linestyle="--")
            text = f"median {frames.median():g}, shortest {frames.min()}"
            ax.set_title(text, loc="right", fontsize=10)
    axes[-1, 0].set_xlabel("frames in a sequence")
    return fig


@styled
def views_strip(clips: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Draw one clip per row, as evenly spaced frames.

    Args:
        clips: row label (view or type) to uint8 ``(T, H, W)``; H and W are the same for all.
        title: of the figure.
    """
    rows = []
    for clip in clips.values():
        picks = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
        rows.append(clip[picks])
    height, width = rows[0].shape[1:]
    fig, ax = plt.subplots(figsize=(0.75 * FRAMES * width / height + 0.9, 0.75 * len(rows) + 0.7))
    draw_mosaic(ax, rows, [], [f"{name}  ({len(clip)})" for name, clip in clips.items()])
    ax.set(xlabel="frames evenly spaced over the clip; its length in brackets", title=title)
    return fig


@styled
def gei_grid(geis: Mapping[tuple[str, str], np.ndarray], title: str = "") -> Figure:
    """Draw gait energy images (mean silhouettes), types in rows and views in columns.

    Args:
        geis: ``(type, view)`` to a grey image ``(H, W)`` of 0-255; missing pairs are pale.
        title: of the figure.
    """
    types, views = (list(dict.fromkeys(names)) for names in zip(*geis, strict=True))
    fig, ax = plt.subplots(figsize=(0.85 * len(views) + 1, 0.85 * len(types) + 0.8))
    rows = [[geis.get((type_, view)) for view in views] for type_ in types]
    draw_mosaic(ax, rows, views, types)
    ax.set(xlabel="view (degrees)", title=title)
    return fig


@styled
def foreground_statistics(table: pd.DataFrame) -> Figure:
    """Draw the filled share of the frame and the person's width per type, as boxes of quantiles.

    Args:
        table: one row per sequence with columns type, filled (share of pixels, 0-1) and width
            (mean extent in pixels).
    """
    types = types_in_order(table["type"])
    condition = table["type"].map(condition_of)
    conditions = list(dict.fromkeys(map(condition_of, types)))
    colours = {c: colour_of(c, i) for i, c in enumerate(conditions)}
    panels = {"filled": "share of the frame filled", "width": "mean width (pixels)"}
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        # seaborn 0.13's boxplot passes an argument that matplotlib 3.11 deprecates
        look = {"order": types, "palette": colours, "alpha": 0.8, "legend": False}
        sns.boxenplot(table, x="type", y=column, hue=condition, ax=ax, **look)
        ax.tick_params(axis="x", rotation=45)
        ax.set(xlabel="", ylabel=label)
        ax.grid(axis="x", visible=False)
    legend_above(fig, [Patch(color=colours[c], label=condition_words(c)) for c in conditions])
    return fig
