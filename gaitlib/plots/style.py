"""One look for all figures: colours that stay with their meaning, and files without dates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gaitlib.runs import figures_folder

#: Okabe and Ito's palette for colour-blind readers; a colour means the same in every figure.
CONDITION_COLOURS = {"NM": "#0072B2", "BG": "#E69F00", "CL": "#009E73"}
MODEL_COLOURS = {
    "dense": "#595959",
    "HESSO": "#332288",
    "HESSO + rounding (PTQ)": "#88CCEE",
    "GETA": "#D55E00",
    "compressed": "#D55E00",
}
CONDITION_WORDS = {"NM": "NM, normal", "BG": "BG, with a bag", "CL": "CL, in a coat"}
CUT_COLOUR, KEPT_COLOUR, PALE = "#D55E00", "#0072B2", "#D9D9D9"
SPARE_COLOURS = ("#56B4E9", "#CC79A7", "#F0E442", "#000000")

#: For ``with plt.rc_context(STYLE)``, so that importing this package changes nobody's settings.
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.titlesize": 13,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "axes.edgecolor": "#8C8C8C",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
}


def save_figure(fig: Figure, name: str) -> Figure:
    """Write ``figures/<name>.png`` and ``.pdf`` without a date, so equal data give equal files."""
    path = figures_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        fig.savefig(f"{path}.{suffix}", dpi=120, metadata=metadata)  # a name may hold "0.5"
    return fig


def condition_of(type_: str) -> str:
    """Return "NM" for "nm-05"."""
    return type_.split("-")[0].upper()


def in_order(types: Iterable[str]) -> list[str]:
    """Sort walking types as the protocol names them: nm, bg, cl."""
    conditions = list(CONDITION_COLOURS)
    return sorted(set(types), key=lambda t: (conditions.index(condition_of(t)), t))


def model_colour(name: str, position: int) -> str:
    """Return the colour of a model: its own if it has one, else a spare one by position."""
    return MODEL_COLOURS.get(name, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def short(value: float) -> str:
    """Write a count with three figures and a unit prefix: 7305408 as "7.31 M"."""
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def total_of(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a block table's column with what does not add up to the total set to 0.

    Multiply-adds of a head are per clip; those of the backbone are per frame.
    """
    return table[column].where((table["per"] == "frame") | (column != "macs"), 0)


def bare(ax: Axes) -> None:
    """Leave an image without grid, spines and tick marks; its labels stay."""
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def label_bars(ax: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """Write a text at the end of every horizontal bar, and make room for it."""
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        ax.annotate(text, (value, y), (4, 0), textcoords="offset points", va="center", fontsize=10)
    ax.set_xlim(0, 1.25 * max([*values, 1e-12]))


def mosaic(rows: Sequence[Sequence[np.ndarray | None]], gap: int = 3) -> np.ndarray:
    """Put equal images on one sheet, white gaps between them; None leaves a pale field.

    Args:
        rows: grey images ``(H, W)``, uint8 or float 0-255; shorter rows are filled up.
        gap: pixels between images.

    Returns:
        float ``(rows * (H + gap) - gap, columns * (W + gap) - gap)``; NaN is the gap.
    """
    height, width = next(image.shape for row in rows for image in row if image is not None)
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            sheet[y : y + height, x : x + width] = 225 if image is None else image
    return sheet


def mosaic_ticks(count: int, size: int, gap: int = 3) -> np.ndarray:
    """Centres of ``count`` images of ``size`` pixels along one side of a mosaic."""
    return np.arange(count) * (size + gap) + (size - 1) / 2
