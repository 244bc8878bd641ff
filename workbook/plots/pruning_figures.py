"""Figures of pruning: its schedule, the channels that were cut, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gaitlib.system.errors import UserError
from workbook.plots.style import (
    CUT_COLOUR,
    KEPT_COLOUR,
    PALE_GREY,
    STYLE,
    addable,
    label_bars,
    model_colour,
    with_prefix,
)

STEP_COLOUR = "#000000"  # of the line of a step's multiply-adds
#: What a run's history counts of pruning, and how the figure names it: the first that is there.
_PROGRESS = {"cost_share": "cost, of the dense network's", "group_sparsity": "group sparsity"}


@plt.rc_context(STYLE)
def pruning_schedule(
    history: pd.DataFrame,
    periods: Sequence[tuple[float, float]] = (),
    target: float | None = None,
    smooth: int = 10,
) -> Figure:
    """Draw loss, pruning and the cost of a step over iterations, with shaded pruning periods.

    Args:
        history: one row per logged step with columns iteration, total, and cost_share (with a
            budget) or group_sparsity (0-1; NaN where it was not counted). The multiply-adds of a
            step are drawn, as a share of the first's, if training_macs falls off (removed channels
            have left the network).
        periods: first and last iteration of each pruning period.
        target: the cost share or group sparsity to end at, 0-1.
        smooth: rows in the running mean of the loss.
    """
    fig, ax = plt.subplots(figsize=(9, 4))
    twin = ax.twinx()
    for i, (start, stop) in enumerate(periods):
        ax.axvspan(start, stop, color=PALE_GREY, alpha=0.75 if i % 2 == 0 else 0.4, linewidth=0)
    running = history["total"].rolling(smooth, min_periods=1, center=True).mean()
    ax.plot(history["iteration"], history["total"], color=KEPT_COLOUR, alpha=0.25, linewidth=1)
    lines = ax.plot(history["iteration"], running, color=KEPT_COLOUR, label="loss")
    column = next(column for column in _PROGRESS if column in history)
    counted = history.dropna(subset=column)
    lines += twin.plot(
        counted["iteration"],
        counted[column],
        color=CUT_COLOUR,
        linewidth=2,
        drawstyle="steps-post",
        label=_PROGRESS[column],
    )
    steps = _step_macs(history)
    if len(steps) and steps.iloc[-1] < 0.999 * steps.iloc[0]:
        lines += twin.plot(
            history["iteration"],
            steps / steps.iloc[0],
            color=STEP_COLOUR,
            linewidth=1.5,
            linestyle="--",
            drawstyle="steps-pre",
            label="multiply-adds of a step",
        )
    if target is not None:
        lines += [twin.axhline(target, color=CUT_COLOUR, linestyle=":", label="target")]
    if periods:
        lines += [plt.Rectangle((0, 0), 1, 1, color=PALE_GREY, label="pruning periods")]
    ax.set_xlabel("iteration")
    ax.set_ylabel("loss", color=KEPT_COLOUR)
    twin.set_ylabel(_PROGRESS[column], color=CUT_COLOUR)
    twin.set_ylim(-0.02, 1.02)
    twin.yaxis.set_major_formatter(PercentFormatter(1))
    twin.grid(False)
    fig.legend(handles=lines, loc="outside upper center", ncols=len(lines))
    plt.close(fig)
    return fig


def _step_macs(history: pd.DataFrame) -> pd.Series:
    """Return the multiply-adds of a step, the mean since the last row; empty if not counted."""
    if "training_macs" not in history:
        return pd.Series(dtype=float)
    done = history[["iteration", "training_macs"]]
    return done.diff().fillna(done).eval("training_macs / iteration")


@plt.rc_context(STYLE)
def channels_kept(layers: pd.DataFrame) -> Figure:
    """Draw how many of its output channels each layer kept.

    Args:
        layers: one row per layer in network order with columns name, kept, total.
    """
    y = np.arange(len(layers))
    kept, total = layers["kept"].to_numpy(), layers["total"].to_numpy()
    fig, ax = plt.subplots(figsize=(9, 1.3 + 0.34 * len(layers)))
    ax.barh(y, kept, color=KEPT_COLOUR, height=0.7, label="kept")
    ax.barh(y, total - kept, left=kept, color=PALE_GREY, height=0.7, label="removed")
    texts = [f"{k} of {t}  ({k / t:.0%})" for k, t in zip(kept, total, strict=True)]
    label_bars(ax, total.tolist(), texts)
    ax.set_yticks(y, layers["name"])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("output channels")
    fig.legend(loc="outside upper center", ncols=2)
    plt.close(fig)
    return fig


@plt.rc_context(STYLE)
def block_cost(before: pd.DataFrame, after: pd.DataFrame, name: str = "compressed") -> Figure:
    """Draw parameters and multiply-adds per block, dense and compressed.

    Multiply-adds per clip have no bar, because they are no share of those per frame.

    Args:
        before: the dense network: one row per block with columns block, params, macs and per
            (``frame`` or ``clip``; only multiply-adds per frame are added up).
        after: the compressed network, with the same blocks.
        name: what the legend calls it, such as GETA.

    Raises:
        UserError: the blocks differ.
    """
    if list(before["block"]) != list(after["block"]):
        raise UserError(f"blocks differ: {list(before['block'])} and {list(after['block'])}")
    y = np.arange(len(before))
    titles = {"params": "parameters: {} to {}", "macs": "multiply-adds: {} to {} per frame"}
    fig, axes = plt.subplots(1, 2, figsize=(10, 1.4 + 0.6 * len(before)), sharey=True)
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for table, label, shift in ((before, "dense", -0.19), (after, name, 0.19)):
            counted = addable(table, column)
            ax.barh(y + shift, counted, 0.36, color=model_colour(label, 0), label=label)
            numbers = table[column], counted, before[column]
            for at, value, bar, whole in zip(y + shift, *numbers, strict=True):
                clip = "" if bar == value else " per clip"
                cut = f"  ({value / whole:.0%})" if table is after and whole else ""
                ax.annotate(
                    with_prefix(value) + clip + cut,
                    (bar, at),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        whole, rest = (addable(table, column).sum() for table in (before, after))
        ax.set_title(title.format(with_prefix(whole), with_prefix(rest)), loc="left")
        ax.set_xlim(0, 1.3 * max(addable(before, column).max(), 1e-12))
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    axes[0].set_yticks(y, before["block"])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    plt.close(fig)
    return fig


#: The ratio of scores up to which a linear axis shows them all.
MOST_ON_A_LINE = 100


@plt.rc_context(STYLE)
def saliency_of_groups(scores: pd.DataFrame) -> Figure:
    """Draw the saliency score of every channel, one line of points per layer.

    The axis is logarithmic if all scores are positive and span more than `MOST_ON_A_LINE`, as the
    squared changes of the loss do.

    Args:
        scores: one row per channel with columns layer, score, kept (bool); layers in network order.
    """
    layers = list(dict.fromkeys(scores["layer"]))
    fig, ax = plt.subplots(figsize=(9, 1.5 + 0.36 * len(layers)))
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))  # spreads equal scores
    y = scores["layer"].map(layers.index).to_numpy() + jitter
    kept = scores["kept"].to_numpy(dtype=bool)
    for mask, colour, name in ((kept, KEPT_COLOUR, "kept"), (~kept, CUT_COLOUR, "cut")):
        ax.scatter(
            scores["score"].to_numpy()[mask],
            y[mask],
            s=14,
            alpha=0.6,
            color=colour,
            linewidths=0,
            label=f"{name} ({mask.sum()})",
        )
    ax.set_yticks(np.arange(len(layers)), layers)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    if 0 < scores["score"].min() < scores["score"].max() / MOST_ON_A_LINE:
        ax.set_xscale("log")
    ax.set_xlabel("saliency score")
    ax.grid(axis="y", visible=False)
    for edge in np.arange(len(layers) - 1) + 0.5:
        ax.axhline(edge, color="#E3E3E3", linewidth=0.8)
    fig.legend(loc="outside upper center", ncols=2)
    plt.close(fig)
    return fig
