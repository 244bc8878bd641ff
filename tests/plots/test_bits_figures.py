"""Figures of bits: during training, by layer, and what networks save by them."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from workbook.plots import bits_by_layer, bits_schedule, size_and_accuracy
from workbook.plots.cost_figures import SHARE_COLOURS
from workbook.plots.style import CONDITION_COLOURS, KEPT_COLOUR, MODEL_COLOURS, PALE_GREY

NAMES = ["conv1.conv", "layer1.0.conv1", "layer1.0.conv2", "FCs"]
LAYERS = [f"Backbone.forward_block.{name}" for name in NAMES[:3]] + NAMES[3:]
ITERATIONS = [10, 20, 30]
BITS = pd.DataFrame({"iteration": ITERATIONS}).assign(
    **{f"weights:{layer}": [9.5, 6.2, 4.0] for layer in LAYERS},
    **{f"activations:{layer}": [9.5, 7.7, 8.0] for layer in LAYERS[1:]},
    weights_min=[np.nan, 2, 2],
    weights_max=[np.nan, 8, 6],
    activations_min=[np.nan, 3, 3],
    activations_max=[np.nan, 12, 12],
)
TABLE = pd.DataFrame(
    {
        "layer": LAYERS,
        "per": "frame",
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
    return [t.get_text() for t in axes_or_figure.findobj(Text)]


def bars(axes, colour):
    drawn = [p for p in axes.patches if to_hex(p.get_facecolor()) == colour.lower()]
    return [round(p.get_width(), 6) for p in drawn if not math.isnan(p.get_width())]


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) == len(ITERATIONS)]


def test_every_quantizer_has_a_line_and_its_layer_one_colour_and_name():
    fig = bits_schedule(BITS, {})
    weights, activations = fig.axes
    assert [len(lines(ax)) for ax in fig.axes] == [4, 3]
    np.testing.assert_array_equal(lines(weights)[0].get_ydata(), [9.5, 6.2, 4.0])
    colours = [[tuple(line.get_color()) for line in lines(ax)] for ax in fig.axes]
    assert colours[0][1:] == colours[1] and len(set(colours[0])) == 4
    assert weights.get_ylabel() == "bits of weights"
    assert activations.get_ylabel() == "bits of activations"
    last = BITS.assign(**{f"weights:{LAYERS[3]}": [9.5, 8, 5.0]})
    legend = bits_schedule(last, {}).axes[0].get_legend()
    expected = ["5  FCs", *(f"4  {name}" for name in NAMES[:3])]
    assert [t.get_text() for t in legend.get_texts()] == expected


def test_the_band_is_the_interval_where_it_is_bound():
    (band,) = bits_schedule(BITS, {}).axes[0].collections
    (path,) = band.get_paths()
    x, y = path.vertices.T
    assert (x.min(), x.max(), y.min(), y.max()) == (20, 30, 2, 8)
    assert (30, 8) in zip(x, y, strict=True)  # a bound holds until the next row


def test_phases_are_marked_in_every_panel_and_named_once():
    phases = {"warm-up": 0, "projection": 15, "joint": 16, "cool-down": 31}
    fig = bits_schedule(BITS, phases)
    for ax in fig.axes:
        marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
        assert marks == [0, 15, 16, 31]
    names = [t.get_text().strip() for t in fig.axes[0].child_axes[0].get_xticklabels()]
    assert names == ["warm-up", "projection", "joint"]  # the run ends at 30
    assert not fig.axes[1].child_axes


@pytest.mark.parametrize("bits", [BITS[["iteration"]], BITS[:0]])
def test_a_schedule_of_nothing_is_refused(bits):
    with pytest.raises(ValueError, match="weights:<layer>"):
        bits_schedule(bits, {})


def test_bars_have_their_bits_and_longer_ones_are_cut_but_keep_their_number():
    weights, activations, _ = bits_by_layer(TABLE).axes
    assert bars(weights, KEPT_COLOUR) == [4, 10, 2]
    assert bars(activations, KEPT_COLOUR) == [8, 8, 8]
    assert [len(bars(ax, PALE_GREY)) for ax in (weights, activations)] == [1, 1]
    assert 10 < bars(weights, PALE_GREY)[0] < weights.get_xlim()[1] < 16
    assert [t.get_text() for t in weights.texts] == ["float", "4", "10", "2"]
    assert [t.get_text() for t in weights.get_yticklabels()] == NAMES
    (weights, *_) = bits_by_layer(TABLE.assign(weight_bits=[24, 4, 16, 2])).axes
    assert bars(weights, KEPT_COLOUR)[1:] == [4, 16, 2]
    assert 16 < bars(weights, KEPT_COLOUR)[0] < 24
    assert [t.get_text() for t in weights.texts] == ["24", "4", "16", "2"]


def test_shares_add_up_and_bytes_are_those_of_the_file():
    *_, shares = bits_by_layer(TABLE).axes
    assert bars(shares, SHARE_COLOURS[0]) == [10, 15, 25, 50]
    np.testing.assert_allclose(bars(shares, SHARE_COLOURS[1]), 100 * np.array([4, 4, 4, 5]) / 17)
    *_, shares = bits_by_layer(TABLE.assign(per=["frame"] * 3 + ["clip"])).axes
    assert sorted(bars(shares, SHARE_COLOURS[0]))[-3:] == [20, 30, 50]  # of those per frame
    assert texts(shares).count("BOPs per clip") == 1


@pytest.mark.filterwarnings("error")
def test_a_layer_without_values_leaves_its_line_empty():
    empty = TABLE.astype({"weight_bits": float})
    empty.loc[3, ["weight_bits", "bops"]] = np.nan
    fig = bits_by_layer(empty)
    weights, activations, shares = fig.axes
    assert [b for b in bars(weights, KEPT_COLOUR) if b] == [4, 10]
    assert len(bars(activations, KEPT_COLOUR)) == 3
    assert [b for b in bars(shares, SHARE_COLOURS[0]) if b] == [20, 30, 50]
    assert "nan" not in " ".join(texts(fig))


def test_networks_have_their_size_bops_and_rank1():
    fig = size_and_accuracy(NETWORKS)
    size, bops, rank1 = fig.axes
    assert [ax.get_xscale() for ax in fig.axes] == ["log", "log", "linear"]
    points = [tuple(line.get_xydata()[0]) for line in size.lines]  # on a log axis no bar has length
    assert points == [(528, 0), (31.44, 1), (1210.4, 2)]
    looks = [to_hex(line.get_color()).upper() for line in size.lines]
    assert looks == [MODEL_COLOURS[name] for name in NETWORKS.index]
    assert [t.get_text() for t in size.texts] == ["528", "31.4", "1,210"]
    assert [t.get_text() for t in bops.texts] == ["100%", "0.402%", "31%"]
    assert [b for b in bars(rank1, CONDITION_COLOURS["NM"]) if b] == [84.9, 87.1]  # HESSO: none
    assert bars(rank1, CONDITION_COLOURS["CL"]) == [74.6, 73.1, 69]
    assert [t.get_text() for t in size.get_yticklabels()] == ["dense", "GETA", "HESSO"]
    assert "BG, with a bag" in texts(fig)
