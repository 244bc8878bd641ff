"""Figures of a training run: its curves, and examples of recognition."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gaitlib.system.errors import UserError
from workbook.plots.style import CUT_COLOUR, KEPT_COLOUR, draw_mosaic, draw_smoothed, styled

CURVE_COLOURS = ("#000000", "#4477AA", "#AA3377", "#228833", "#AA7700", "#66557A")  # of losses


@styled
def training_curves(history: pd.DataFrame) -> Figure:
    """Draw losses, accuracy and learning rate over iterations.

    Measured values are pale, running means strong.

    Args:
        history: one row per logged step: iteration, and any of total, ``*/loss``,
            ``*/accuracy``, lr. A panel without columns is not drawn.
    """
    history = history.set_index("iteration")
    panels = {
        "loss": history.filter(regex="^total$|/loss$"),
        "accuracy on the batch": history.filter(like="/accuracy"),
        "learning rate": history.filter(items=["lr"]),
    }
    panels = {label: table for label, table in panels.items() if len(table.columns)}
    ratios = [0.5 if label == "learning rate" else 1 for label in panels]
    grid = {"height_ratios": ratios, "sharex": True, "squeeze": False}
    fig, axes = plt.subplots(len(panels), 1, figsize=(9, 0.6 + 2.3 * len(panels)), **grid)
    for ax, (label, table) in zip(axes[:, 0], panels.items(), strict=True):
        ax.set_ylabel(label)
        if label == "learning rate":
            ax.step(table.index, table["lr"], color="black", where="post")
            ax.set_yscale("log" if (table["lr"] > 0).all() else "linear")
            floor = max(table["lr"].min(), table["lr"].max() / 1e3)  # a cycle ends near zero
            ax.set_ylim(bottom=floor / 2)
            continue
        for column, colour in zip(table, CURVE_COLOURS, strict=False):
            draw_smoothed(ax, table[column], colour, column)
        ax.legend(loc="best")
    axes[-1, 0].set_xlabel("iteration")
    return fig


@styled
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
    probes, matches, labels, hits = zip(*rows, strict=True)
    height, width = probes[0].shape
    fig, ax = plt.subplots(figsize=(1.35 * len(rows) * width / height + 1.2, 3.7))
    draw_mosaic(ax, [probes, matches], labels, ["probe", "nearest in\nthe gallery"], gap=8)
    for x, hit in zip(ax.get_xticks(), hits, strict=True):
        colour, corner = KEPT_COLOUR if hit else CUT_COLOUR, (x - width / 2 - 1.5, -2)
        frame = {"fill": False, "edgecolor": colour, "linewidth": 2.5}
        ax.add_patch(plt.Rectangle(corner, width + 3, 2 * height + 11, **frame))
        word = {"color": colour, "ha": "center", "va": "bottom", "weight": "bold"}
        ax.text(x, -5, "hit" if hit else "miss", **word)
    ax.set(xlim=(-4, len(rows) * (width + 8) - 5), ylim=(2 * height + 11, -18))
    return fig
