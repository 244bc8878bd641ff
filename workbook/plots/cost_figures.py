"""Figures of what networks cost: parameters, multiply-adds, bits, file sizes and time, as bars."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS, stored_bytes
from gaitlib.system.errors import UserError
from workbook.plots.style import (
    KEPT_COLOUR,
    PALE_GREY,
    SPARE_COLOURS,
    colour_of,
    condition_words,
    draw_bars,
    legend_above,
    styled,
    with_prefix,
    without_scale,
)
from workbook.report.frontier import number

SHARE_COLOURS = SPARE_COLOURS[:2]  # of BOPs and of bytes
LONGEST_BIT_AXIS = 16  # in bits


@styled
def model_blocks(table: pd.DataFrame) -> Figure:
    """Draw parameters and multiply-adds of every block, with their share of the network.

    Multiply-adds per clip have no bar, because they are no share of those per frame.

    Args:
        table: one row per block with columns block, params, macs and per (``frame`` or ``clip``).
    """
    return _draw_costs({"dense": table}, [KEPT_COLOUR])


@styled
def block_cost(before: pd.DataFrame, after: pd.DataFrame, name: str = "compressed") -> Figure:
    """Draw parameters and multiply-adds per block, dense and compressed.

    Args:
        before: the dense network, as for `model_blocks`.
        after: the compressed network, with the same blocks.
        name: what the legend calls it, such as GETA.

    Raises:
        UserError: the blocks differ.
    """
    if list(before["block"]) != list(after["block"]):
        raise UserError(f"blocks differ: {list(before['block'])} and {list(after['block'])}")
    fig = _draw_costs({"dense": before, name: after}, [colour_of(n, 0) for n in ("dense", name)])
    legend_above(fig, fig.axes[0].containers)
    return fig


def _draw_costs(networks: Mapping[str, pd.DataFrame], colours: list[str]) -> Figure:
    """Draw a panel of parameters and one of multiply-adds per frame.

    One network has its shares of the sum; the second of two has its shares of the first.
    """
    first = next(iter(networks.values()))
    size = (10, 1.2 + (0.24 + 0.18 * len(networks)) * len(first))
    fig, axes = plt.subplots(1, 2, figsize=size, sharey=True)
    panels = {"params": "parameters: {}", "macs": "multiply-adds: {} per frame"}
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        counts = pd.DataFrame({n: t.set_index("block")[column] for n, t in networks.items()})
        addable = (first["per"] == "frame").to_numpy() | (column == "params")
        bars = counts.mul(addable, axis=0)
        texts = counts.map(with_prefix)
        texts[~addable] += " per clip"
        wholes = counts.iloc[:, 0]
        if len(networks) == 1:
            wholes = pd.Series(wholes[addable].sum(), wholes.index[addable])
        shares = counts.iloc[:, -1] / wholes
        texts.iloc[:, -1] += shares.map("  ({:.0%})".format).where(shares > 0, "")
        draw_bars(ax, bars, *texts.T.to_numpy(), color=colours, width=0.74, fontsize=9)
        ax.set_title(title.format(" to ".join(bars.sum().map(with_prefix))), loc="left")
        ax.set_xlim(0, 1.4 * max(bars.iloc[:, 0].max(), 1e-12))
        without_scale(ax)
    return fig


@styled
def channels_kept(layers: pd.DataFrame) -> Figure:
    """Draw how many of its output channels each layer kept.

    Args:
        layers: one row per layer in network order with columns layer, kept, total.
    """
    kept, total = layers["kept"], layers["total"]
    fig, ax = plt.subplots(figsize=(9, 1.3 + 0.34 * len(layers)))
    counts = pd.DataFrame({"kept": kept, "removed": total - kept}).set_index(layers["layer"])
    texts = [f"{k} of {t}  ({k / t:.0%})" for k, t in zip(kept, total, strict=True)]
    colours = [KEPT_COLOUR, PALE_GREY]
    draw_bars(ax, counts, texts, stacked=True, width=0.7, color=colours)
    ax.set(xlabel="output channels", xlim=(0, 1.25 * total.max()))
    legend_above(fig, ax.containers)
    return fig


@styled
def bits_by_layer(table: pd.DataFrame) -> Figure:
    """Draw each layer's bits of weights and inputs, and its share of the BOPs and of the bytes.

    The axis of bits ends at 16 or earlier; longer bars are cut and hatched. Bytes are those of the
    weights in the file, where 9 to 16 bits take 16, and more take 32. Shares refer to the layers
    that have a value; NaN draws nothing.

    Args:
        table: one row per layer, in execution order, with columns layer, weight_bits,
            activation_bits (integers; 32 is "float"), weights (how many numbers), bops, and per
            (``frame`` or ``clip``; only BOPs per frame are added up).
    """
    table = table.set_index(table["layer"].str.removeprefix(BACKBONE))
    size = (11, 1.5 + 0.38 * len(table))
    fig, axes = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=[1, 1, 0.9])
    chosen = table[["weight_bits", "activation_bits"]].astype(float)
    limit = min(LONGEST_BIT_AXIS, np.nanmax(chosen[chosen < FLOAT_BITS], initial=8))
    for ax, column in zip(axes[:2], chosen, strict=True):
        bits = chosen[column]
        texts = bits.map("{:g}".format).where(bits < FLOAT_BITS, "float").where(bits.notna(), "")
        look = {
            "color": np.where(bits < FLOAT_BITS, KEPT_COLOUR, PALE_GREY),
            "hatch": np.where(bits > limit, "//", ""),
            "edgecolor": "white",
        }
        draw_bars(ax, bits.clip(upper=1.12 * limit), texts, width=0.7, **look)
        ax.set_title(f"bits of {column.removesuffix('_bits')}s", loc="left")
        ax.set(xlim=(0, 1.35 * limit), xticks=np.arange(0, limit + 1, 4 if limit > 8 else 2))
    known = table[["weights", "weight_bits"]].dropna().astype(int)
    stored = pd.Series({layer: stored_bytes(*row) for layer, *row in known.itertuples()})
    per_clip = table["per"] == "clip"
    shares = pd.DataFrame({"BOPs": table["bops"].mask(per_clip), "bytes of weights": stored})
    shares = 100 * shares.reindex(table.index) / shares.sum()
    texts = shares.map(_write_share)
    texts["BOPs"] = texts["BOPs"].mask(per_clip, "BOPs per clip")
    look = {"fontsize": 8, "width": 0.76, "color": SHARE_COLOURS}
    draw_bars(axes[2], shares, *texts.T.to_numpy(), **look)
    axes[2].set_title("share of the network", loc="left")
    axes[2].set_xlim(0, 1.25 * max(shares.max(axis=None), 1))
    axes[2].xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    legend_above(fig, axes[2].containers)
    return fig


def _write_share(value: float) -> str:
    """Write 31.04 as "31%", 1.304 as "1.3%", 0.02 as "<0.1%", and NaN as nothing."""
    if np.isnan(value):
        return ""
    if 0 < value < 0.05:
        return "<0.1%"
    return f"{value:.0f}%" if value >= 9.95 else f"{value:.1f}%"


@styled
def size_and_accuracy(table: pd.DataFrame) -> Figure:
    """Draw file size and BOPs of networks as points on log axes, and their rank-1 by condition.

    Args:
        table: one row per network, its name in the index, with columns file_kb, relative_bops (% of
            the dense network's), and rank1_<condition> (%). NaN draws nothing.
    """
    size = (11, 1.4 + 0.8 * len(table))
    fig, axes = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=[1, 1, 1.4])
    colours = {name: colour_of(name, i) for i, name in enumerate(table.index)}
    sizes = {"file_kb": ("file, kB", ""), "relative_bops": ("BOPs, % of dense", "%")}
    for ax, (column, (title, unit)) in zip(axes[:2], sizes.items(), strict=True):
        ax.set_xscale("log")
        ax.set_title(f"{title} (log axis)", loc="left")
        for y, (name, value) in enumerate(table[column].items()):
            if not np.isnan(value):
                ax.plot(value, y, "o", color=colours[name], markersize=9)
                beside = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
                ax.annotate(f"{number(value)}{unit}", (value, y), **beside)
        ax.xaxis.set_major_formatter(lambda value, _: number(value))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.35)
        ax.grid(axis="y", visible=False)
    rank1 = table.filter(like="rank1_").rename(columns=lambda column: column.removeprefix("rank1_"))
    texts = rank1.map("{:.1f}".format).where(rank1.notna(), "").T.to_numpy()
    colours = [colour_of(condition, i) for i, condition in enumerate(rank1)]
    look = {"color": colours, "width": 0.78, "fontsize": 9}
    draw_bars(axes[2], rank1.rename(columns=condition_words), *texts, **look)
    axes[2].set_title("rank-1 (%)", loc="left")
    axes[2].set(xlim=(0, 115), xticks=np.arange(0, 101, 25))
    legend_above(fig, axes[2].containers)
    return fig


@styled
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
    colours = [colour_of(name, i) for i, name in enumerate(table.index)]
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        values = table[column]
        draw_bars(ax, values, values.map("{:.3g}".format), color=colours, width=0.6)
        ax.set(title=title, xlim=(0, 1.2 * values.max()))
        without_scale(ax)
    return fig
