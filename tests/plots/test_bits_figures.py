import itertools
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from workbook.plots.bits_figures import BOPS_COLOUR, BYTES_COLOUR, _spread_apart  # noqa: E402

from workbook.plots import bits_by_layer, bits_schedule, size_and_accuracy  # noqa: E402
from workbook.plots.style import (  # noqa: E402
    CONDITION_COLOURS,
    KEPT_COLOUR,
    MODEL_COLOURS,
    PALE_GREY,
)

PREFIX = "Backbone.forward_block."
NAMES = ["conv1.conv", "layer1.0.conv1", "layer1.0.conv2", "FCs"]
LAYERS = [f"{PREFIX}{name}" for name in NAMES[:3]] + NAMES[3:]
ITERATIONS = [10, 20, 30]
BITS = pd.DataFrame({"iteration": ITERATIONS}).assign(
    **{f"weights:{layer}": [9.5, 6.2, 4.0] for layer in LAYERS},
    **{f"activations:{layer}": [9.5, 7.7, 8.0] for layer in LAYERS[1:]},
)
PLAN = pd.DataFrame({"iteration": ITERATIONS}).assign(
    weights_min=[np.nan, 2, 2],
    weights_max=[np.nan, 8, 6],
    activations_min=[np.nan, 3, 3],
    activations_max=[np.nan, 12, 12],
)
TABLE = pd.DataFrame(
    {
        "layer": LAYERS,
        "weight_bits": [32, 4, 10, 2],
        "activation_bits": [32, 8, 8, 8],
        "weights": [10, 80, 20, 200],
        "bops": [20.0, 30.0, 50.0, 100.0],
    }
)  # bytes: 40, 40, 40 (10 bits take 16) and 50
NETWORKS = pd.DataFrame(
    {
        "file_kb": [528.0, 31.44, 1210.4],
        "relative_bops": [100.0, 0.402, 31.04],
        "rank1_NM": [84.9, 87.1, np.nan],
        "rank1_BG": [83.8, 84.4, 80.0],
        "rank1_CL": [74.6, 73.1, 69.0],
    },
    index=["dense", "GETA", "HESSO"],
)


def texts(axes_or_figure):
    return [t.get_text() for t in axes_or_figure.findobj(plt.Text)]


def bars(axes, colour):
    return [
        round(p.get_width(), 6) for p in axes.patches if to_hex(p.get_facecolor()) == colour.lower()
    ]


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) == len(ITERATIONS)]


def test_every_quantizer_has_a_line_and_its_layer_one_colour():
    fig = bits_schedule(BITS, PLAN)
    weights, activations = fig.axes
    assert [len(lines(ax)) for ax in fig.axes] == [4, 3]
    np.testing.assert_array_equal(lines(weights)[0].get_ydata(), [9.5, 6.2, 4.0])
    colours = [[tuple(line.get_color()) for line in lines(ax)] for ax in fig.axes]
    assert colours[0][1:] == colours[1] and len(set(colours[0])) == 4
    assert weights.get_ylabel() == "bits of weights"
    assert activations.get_ylabel() == "bits of activations"


def test_line_ends_are_named_without_the_prefix_and_apart():
    fig = bits_schedule(BITS, PLAN)
    fig.draw_without_rendering()
    names = [t for t in fig.axes[0].texts if t.get_text().endswith("  4")]
    assert [t.get_text() for t in names[::-1]] == [f"{name}  4" for name in NAMES]
    boxes = [plt.Text.get_window_extent(t) for t in names]  # without the line to it
    assert all(above.y0 > below.y1 for below, above in itertools.pairwise(boxes))


def test_the_band_is_the_interval_where_it_is_bound():
    (band,) = bits_schedule(BITS, PLAN).axes[0].collections
    (path,) = band.get_paths()
    x, y = path.vertices.T
    assert (x.min(), x.max(), y.min(), y.max()) == (20, 30, 2, 8)
    assert (30, 8) in zip(x, y, strict=True)  # a bound holds until the next row


def test_weights_alone_need_no_interval_of_activations():
    bits = BITS[[c for c in BITS if not c.startswith("activations:")]]
    fig = bits_schedule(bits, PLAN[["iteration", "weights_min", "weights_max"]])
    assert [ax.get_ylabel() for ax in fig.axes] == ["bits of weights"]


def test_a_kind_whose_bits_never_change_is_a_line_of_text():
    same = BITS.assign(**{c: [8.1, 8.0, 8.0] for c in BITS if c.startswith("activations:")})
    (weights,) = bits_schedule(same, PLAN).axes
    assert weights.get_ylabel() == "bits of weights"
    assert weights.get_xlabel() == "iteration\n(bits of activations: 8 all the time)"
    assert weights.get_ylim()[0] == 1  # one below the least bound


def test_phases_are_marked_in_every_panel_and_named_once():
    phases = {"warm-up": 0, "projection": 15, "joint": 16, "cool-down": 31}
    fig = bits_schedule(BITS, PLAN, phases)
    for ax in fig.axes:
        marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
        assert marks == [0, 15, 16, 31]
    assert [texts(fig).count(name) for name in phases] == [1, 1, 1, 0]  # the run ends at 30


@pytest.mark.filterwarnings("error")
def test_missing_bits_and_a_run_without_bounds_are_drawn_empty():
    bits = BITS.assign(**{f"weights:{LAYERS[0]}": np.nan})
    fig = bits_schedule(bits, PLAN.assign(weights_min=np.nan, weights_max=np.nan))
    assert "conv1.conv" not in " ".join(texts(fig)) and "nan" not in " ".join(texts(fig))
    assert "FCs  4" in texts(fig.axes[0])
    fig.draw_without_rendering()


@pytest.mark.parametrize("bits", [BITS[["iteration"]], BITS[:0]])
def test_a_schedule_of_nothing_is_refused(bits):
    with pytest.raises(ValueError, match="weights:<layer>"):
        bits_schedule(bits, PLAN)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([4, 4, 4], [3, 4, 5]),  # around what they share
        ([1, 5, 9], [1, 5, 9]),  # far apart: left alone
        ([0, 0, 9], [0.5, 1.5, 9]),  # not below the bottom
        ([10, 10, 10], [7.5, 8.5, 9.5]),  # nor above the top
    ],
)
def test_labels_move_no_more_than_they_need(wanted, expected):
    np.testing.assert_allclose(_spread_apart(wanted, gap=1, low=0.5, high=9.5), expected)


def test_bars_have_their_bits_and_float_is_cut():
    weights, activations, _ = bits_by_layer(TABLE).axes
    assert bars(weights, KEPT_COLOUR) == [4, 10, 2]
    assert bars(activations, KEPT_COLOUR) == [8, 8, 8]
    assert [len(bars(ax, PALE_GREY)) for ax in (weights, activations)] == [1, 1]
    assert 10 < bars(weights, PALE_GREY)[0] < weights.get_xlim()[1] < 16
    assert [t.get_text() for t in weights.texts] == ["float", "4", "10", "2"]
    assert [t.get_text() for t in weights.get_yticklabels()] == NAMES


def test_bits_beyond_the_axis_keep_their_number():
    (weights, *_) = bits_by_layer(TABLE.assign(weight_bits=[24, 4, 16, 2])).axes
    assert bars(weights, KEPT_COLOUR)[1:] == [4, 16, 2]
    assert 16 < bars(weights, KEPT_COLOUR)[0] < 24
    assert [t.get_text() for t in weights.texts] == ["24", "4", "16", "2"]


def test_shares_add_up_and_bytes_are_those_of_the_file():
    *_, shares = bits_by_layer(TABLE).axes
    assert bars(shares, BOPS_COLOUR) == [10, 15, 25, 50]
    np.testing.assert_allclose(bars(shares, BYTES_COLOUR), 100 * np.array([4, 4, 4, 5]) / 17)


def test_bops_per_clip_are_no_share_of_those_per_frame():
    *_, shares = bits_by_layer(TABLE.assign(per=["frame"] * 3 + ["clip"])).axes
    assert bars(shares, BOPS_COLOUR) == [20, 30, 50]
    assert len(bars(shares, BYTES_COLOUR)) == 4
    assert texts(shares).count("BOPs per clip") == 1


@pytest.mark.filterwarnings("error")
def test_a_layer_without_values_leaves_its_line_empty():
    empty = TABLE.astype({"weight_bits": float})
    empty.loc[3, ["weight_bits", "bops"]] = np.nan
    fig = bits_by_layer(empty)
    weights, activations, shares = fig.axes
    assert bars(weights, KEPT_COLOUR) == [4, 10] and len(bars(activations, KEPT_COLOUR)) == 3
    assert bars(shares, BOPS_COLOUR) == [20, 30, 50] and len(bars(shares, BYTES_COLOUR)) == 3
    assert "nan" not in " ".join(texts(fig))


def test_networks_have_their_size_bops_and_rank1():
    fig = size_and_accuracy(NETWORKS)
    size, bops, rank1 = fig.axes
    assert [ax.get_xscale() for ax in fig.axes] == ["log", "log", "linear"]
    (points,) = size.collections  # a bar on a log axis has no length
    assert not size.patches and not bops.patches
    np.testing.assert_allclose(points.get_offsets(), [[528, 0], [31.44, 1], [1210.4, 2]])
    looks = [to_hex(colour).upper() for colour in points.get_facecolors()]
    assert looks == [MODEL_COLOURS[name] for name in NETWORKS.index]
    assert [t.get_text().strip() for t in size.texts] == ["528", "31.4", "1,210"]
    assert [t.get_text().strip() for t in bops.texts] == ["100%", "0.402%", "31%"]
    assert bars(rank1, CONDITION_COLOURS["NM"]) == [84.9, 87.1]  # HESSO has none
    assert bars(rank1, CONDITION_COLOURS["CL"]) == [74.6, 73.1, 69]
    assert [t.get_text() for t in size.get_yticklabels()] == ["dense", "GETA", "HESSO"]
    assert "BG, with a bag" in texts(fig)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("column", "marks"), [("relative_bops", 1 + 3), ("rank1_NM", 2 + 2)])
def test_one_network_without_a_measure_is_drawn(column, marks):
    fig = size_and_accuracy(NETWORKS[:1].assign(**{column: np.nan}))
    fig.draw_without_rendering()
    points = sum(len(c.get_offsets()) for ax in fig.axes for c in ax.collections)
    assert points + sum(len(ax.patches) for ax in fig.axes) == marks
    assert "nan" not in " ".join(texts(fig))


@pytest.mark.parametrize(
    ("draw", "tables"),
    [(bits_schedule, (BITS, PLAN)), (bits_by_layer, (TABLE,)), (size_and_accuracy, (NETWORKS,))],
)
def test_figures_are_closed_and_leave_tables_alone(draw, tables):
    before = [table.copy() for table in tables]
    draw(*tables)
    assert not plt.get_fignums()
    for table, copy in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table, copy)


def test_bits_that_are_chosen_once_are_drawn_if_layers_differ():
    once = BITS.assign(**{c: [math.nan, 8.0, 8.0] for c in BITS if ":" in c})
    assert len(bits_schedule(once, PLAN).axes) == 2
    first = next(c for c in BITS if c.startswith("weights:"))
    (weights,) = bits_schedule(once.assign(**{first: [math.nan, 4.0, 4.0]}), PLAN).axes
    assert weights.get_ylabel() == "bits of weights"
