"""Figures of a compressing run: what pruning cut and when, the channels' scores, and the bits."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gaitlib.model import BACKBONE
from gaitlib.system.errors import UserError
from workbook.plots.style import (
    CUT_COLOUR,
    KEPT_COLOUR,
    PALE_GREY,
    draw_smoothed,
    legend_above,
    styled,
)

#: What a run's history counts of pruning, and how the figure names it: the first that is there.
PROGRESS = {"cost_share": "cost, of the dense network's", "group_sparsity": "group sparsity"}
MOST_ON_A_LINE = 100  # ratio of scores up to which a linear axis shows them all
CHANGE = 0.5  # bits; what moves less is drawn as constant


@styled
def pruning_schedule(
    history: pd.DataFrame,
    periods: Sequence[tuple[float, float]] = (),
    target: float | None = None,
) -> Figure:
    """Draw loss, pruning and the cost of a step over iterations, with shaded pruning periods.

    Args:
        history: one row per logged step with columns iteration, total, and cost_share (with a
            budget) or group_sparsity (0-1; NaN where it was not counted). The multiply-adds of a
            step are drawn, as a share of the first's, if training_macs falls off (removed channels
            have left the network).
        periods: first and last iteration of each pruning period.
        target: the cost share or group sparsity to end at, 0-1.
    """
    fig, ax = plt.subplots(figsize=(9, 4))
    twin = ax.twinx()
    for i, (start, stop) in enumerate(periods):
        ax.axvspan(start, stop, color=PALE_GREY, alpha=0.75 if i % 2 == 0 else 0.4, linewidth=0)
    history = history.set_index("iteration")
    lines = draw_smoothed(ax, history["total"], KEPT_COLOUR, "loss")
    column = next(column for column in PROGRESS if column in history)
    counted = history[column].dropna()
    lines += twin.plot(
        counted, color=CUT_COLOUR, linewidth=2, drawstyle="steps-post", label=PROGRESS[column]
    )
    if "training_macs" in history:
        done = history["training_macs"].reset_index()
        done = done.diff().fillna(done)  # since the last row
        steps = done["training_macs"] / done["iteration"]
        if steps.iloc[-1] < 0.999 * steps.iloc[0]:
            style = {"linewidth": 1.5, "drawstyle": "steps-pre", "label": "multiply-adds of a step"}
            lines += twin.plot(history.index, steps / steps.iloc[0], "k--", **style)
    if target is not None:
        lines += [twin.axhline(target, color=CUT_COLOUR, linestyle=":", label="target")]
    if periods:
        lines += [Patch(color=PALE_GREY, label="pruning periods")]
    ax.set_xlabel("iteration")
    ax.set_ylabel("loss", color=KEPT_COLOUR)
    twin.set_ylabel(PROGRESS[column], color=CUT_COLOUR)
    twin.set_ylim(-0.02, 1.02)
    twin.yaxis.set_major_formatter(PercentFormatter(1))
    twin.grid(False)
    legend_above(fig, lines)
    return fig


@styled
def saliency_of_groups(scores: pd.DataFrame) -> Figure:
    """Draw the saliency score of every channel, one line of points per layer.

    The axis is logarithmic if all scores are positive and span more than `MOST_ON_A_LINE`, as the
    squared changes of the loss do.

    Args:
        scores: one row per channel with columns layer, score, kept (bool); layers in network order.
    """
    line, layers = pd.factorize(scores["layer"])
    fig, ax = plt.subplots(figsize=(9, 1.5 + 0.36 * len(layers)))
    # not seaborn's stripplot: its jitter differs from call to call
    y = line + np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))
    kept = scores["kept"].to_numpy(dtype=bool)
    for chosen, colour, name in ((kept, KEPT_COLOUR, "kept"), (~kept, CUT_COLOUR, "cut")):
        style = {"s": 14, "alpha": 0.6, "color": colour, "linewidths": 0}
        ax.scatter(scores["score"][chosen], y[chosen], label=f"{name} ({chosen.sum()})", **style)
    ax.set_yticks(range(len(layers)), layers)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    if 0 < scores["score"].min() < scores["score"].max() / MOST_ON_A_LINE:
        ax.set_xscale("log")
    ax.set_xlabel("saliency score")
    ax.grid(axis="y", visible=False)
    for edge in np.arange(len(layers) - 1) + 0.5:
        ax.axhline(edge, color="#E3E3E3", linewidth=0.8)
    legend_above(fig, ax.collections)
    return fig


@styled
def bits_schedule(bits: pd.DataFrame, phases: Mapping[str, int]) -> Figure:
    """Draw the bits of every quantizer over iterations, in one panel per kind.

    The allowed interval is shaded. Lines are coloured by depth, dark to light. The names beside a
    panel stand in the order of the lines' ends, with their last bits. NaN draws nothing. A kind of
    which no bits differ by `CHANGE` is named below the other panel instead.

    Args:
        bits: one row per logged iteration with columns iteration and, in execution order,
            ``weights:<layer>`` and ``activations:<layer>``: bits, real-valued. A kind without
            columns has no panel. For each kind, ``<kind>_min`` and ``<kind>_max`` are the bits
            allowed; NaN where there is no bound.
        phases: the first iteration of each phase, by the phase's name.

    Raises:
        UserError: there is no quantizer or no iteration to draw.
    """
    table = bits.set_index("iteration")
    kinds = {
        kind: table.filter(like=f"{kind}:").rename(columns=_layer_of)
        for kind in ("weights", "activations")
    }
    kinds = {kind: lines for kind, lines in kinds.items() if lines.size}
    if not kinds:
        raise UserError(
            f"no bits to draw in {len(bits)} rows of {list(bits)}: log an iteration and a column "
            "weights:<layer> or activations:<layer>"
        )
    layers = list(dict.fromkeys(layer for lines in kinds.values() for layer in lines))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(layers)))
    colours = dict(zip(layers, shades, strict=True))
    spans = {kind: lines.max(axis=None) - lines.min(axis=None) for kind, lines in kinds.items()}
    drawn = [kind for kind in kinds if spans[kind] >= CHANGE] or list(kinds)
    constant = [
        f"(bits of {kind}: {lines.ffill().iloc[-1].max():.3g} all the time)"
        for kind, lines in kinds.items()
        if kind not in drawn
    ]
    inches = max(2.6, 0.2 * (1 + max(len(kinds[kind].columns) for kind in drawn)))  # of a panel
    size = (10, 1.2 + inches * len(drawn))
    fig, axes = plt.subplots(len(drawn), 1, figsize=size, sharex=True, squeeze=False)
    for ax, kind in zip(axes[:, 0], drawn, strict=True):
        bounds = table[[f"{kind}_min", f"{kind}_max"]]
        _draw_bits(ax, kinds[kind], bounds, colours)
        ax.set_ylabel(f"bits of {kind}")
        for first in phases.values():
            ax.axvline(first, color="#595959", linewidth=0.8, linestyle=":")
    first, last = table.index.min(), table.index.max()
    axes[0, 0].set_xlim(first, max(last, first + 1))
    begun = {name: max(at, first) for name, at in phases.items() if at <= last}
    words = [name + "\n" * (i % 2) for i, name in enumerate(begun)]  # in two lines, to have room
    names = axes[0, 0].secondary_xaxis("top")
    names.set_xticks([*begun.values()], words, ha="left", color="#595959")
    axes[-1, 0].set_xlabel("\n".join(["iteration", *constant]))
    legend_above(fig, axes[0, 0].collections)
    return fig


def _layer_of(column: str) -> str:
    return column.partition(":")[2].removeprefix(BACKBONE)


def _draw_bits(
    ax: Axes, lines: pd.DataFrame, bounds: pd.DataFrame, colours: Mapping[str, np.ndarray]
) -> None:
    """Draw one panel: the allowed bits, a line per layer, and the layers' names at the right."""
    # the edge shows an interval that has shrunk to one number
    style = {"step": "post", "facecolor": PALE_GREY, "edgecolor": "#BFBFBF", "alpha": 0.6}
    ax.fill_between(bounds.index, *bounds.T.to_numpy(), label="allowed bits", linewidth=1, **style)
    for layer, line in lines.items():
        ax.plot(line, color=colours[layer], linewidth=1.5, alpha=0.9)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    last = lines.ffill().iloc[-1].dropna().sort_values(ascending=False, kind="stable")
    names = [
        Line2D([], [], color=colours[layer], label=f"{value:.3g}  {layer}")
        for layer, value in last.items()
    ]
    ax.legend(handles=names, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
