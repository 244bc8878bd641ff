"""Figures of quantization: bits during training, final bits by layer, and what they save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS, stored_bytes
from gaitlib.system.errors import UserError
from workbook.plots.style import (
    KEPT_COLOUR,
    PALE_GREY,
    SPARE_COLOURS,
    STYLE,
    condition_colour,
    condition_words,
    model_colour,
)

KINDS = ("weights", "activations")
BOPS_COLOUR, BYTES_COLOUR = SPARE_COLOURS[:2]
LONGEST_BIT_AXIS = 16  # in bits
CHANGE = 0.5  # bits; what moves less is drawn as constant
LABEL_INCHES = 0.18  # distance of the 9-point names at the ends of lines


@plt.rc_context(STYLE)
def bits_schedule(
    bits: pd.DataFrame, plan: pd.DataFrame, phases: Mapping[str, int] | None = None
) -> Figure:
    """Draw the bits of every quantizer over iterations, in one panel per kind.

    The allowed interval is shaded. Lines are coloured by depth, dark to light; at its end a line
    has its layer's name and bits. NaN draws nothing. A kind whose bits never change by half a bit
    is named below the other panel instead.

    Args:
        bits: one row per logged iteration with columns iteration and, in execution order,
            ``weights:<layer>`` and ``activations:<layer>``: bits, real-valued. A kind without
            columns has no panel.
        plan: one row per logged iteration with columns iteration and, for each kind drawn,
            ``<kind>_min`` and ``<kind>_max``: the bits allowed; NaN where there is no bound.
        phases: the first iteration of each phase, by the phase's name.

    Raises:
        UserError: there is no quantizer or no iteration to draw.
    """
    columns = {kind: [c for c in bits if c.startswith(f"{kind}:")] for kind in KINDS}
    columns = {kind: names for kind, names in columns.items() if names}
    if not columns or bits.empty:
        raise UserError(
            f"no bits to draw in {len(bits)} rows of {list(bits)}: log an iteration and a column "
            "weights:<layer> or activations:<layer>"
        )
    columns, constant = _split_off_constant(bits, columns)
    layers = list(dict.fromkeys(c.partition(":")[2] for names in columns.values() for c in names))
    shades = colormaps["viridis"](np.linspace(0, 0.88, len(layers)))
    colours = dict(zip(layers, shades, strict=True))
    inches = max(2.6, LABEL_INCHES * (1 + max(map(len, columns.values()))))  # height of a panel
    fig, axes = plt.subplots(
        len(columns), 1, figsize=(10, 1.2 + inches * len(columns)), sharex=True, squeeze=False
    )
    x = bits["iteration"]
    left, right = x.min(), max(x.max(), x.min() + 1)
    axes[0, 0].set_xlim(left, right)
    for ax, (kind, names) in zip(axes[:, 0], columns.items(), strict=True):
        lower, upper = plan[f"{kind}_min"], plan[f"{kind}_max"]
        # the edge shows an interval that has shrunk to one number
        style = {"step": "post", "facecolor": PALE_GREY, "edgecolor": "#BFBFBF", "alpha": 0.6}
        ax.fill_between(plan["iteration"], lower, upper, linewidth=1, **style)
        for column in names:
            colour = colours[column.partition(":")[2]]
            ax.plot(x, bits[column], color=colour, linewidth=1.5, alpha=0.9)
        top = 1.04 * np.nanmax([*bits[names].max(), upper.max(), 1])
        least = np.nanmin([*bits[names].min(), lower.min(), top])
        bottom = max(0.0, np.floor(least) - 1)
        ax.set_ylim(bottom, top)
        ax.set_ylabel(f"bits of {kind}")
        ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        _name_ends(ax, bits.set_index("iteration")[names], colours, LABEL_INCHES / inches)
        for first in (phases or {}).values():
            ax.axvline(first, color="#595959", linewidth=0.8, linestyle=":")
    _name_phases(axes[0, 0], phases or {}, left, right)
    axes[-1, 0].set_xlabel("\n".join(["iteration", *constant]))
    band = plt.Rectangle(
        (0, 0), 1, 1, facecolor=PALE_GREY, edgecolor="#BFBFBF", label="allowed bits"
    )
    fig.legend(handles=[band], loc="outside upper center")
    plt.close(fig)
    return fig


def _split_off_constant(
    bits: pd.DataFrame, columns: Mapping[str, list[str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the kinds whose bits change or differ, and a line of text about each other one.

    If no bits change, as when they are chosen once, the kinds whose layers differ are returned.
    """
    spans = {kind: bits[names].max() - bits[names].min() for kind, names in columns.items()}
    last = {kind: bits[names].ffill().iloc[-1] for kind, names in columns.items()}
    kept = [kind for kind, span in spans.items() if (span >= CHANGE).any()]
    kept = kept or [kind for kind, ends in last.items() if ends.max() - ends.min() >= CHANGE]
    if not kept:
        return dict(columns), []
    constant = []
    for kind in [kind for kind in columns if kind not in kept]:
        ends = dict.fromkeys((f"{last[kind].min():.3g}", f"{last[kind].max():.3g}"))
        constant.append(f"(bits of {kind}: {' to '.join(ends)} all the time)")
    return {kind: columns[kind] for kind in kept}, constant


def _name_ends(
    ax: Axes, bits: pd.DataFrame, colours: Mapping[str, Sequence[float]], apart: float
) -> None:
    """Write each line's layer and last bits right of the axes.

    Args:
        ax: the panel.
        bits: one column per line, by iteration.
        colours: of each layer.
        apart: the least distance of two texts, as a share of the axes' height.
    """
    bottom, top = ax.get_ylim()
    gap = apart * (top - bottom)
    ends = {
        c: bits[c].dropna() for c in reversed(bits.columns)
    }  # of equal ones, the first is on top
    ends = {c: line for c, line in ends.items() if len(line)}
    order = sorted(ends, key=lambda c: ends[c].iloc[-1])
    last_bits = [ends[c].iloc[-1] for c in order]
    heights = _spread_apart(last_bits, gap, bottom + gap / 2, top - gap / 2)
    for column, height in zip(order, heights, strict=True):
        layer = column.partition(":")[2]
        x, y = ends[column].index[-1], ends[column].iloc[-1]
        ax.annotate(
            f"{layer.removeprefix(BACKBONE)}  {y:.3g}",
            (x, y),
            (1.04, height),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=colours[layer],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[layer],
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "patchA": None,
                "shrinkA": 4,
                "shrinkB": 0,
            },
        )


def _spread_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Return heights that are at least ``gap`` apart and closest to the wanted ones (in squares).

    Subtracting i * gap turns this into isotonic regression, solved by the max-min formula of its
    means. Clipping that solution solves the problem with bounds.

    Args:
        wanted: heights, ascending.
        gap: the least distance of neighbours.
        low: bound of the lowest height.
        high: bound of the highest height, unless the heights need more room.
    """
    offsets = gap * np.arange(len(wanted))
    z = np.asarray(wanted, dtype=float) - offsets
    count = range(len(z))
    fitted = [
        max(min(z[i : j + 1].mean() for j in count[k:]) for i in count[: k + 1]) for k in count
    ]
    return np.clip(fitted, low, max(low, high - gap * (len(z) - 1))) + offsets


def _name_phases(ax: Axes, phases: Mapping[str, int], left: float, right: float) -> None:
    """Write the names of phases that have begun above the axes, in as many lines as needed."""
    ends: list[float] = []  # of each line's text, as a share of the axes' width
    for name, first in sorted(phases.items(), key=lambda phase: phase[1]):
        if first > right:
            continue
        at = max(0.0, (first - left) / (right - left))
        line = next((i for i, end in enumerate(ends) if end <= at), len(ends))
        ends[line : line + 1] = [at + 0.0105 * (len(name) + 1)]
        ax.annotate(
            name,
            (at, 1),
            (0, 4 + 12 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            color="#595959",
        )


@plt.rc_context(STYLE)
def bits_by_layer(table: pd.DataFrame) -> Figure:
    """Draw each layer's bits of weights and inputs, and its share of the BOPs and of the bytes.

    The axis of bits ends at 16 or earlier; longer bars are cut. Bytes are those of the weights in
    the file, where 9 to 16 bits take 16, and more take 32. Shares refer to the layers that have a
    value; NaN draws nothing.

    Args:
        table: one row per layer, in execution order, with columns layer, weight_bits,
            activation_bits (integers; 32 is "float"), weights (how many numbers), bops, and
            optionally per (``frame`` or ``clip``; only BOPs per frame are added up).
    """
    y = np.arange(len(table))
    per_frame = table["per"] == "frame" if "per" in table else pd.Series(True, table.index)
    panels = {"weight_bits": "bits of weights", "activation_bits": "bits of activations"}
    chosen = table[list(panels)].to_numpy(dtype=float)
    limit = min(
        LONGEST_BIT_AXIS, max(8, np.nanmax(np.where(chosen < FLOAT_BITS, chosen, 0), initial=0))
    )

    fig, axes = plt.subplots(
        1, 3, figsize=(11, 1.5 + 0.38 * len(table)), sharey=True, width_ratios=[1, 1, 0.9]
    )
    for ax, (column, title) in zip(axes, panels.items(), strict=False):
        _draw_bars_of_bits(ax, y, table[column].to_numpy(dtype=float), limit)
        ax.set_title(title, loc="left")
    bops = table["bops"].where(per_frame)
    stored = pd.Series(
        [
            np.nan if np.isnan([numel, bits]).any() else stored_bytes(int(numel), int(bits))
            for numel, bits in zip(table["weights"], table["weight_bits"], strict=True)
        ],
        dtype=float,
    )
    shares = [(bops, -0.2, BOPS_COLOUR, "BOPs"), (stored, 0.2, BYTES_COLOUR, "bytes of weights")]
    widest = 0.0
    for values, shift, colour, _ in shares:
        share = (100 * values / values.sum()).to_numpy(dtype=float)
        widest = np.nanmax([*share, widest])
        _draw_bars(axes[2], y + shift, share, 0.38, colour, _write_share, fontsize=8)
    for at in y[~per_frame]:
        axes[2].annotate(
            "BOPs per clip",
            (0, at - 0.2),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#8C8C8C",
        )
    axes[2].set_title("share of the network", loc="left")
    axes[2].set_xlim(0, 1.25 * max(widest, 1))
    axes[2].grid(axis="y", visible=False)
    axes[2].xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    axes[0].set_yticks(y, [name.removeprefix(BACKBONE) for name in table["layer"]])
    axes[0].set_ylim(len(table) - 0.4, -0.6)
    _draw_legend(fig, {label: colour for _, _, colour, label in shares})
    plt.close(fig)
    return fig


def _draw_bars_of_bits(ax: Axes, y: np.ndarray, bits: np.ndarray, limit: float) -> None:
    """Draw bars of bits; bars longer than ``limit`` end behind it in a break."""
    cut = bits > limit
    for chosen, colour in ((bits < FLOAT_BITS, KEPT_COLOUR), (bits >= FLOAT_BITS, PALE_GREY)):
        shown = np.where(chosen, np.where(cut, 1.12 * limit, bits), np.nan)
        _draw_bars(ax, y, shown, 0.7, colour)
    for at, value, long in zip(y, bits, cut, strict=True):
        if np.isnan(value):
            continue
        text = "float" if value >= FLOAT_BITS else f"{value:g}"
        _write_beside(ax, text, 1.12 * limit if long else value, at)
        if long:
            x = limit * np.array([1.02, 1.05])
            for shift in (0, 0.03 * limit):
                ax.plot(x + shift, at + np.array([0.37, -0.37]), color="white", linewidth=1.5)
    ax.set_xlim(0, 1.35 * limit)
    ax.set_xticks(np.arange(0, limit + 1, 4 if limit > 8 else 2))
    ax.grid(axis="y", visible=False)


@plt.rc_context(STYLE)
def size_and_accuracy(table: pd.DataFrame) -> Figure:
    """Draw file size and BOPs of networks as points on log axes, and their rank-1 by condition.

    Args:
        table: one row per network, its name in the index, with columns file_kb, relative_bops (% of
            the dense network's), and rank1_<condition> (%). NaN draws nothing.
    """
    y = np.arange(len(table))
    fig, axes = plt.subplots(
        1, 3, figsize=(11, 1.4 + 0.8 * len(table)), sharey=True, width_ratios=[1, 1, 1.4]
    )
    sizes = (
        ("file_kb", "file, kB (log axis)", _write_number),
        ("relative_bops", "BOPs, % of dense (log axis)", lambda v: f"{_write_number(v)}%"),
    )
    networks = [model_colour(name, i) for i, name in enumerate(table.index)]
    for ax, (column, title, text) in zip(axes, sizes, strict=False):
        values = table[column].to_numpy(dtype=float)
        known = ~np.isnan(values)
        ax.scatter(values[known], y[known], s=90, c=np.array(networks)[known], zorder=3)
        for at, value in zip(y[known], values[known], strict=True):
            _write_beside(ax, text(value), value, at, points=9)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: _write_number(value))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(title, loc="left")
        if (known := values[~np.isnan(values)]).size:
            floor = 10 ** np.floor(np.log10(known.min() / 2))
            ax.set_xlim(floor, known.max() * (known.max() / floor) ** 0.3)
    names = [column.removeprefix("rank1_") for column in table if column.startswith("rank1_")]
    colours = {condition: condition_colour(condition, i) for i, condition in enumerate(names)}
    for i, (condition, colour) in enumerate(colours.items()):
        shift = (i - (len(names) - 1) / 2) * 0.78 / len(names)
        rank1 = table[f"rank1_{condition}"].to_numpy(dtype=float)
        _draw_bars(
            axes[2], y + shift, rank1, 0.72 / len(names), colour, "{:.1f}".format, fontsize=9
        )
    axes[2].set_title("rank-1 (%)", loc="left")
    axes[2].set_xlim(0, 115)
    axes[2].set_xticks(np.arange(0, 101, 25))
    for ax in axes:
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(y, table.index)
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    _draw_legend(fig, {condition_words(c): colour for c, colour in colours.items()})
    plt.close(fig)
    return fig


def _draw_bars(
    ax: Axes,
    y: np.ndarray,
    values: np.ndarray,
    height: float,
    colour: str,
    text: Callable[[float], str] | None = None,
    fontsize: int = 10,
) -> None:
    """Draw horizontal bars with a text at each end; NaN draws nothing."""
    known = ~np.isnan(values)
    ax.barh(y[known], values[known], height, color=colour)
    if text is not None:
        for at, value in zip(y[known], values[known], strict=True):
            _write_beside(ax, text(value), value, at, fontsize)


def _write_beside(
    ax: Axes, text: str, x: float, y: float, fontsize: int = 10, points: int = 4
) -> None:
    """Write a text right of a bar's end, or of a point, at a distance in points."""
    style = {"textcoords": "offset points", "va": "center", "fontsize": fontsize}
    ax.annotate(text, (x, y), (points, 0), **style)


def _draw_legend(fig: Figure, colours: Mapping[str, str]) -> None:
    """Draw a legend of all colours above the figure, including those without a bar."""
    patches = [plt.Rectangle((0, 0), 1, 1, color=c, label=label) for label, c in colours.items()]
    fig.legend(handles=patches, loc="outside upper right", ncols=len(patches))


def _write_number(value: float) -> str:
    """Write 29220.4 as "29,220" and 24.31 as "24.3"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _write_share(value: float) -> str:
    """Write 31.04 as "31%", 1.304 as "1.3%" and 0.02 as "<0.1%"."""
    if 0 < value < 0.05:
        return "<0.1%"
    return f"{value:.0f}%" if value >= 9.95 else f"{value:.1f}%"
