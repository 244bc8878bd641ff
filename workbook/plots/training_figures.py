"""Figures of a training run: its curves, the network's cost, and examples of recognition."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gaitlib.system.errors import UserError
from workbook.plots.style import (
    CUT_COLOUR,
    KEPT_COLOUR,
    STYLE,
    addable,
    label_bars,
    mosaic,
    mosaic_ticks,
    with_prefix,
    without_frame,
)

CURVE_COLOURS = ("#000000", "#4477AA", "#AA3377", "#228833", "#AA7700", "#66557A")  # of losses


@plt.rc_context(STYLE)
def training_curves(history: pd.DataFrame, smooth: int = 10) -> Figure:
    """Draw losses, accuracy and learning rate over iterations.

    Measured values are pale, running means strong.

    Args:
        history: one row per logged step: iteration, and any of total, ``*/loss``,
            ``*/accuracy``, lr. A panel without columns is not drawn.
        smooth: rows in the running mean.
    """
    losses = [c for c in history if c.endswith("/loss")]
    panels = {
        "loss": (["total"] if "total" in history else []) + losses,
        "accuracy on the batch": [c for c in history if c.endswith("/accuracy")],
        "learning rate": ["lr"] if "lr" in history else [],
    }
    panels = {label: columns for label, columns in panels.items() if columns}
    fig, axes = plt.subplots(
        len(panels),
        1,
        figsize=(9, 0.6 + 2.3 * len(panels)),
        sharex=True,
        squeeze=False,
        height_ratios=[0.5 if label == "learning rate" else 1 for label in panels],
    )
    x = history["iteration"]
    for ax, (label, columns) in zip(axes[:, 0], panels.items(), strict=True):
        for column, colour in zip(columns, CURVE_COLOURS, strict=False):
            if label == "learning rate":
                ax.step(x, history[column], color="black", where="post")
                continue
            running = history[column].rolling(smooth, min_periods=1, center=True).mean()
            ax.plot(x, history[column], color=colour, alpha=0.25, linewidth=1)
            ax.plot(x, running, color=colour, linewidth=1.8, label=column)
        ax.set_ylabel(label)
        if label != "learning rate":
            ax.legend(loc="best")
    if "learning rate" in panels:
        axes[-1, 0].set_yscale("log" if (history["lr"] > 0).all() else "linear")
        floor = max(history["lr"].min(), history["lr"].max() / 1e3)  # a cycle ends near zero
        axes[-1, 0].set_ylim(bottom=floor / 2)
    axes[-1, 0].set_xlabel("iteration")
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def hits_and_misses(rows: Sequence[tuple[np.ndarray, np.ndarray, str, bool]]) -> Figure:
    """Draw probes above their nearest gallery sequence, framed blue (hit) or red (miss).

    Args:
        rows: for each example the probe's and the match's grey image ``(H, W)`` of 0-255, a label
            of one or two short lines, and whether both are the same subject.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("no example to draw: are there probes and a gallery at other views?")
    height, width = rows[0][0].shape
    fig, ax = plt.subplots(figsize=(1.35 * len(rows) * width / height + 1.2, 3.7))
    sheet = mosaic([[probe for probe, *_ in rows], [match for _, match, *_ in rows]], gap=8)
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    centres = mosaic_ticks(len(rows), width, gap=8)
    for x, (_, _, _, hit) in zip(centres, rows, strict=True):
        colour = KEPT_COLOUR if hit else CUT_COLOUR
        corner = (x - width / 2 - 1.5, -2)
        ax.add_patch(
            plt.Rectangle(
                corner, width + 3, 2 * height + 11, fill=False, edgecolor=colour, linewidth=2.5
            )
        )
        ax.annotate(
            "hit" if hit else "miss",
            (x, -5),
            color=colour,
            ha="center",
            va="bottom",
            weight="bold",
            annotation_clip=False,
        )
    ax.set_xticks(centres, [label for _, _, label, _ in rows])
    ax.set_yticks(mosaic_ticks(2, height, gap=8), ["probe", "nearest in\nthe gallery"])
    ax.set(xlim=(-4, sheet.shape[1] + 3), ylim=(sheet.shape[0] + 3, -18))
    without_frame(ax)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def model_blocks(table: pd.DataFrame) -> Figure:
    """Draw parameters and multiply-adds of every block, with their share of the network.

    Multiply-adds per clip have no bar, because they are no share of those per frame.

    Args:
        table: one row per block with columns block, params, macs and per (``frame`` or ``clip``).
    """
    titles = {"params": "parameters: {} in all", "macs": "multiply-adds: {} per frame in all"}
    fig, axes = plt.subplots(1, 2, figsize=(10, 1 + 0.42 * len(table)), sharey=True)
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        counted = addable(table, column)
        values, total = table[column].tolist(), counted.sum()
        ax.barh(np.arange(len(table)), counted, color=KEPT_COLOUR, height=0.7)
        label_bars(
            ax,
            counted.tolist(),
            [
                f"{with_prefix(v)}  ({v / max(total, 1):.0%})"
                if c == v
                else f"{with_prefix(v)} per clip"
                for v, c in zip(values, counted, strict=True)
            ],
        )
        ax.set_title(title.format(with_prefix(total)), loc="left")
        ax.set_xlim(0, 1.4 * max([*counted, 1e-12]))
        ax.set_xticks([])
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)
    axes[0].set_yticks(np.arange(len(table)), table["block"])
    axes[0].invert_yaxis()
    plt.close(fig)
    return fig
