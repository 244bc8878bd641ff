"""The common style of all figures: fixed colours, number formats, and files without dates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbook.runs import STAGES, figures_folder

#: Of conditions: from Okabe and Ito's palette for colour-blind readers.
CONDITION_COLOURS = {"NM": "#0072B2", "BG": "#E69F00", "CL": "#009E73"}
#: A method has one colour in all figures, with a contrast of 3 or more on white. Most are from Paul
#: Tol's palettes for colour-blind readers (https://personal.sron.nl/~pault/), some of them darker.
METHOD_COLOURS = {
    "baseline": "#595959",
    "dense_longer": "#000000",
    "dense_half": "#8C8C8C",
    "budget": "#882255",
    "budget_longer": "#DD3D77",
    "geta": "#D55E00",
    "hesso": "#332288",
    "ptq": "#3399BB",
    "magnitude": "#117733",
    "only_train_once": "#AA4499",
    "uniform": "#997700",
    "uniform_longer": "#6F7A1E",
    "uniform_extra": "#CC6677",
    "torch_pruning": "#228B7B",
}
#: The methods of a run's stages. With a budget, as in the quickstart, HESSO is the method "budget".
STAGE_METHODS = {"hesso": "budget"}
MODEL_COLOURS = {
    stage.words: METHOD_COLOURS[STAGE_METHODS.get(name, name)] for name, stage in STAGES.items()
} | {"compressed": METHOD_COLOURS["geta"]}
CONDITION_WORDS = {"NM": "NM, normal", "BG": "BG, with a bag", "CL": "CL, in a coat"}
CUT_COLOUR, KEPT_COLOUR, PALE_GREY = "#D55E00", "#0072B2", "#D9D9D9"
SPARE_COLOURS = ("#4477AA", "#AA3377", "#AA7700", "#000000")

#: For ``plt.rc_context(STYLE)``, so that importing this package changes no global settings.
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
    """Write ``figures/<name>.png`` and ``.pdf`` without a date: equal data give equal files."""
    path = figures_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        fig.savefig(f"{path}.{suffix}", dpi=120, metadata=metadata)  # a name may contain "0.5"
    return fig


def condition_colour(condition: str, position: int = 0) -> str:
    """Return a condition's own colour, or a spare one by its position if it has none."""
    return CONDITION_COLOURS.get(condition, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def condition_words(condition: str) -> str:
    """Return a condition with its explanation, if it is one of CASIA-B's."""
    return CONDITION_WORDS.get(condition, condition)


def condition_of(type_: str) -> str:
    """Return "NM" for "nm-05"."""
    return type_.split("-")[0].upper()


def types_in_order(types: Iterable[str]) -> list[str]:
    """Return each walking type once: nm, bg, cl, then the others by name."""
    rank = {condition: i for i, condition in enumerate(CONDITION_COLOURS)}
    return sorted(set(types), key=lambda t: (rank.get(condition_of(t), len(rank)), t))


def model_colour(name: str, position: int) -> str:
    """Return a model's own colour, or a spare one by its position if it has none."""
    return MODEL_COLOURS.get(name, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def with_prefix(value: float) -> str:
    """Write a count with three digits and a unit prefix: 7305408 as "7.31 M"."""
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def addable(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a block table's column with values set to 0 that must not be added to the others.

    These are the heads' multiply-adds: they are per clip, and the backbone's are per frame.
    """
    return table[column].where((table["per"] == "frame") | (column != "macs"), 0)


def without_frame(ax: Axes) -> None:
    """Remove an image's grid, spines and tick marks; keep its labels."""
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def label_bars(ax: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """Write a text at the end of every horizontal bar, and widen the axis to fit it."""
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        ax.annotate(text, (value, y), (4, 0), textcoords="offset points", va="center", fontsize=10)
    ax.set_xlim(0, 1.25 * max([*values, 1e-12]))


def mosaic(rows: Sequence[Sequence[np.ndarray | None]], gap: int = 3) -> np.ndarray:
    """Arrange images of equal size in a grid with gaps between them; None is a pale field.

    Args:
        rows: grey images ``(H, W)``, uint8 or float 0-255; short rows end in gaps.
        gap: pixels between images.

    Returns:
        float ``(rows * (H + gap) - gap, columns * (W + gap) - gap)``; gaps are NaN.
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
    """Return the centres of ``count`` images of ``size`` pixels along one side of a mosaic."""
    return np.arange(count) * (size + gap) + (size - 1) / 2
