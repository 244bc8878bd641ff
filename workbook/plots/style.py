"""The common style of all figures: fixed colours, number formats, and files without dates."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from workbook.runs import STAGES, figures_folder

#: Of conditions: from Okabe and Ito's palette for colour-blind readers.
CONDITION_COLOURS = {"NM": "#0072B2", "BG": "#E69F00", "CL": "#009E73"}
#: A method has one colour and one marker in all figures. The contrast of a colour on white is 3 or
#: more. Most are from Paul Tol's palettes for colour-blind readers
#: (https://personal.sron.nl/~pault/), some of them darker.
METHOD_STYLES = {
    "baseline": ("#595959", "o"),
    "dense_longer": ("#000000", "p"),
    "dense_half": ("#8C8C8C", "H"),
    "budget": ("#882255", "<"),
    "budget_longer": ("#DD3D77", "d"),
    "geta": ("#D55E00", "s"),
    "hesso": ("#332288", "D"),
    "ptq": ("#3399BB", "^"),
    "magnitude": ("#117733", "v"),
    "only_train_once": ("#AA4499", "P"),
    "uniform": ("#997700", "X"),
    "uniform_longer": ("#6F7A1E", ">"),
    "uniform_extra": ("#CC6677", "h"),
    "torch_pruning": ("#228B7B", "*"),
}
#: The methods of a run's stages. With a budget, as in the quickstart, HESSO is the method "budget".
STAGE_METHODS = {"hesso": "budget"}
MODEL_COLOURS = {
    stage.words: METHOD_STYLES[STAGE_METHODS.get(name, name)][0] for name, stage in STAGES.items()
} | {"compressed": METHOD_STYLES["geta"][0]}
CONDITION_WORDS = {"NM": "NM, normal", "BG": "BG, with a bag", "CL": "CL, in a coat"}
CUT_COLOUR, KEPT_COLOUR, PALE_GREY = "#D55E00", "#0072B2", "#D9D9D9"
SPARE_COLOURS = ("#4477AA", "#AA3377", "#AA7700", "#000000")

#: Of every figure, see `styled`.
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
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "axes.edgecolor": "#8C8C8C",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a plot function draw in STYLE, change no global setting, and keep no figure open."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            fig = draw(*args, **kwargs)
        plt.close(fig)
        return fig

    return drawn


def save_figure(fig: Figure, name: str) -> Figure:
    """Write ``figures/<name>.png`` and ``.pdf`` without a date: equal data give equal files."""
    path = figures_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        fig.savefig(f"{path}.{suffix}", dpi=120, metadata=metadata)  # a name may contain "0.5"
    return fig


def colour_of(name: str, position: int) -> str:
    """Return a condition's or a model's own colour, or a spare one by its position."""
    own = CONDITION_COLOURS | MODEL_COLOURS
    return own.get(name, SPARE_COLOURS[position % len(SPARE_COLOURS)])


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


def with_prefix(value: float) -> str:
    """Write a count with three digits and a unit prefix: 7305408 as "7.31 M"."""
    return EngFormatter()(float(f"{value:.3g}"))


def without_frame(ax: Axes) -> None:
    """Remove an image's grid, spines and tick marks; keep its labels."""
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw_bars(
    ax: Axes,
    values: pd.DataFrame | pd.Series,
    *texts: Iterable[str],
    fontsize: float = 10,
    **style: object,
) -> None:
    """Draw horizontal bars, the first row on top, with a text at the end of each; NaN draws none.

    Args:
        ax: to draw on.
        values: one row per bar or group of bars, one column per colour.
        texts: for each column, or only for the last one, a text per row.
        fontsize: of the texts, in points.
        style: of `pandas.DataFrame.plot.barh`.
    """
    values.plot.barh(ax=ax, legend=False, xlabel="", ylabel="", **style)
    for bars, labels in zip(ax.containers[::-1], texts[::-1], strict=False):
        ax.bar_label(bars, labels, padding=4, fontsize=fontsize)
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def draw_smoothed(ax: Axes, values: pd.Series, colour: str, label: str) -> list[Line2D]:
    """Draw values pale and their mean over ten rows strong; return the line of the means."""
    ax.plot(values, color=colour, alpha=0.25, linewidth=1)
    means = values.rolling(10, min_periods=1, center=True).mean()
    return ax.plot(means, color=colour, linewidth=1.8, label=label)


def without_scale(ax: Axes) -> None:
    """Remove the scale below bars that have their numbers beside them."""
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)


def legend_above(fig: Figure, handles: Sequence[Artist]) -> None:
    """Draw one legend for all panels, in a line above them."""
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def draw_mosaic(
    ax: Axes,
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    lines: Sequence[str],
    gap: int = 3,
) -> None:
    """Draw grey images of 0-255 as a `mosaic` with a label for each column and each line."""
    height, width = next(image.shape for row in rows for image in row if image is not None)
    ax.imshow(mosaic(rows, gap), cmap="gray", vmin=0, vmax=255)
    ax.set_xticks(np.arange(len(columns)) * (width + gap) + (width - 1) / 2, columns)
    ax.set_yticks(np.arange(len(lines)) * (height + gap) + (height - 1) / 2, lines)
    without_frame(ax)


def mosaic(rows: Sequence[Sequence[np.ndarray | None]], gap: int) -> np.ndarray:
    """Arrange images of equal size in a grid with gaps between them; None is a pale field.

    Args:
        rows: grey images ``(H, W)``, uint8 or float 0-255; short rows end in gaps.
        gap: pixels between images.

    Returns:
        float ``(rows * (H + gap) - gap, columns * (W + gap) - gap)``; gaps are NaN.
    """
    height, width = next(image.shape for row in rows for image in row if image is not None)
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            sheet[y : y + height, x : x + width] = 225 if image is None else image
    return sheet
