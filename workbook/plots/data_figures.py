"""Figures of a data set: its sequences, their lengths, and their silhouettes."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workbook.plots.style import (
    CONDITION_COLOURS,
    STYLE,
    condition_colour,
    condition_of,
    condition_words,
    mosaic,
    mosaic_ticks,
    types_in_order,
    without_frame,
)


@plt.rc_context(STYLE)
def sequences_heatmap(table: pd.DataFrame, expected: int = 11) -> Figure:
    """Draw how many views each subject has of each walking type.

    Args:
        table: one row per sequence with columns subject, type, view.
        expected: views per subject and type in a complete set.
    """
    counts = pd.crosstab(table["type"], table["subject"]).loc[types_in_order(table["type"])]
    fig, ax = plt.subplots(figsize=(10, 3.4))
    sns.heatmap(
        counts,
        ax=ax,
        cmap=plt.get_cmap("viridis", expected + 1),
        vmin=-0.5,
        vmax=expected + 0.5,
        linewidths=0.4,
        xticklabels=max(1, -(-counts.shape[1] // 16)),
        cbar_kws={"ticks": [0, expected // 2, expected], "pad": 0.01, "label": "views on disk"},
    )
    ax.tick_params(axis="y", rotation=0)
    without_frame(ax)
    missing = int((expected - counts.clip(upper=expected)).to_numpy().sum())
    title = f"{len(table)} sequences, {missing} missing"
    ax.set(xlabel="subject", ylabel="", title=title)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def frames_histogram(table: pd.DataFrame, bins: int = 30) -> Figure:
    """Draw histograms of the sequences' lengths, one panel per condition.

    Args:
        table: one row per sequence with columns type, frames.
        bins: of the histogram; if there are fewer lengths, each has a bar of its own.
    """
    condition = table["type"].map(condition_of)
    low, high = table["frames"].min(), table["frames"].max()
    bar_per_length = high - low < bins
    names = list(dict.fromkeys(condition_of(t) for t in types_in_order(table["type"])))
    if set(names) <= set(CONDITION_COLOURS):
        names = list(CONDITION_COLOURS)
    size = (8, max(5, 1.7 * len(names)))
    fig, axes = plt.subplots(len(names), 1, figsize=size, sharex=True, squeeze=False)
    for i, (ax, name) in enumerate(zip(axes[:, 0], names, strict=True)):
        frames, colour = table.loc[condition == name, "frames"], condition_colour(name, i)
        sns.histplot(
            x=frames, ax=ax, discrete=bar_per_length, bins="auto" if bar_per_length else bins,
            binrange=None if bar_per_length else (low, high), color=colour, alpha=1, shrink=0.9,
        )  # fmt: skip
        ax.set_title(condition_words(name), loc="left", fontsize=11)
        ax.set_ylabel("sequences")
        ax.grid(axis="x", visible=False)
        if len(frames):
            ax.axvline(frames.median(), color="black", linewidth=1, linestyle="--")
            text = f"median {frames.median():g}, shortest {frames.min()}"
            ax.set_title(text, loc="right", fontsize=10)
    axes[-1, 0].set_xlabel("frames in a sequence")
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def views_strip(clips: Mapping[str, np.ndarray], frames: int = 10, title: str = "") -> Figure:
    """Draw one clip per row, as evenly spaced frames.

    Args:
        clips: row label (view or type) to uint8 ``(T, H, W)``; H and W are the same for all.
        frames: number of columns.
        title: of the figure.
    """
    rows = []
    for clip in clips.values():
        picks = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)
        rows.append([clip[i] for i in picks])
    height, width = rows[0][0].shape
    fig, ax = plt.subplots(figsize=(0.75 * frames * width / height + 0.9, 0.75 * len(rows) + 0.7))
    ax.imshow(mosaic(rows), cmap="gray", vmin=0, vmax=255)
    labels = [f"{name}  ({len(clip)})" for name, clip in clips.items()]
    ax.set_yticks(mosaic_ticks(len(rows), height), labels)
    ax.set_xticks([])
    ax.set_xlabel("frames evenly spaced over the clip; its length in brackets")
    ax.set_title(title)
    without_frame(ax)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def gei_grid(geis: Mapping[tuple[str, str], np.ndarray], title: str = "") -> Figure:
    """Draw gait energy images (mean silhouettes), types in rows and views in columns.

    Args:
        geis: ``(type, view)`` to a grey image ``(H, W)`` of 0-255; missing pairs are pale.
        title: of the figure.
    """
    types, views = (list(dict.fromkeys(names)) for names in zip(*geis, strict=True))
    height, width = next(iter(geis.values())).shape
    sheet = mosaic([[geis.get((type_, view)) for view in views] for type_ in types])
    fig, ax = plt.subplots(figsize=(0.85 * len(views) + 1, 0.85 * len(types) + 0.8))
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    ax.set_xticks(mosaic_ticks(len(views), width), views)
    ax.set_yticks(mosaic_ticks(len(types), height), types)
    ax.set(xlabel="view (degrees)", title=title)
    without_frame(ax)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def foreground_statistics(table: pd.DataFrame) -> Figure:
    """Draw boxes per walking type of the filled share of the frame and the person's width.

    Args:
        table: one row per sequence with columns type, filled (share of pixels, 0-1) and width
            (mean extent in pixels).
    """
    types = types_in_order(table["type"])
    present = list(dict.fromkeys(condition_of(type_) for type_ in types))
    colours = {c: condition_colour(c, i) for i, c in enumerate(present)}
    panels = {"filled": "share of the frame filled", "width": "mean width (pixels)"}
    fig, axes = plt.subplots(1, len(panels), figsize=(10, 3.8))
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        # not seaborn 0.13's boxplot: it passes an argument that matplotlib 3.11 removes, and warns
        boxes = ax.boxplot(
            [table.loc[table["type"] == type_, column] for type_ in types],
            patch_artist=True,
            widths=0.6,
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#8C8C8C"},
        )
        for box, type_ in zip(boxes["boxes"], types, strict=True):
            box.set(facecolor=colours[condition_of(type_)], alpha=0.8, linewidth=0.8)
        ax.set_xticks(np.arange(1, len(types) + 1), types, rotation=45, ha="right")
        ax.set_ylabel(label)
        ax.grid(axis="x", visible=False)
    handles = [Patch(color=colour, label=condition_words(c)) for c, colour in colours.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    plt.close(fig)
    return fig
