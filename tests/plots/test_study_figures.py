"""Figures of a study: what they draw is what the tables say, and a method keeps its look."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from seaborn.utils import relative_luminance

from workbook.plots import cuts_by_method, frontier_by_condition, frontiers, paired_differences
from workbook.plots.style import METHOD_STYLES
from workbook.report import frontier
from workbook.report.frontier import COSTS, cuts, summarise
from workbook.report.recommendation import recommend
from workbook.study import METHODS

KEY = "geta_optimizer_cfg.target_group_sparsity"
# method, sparsity, mean rank-1, MMAC
SETTINGS = [
    ("baseline", math.nan, 80, 16),
    ("geta", 0.3, 79, 12),
    ("geta", 0.5, 82, 8),  # better and cheaper than the one above
    ("geta", 0.7, 75, 4),
    ("uniform", 0.5, 77, 8),
]
SEEDS = (0, 1)


def points(settings=SETTINGS):
    rows = []
    for (method, sparsity, rank1, macs), seed in itertools.product(settings, SEEDS):
        level = rank1 + 2 * seed - 1
        rows.append(
            {"point": f"{method}-{sparsity}-{seed}", "method": method, "seed": seed, KEY: sparsity}
            | {"rank1_NM": level + 3.0, "rank1_BG": level + 0.0, "rank1_CL": level - 3.0}
            | {"params": 1e4 * macs, "macs_per_frame": 1e6 * macs, "relative_bops": macs / 0.16}
            | {"weight_bits": 32.0, "activation_bits": 32.0, "file_bytes": 3e4 * macs}
            | {"group_sparsity": sparsity, "total_iterations": 20, "ms_1_clip": 2.0 * macs}
        )
    return pd.DataFrame(rows)


SUMMARY = summarise(points())


def texts(artist):
    return [t.get_text() for t in artist.findobj(plt.Text)]


def panels(fig):
    return [ax for ax in fig.axes if ax.get_xlabel()]


def drawn(ax, method):
    """Return the frontier's line, the markers and the bars of a method: x and y."""
    colour, marker = METHOD_STYLES[method]
    lines = [line for line in ax.lines if to_hex(line.get_color()) == colour.lower()]
    (front,) = [line for line in lines if line.get_marker() == "None" and line.get_zorder() == 2]
    (marks,) = [line for line in lines if line.get_marker() == marker]
    (bars,) = [c for c in ax.collections if to_hex(c.get_edgecolor()[0]) == colour.lower()]
    return (
        *(line.get_xydata().tolist() for line in (front, marks)),
        [segment.tolist() for segment in bars.get_segments()],
    )


def test_every_cost_has_a_panel_and_one_that_was_not_measured_has_none():
    labels = [f"{cost.axis} (log axis)" for cost in COSTS.values()]
    assert [ax.get_xlabel() for ax in panels(frontiers(SUMMARY))] == labels
    untimed = panels(frontiers(summarise(points().assign(ms_1_clip=np.nan))))
    assert [ax.get_xlabel() for ax in untimed] == labels[:4]
    assert all(ax.get_xscale() == "log" for ax in untimed)
    assert texts(frontiers(SUMMARY)).count("rank-1 (%), mean of NM, BG, CL") == 2


def test_a_line_passes_through_the_frontier_and_every_setting_has_its_mark_and_seeds():
    front, marks, bars = drawn(panels(frontiers(SUMMARY))[0], "geta")
    assert front == [[4e6, 75], [8e6, 82]]
    assert marks == [[12e6, 79], [8e6, 82], [4e6, 75]]
    assert bars == [[[x, y - 1], [x, y + 1]] for x, y in marks]


def test_the_band_is_the_dense_networks_seeds():
    ax = panels(frontiers(SUMMARY))[0]
    (band,) = ax.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (79, 81)
    no_dense = frontiers(SUMMARY[SUMMARY["method"] != "baseline"])
    assert not panels(no_dense)[0].patches


def test_conditions_have_their_own_accuracy_and_frontier():
    settings = points()
    settings.loc[(settings["method"] == "geta") & (settings[KEY] == 0.3), "rank1_CL"] += 9
    fig = frontier_by_condition(summarise(settings))
    assert [ax.get_title()[:2] for ax in fig.axes] == ["NM", "BG", "CL"]
    normal, _, coat = (drawn(ax, "geta")[0] for ax in fig.axes)
    assert normal == [[4e6, 78], [8e6, 85]]
    assert coat == [[4e6, 72], [8e6, 79], [12e6, 85]]


def test_a_setting_far_below_the_dense_network_is_named_and_stretches_no_axis():
    fig = frontiers(summarise(points([*SETTINGS, ("magnitude", 0.7, 40, 1)])))
    assert "HESSO, magnitude alone, 0.7:\n40 %, below the figure" in texts(fig)
    for ax in panels(fig):
        assert ax.get_ylim()[0] > 65
    assert panels(fig)[0].get_xlim()[0] > 2e6


def test_a_colour_and_a_marker_belong_to_one_method():
    assert METHOD_STYLES.keys() == METHODS.keys()
    fig = frontiers(summarise(points([*SETTINGS, ("mine", 0.5, 70, 5)])))
    legend = next(ax.get_legend() for ax in fig.axes if ax.get_legend())
    looks = [(to_hex(h.get_color()), h.get_marker()) for h in legend.legend_handles]
    styles = [METHOD_STYLES[method] for method in ("baseline", "geta", "uniform")]
    assert looks[:3] == [(colour.lower(), marker) for colour, marker in styles]
    assert len(set(looks)) == len(looks) == 4
    assert [t.get_text() for t in legend.get_texts()] == ["dense", "GETA", "uniformly slim", "mine"]
    assert len({c for c, _ in METHOD_STYLES.values()}) == len(METHOD_STYLES)
    for colour, _ in METHOD_STYLES.values():  # WCAG's contrast of graphics on white
        assert 1.05 / (relative_luminance(colour) + 0.05) >= 3, colour
    assert len({m for _, m in METHOD_STYLES.values()}) == len(METHOD_STYLES)


def rings(ax):
    return [
        tuple(line.get_xydata()[0])
        for line in ax.findobj(Line2D)
        if line.get_markeredgewidth() == 1.8 and len(line.get_xydata())
    ]


def test_what_is_recommended_is_ringed_and_what_limits_exclude_is_hatched():
    found = recommend(SUMMARY, {"max_macs": 10e6, "max_drop": 1})
    fig = frontiers(SUMMARY, found)
    macs, params, *_ = panels(fig)
    assert rings(macs) == [(8e6, 82)] and rings(params) == [(8e4, 82)]
    hatched = [[p.get_bbox().extents for p in ax.patches if p.get_hatch()] for ax in (macs, params)]
    assert hatched[0][0][0] == 10e6 and hatched[0][1][3] == 79  # right of 10 MMAC, below 80 - 1
    assert len(hatched[1]) == 1 and hatched[1][0][3] == 79
    assert {"recommended", "outside the limits"} <= set(texts(fig))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("macs", [(4, 8), (4, 4.1), (0.5, 300), (8, 8)])
def test_log_axes_have_a_few_round_numbers_in_sight(macs):
    settings = [("geta", 0.1 * i, 70 + i, m) for i, m in enumerate(macs)]
    ax = panels(frontiers(summarise(points(settings))))[0]
    ticks, (low, high) = ax.get_xticks(), ax.get_xlim()
    assert 3 <= len(ticks) <= 9 and low <= min(ticks) and max(ticks) <= high
    assert len(set(texts(ax.xaxis)) - {""}) >= 3


def test_differences_have_a_panel_per_setting_and_a_marker_where_the_table_says():
    table = frontier.paired_differences(points(), "geta")
    fig = paired_differences(table, "geta")
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == [f"target_group_sparsity {s}" for s in (0.3, 0.5, 0.7)]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["dense", "uniformly slim"]
    marks = [
        {line.get_marker(): tuple(line.get_xydata()[0]) for line in ax.lines[1:]} for ax in fig.axes
    ]
    assert marks == [{"o": (-1, 0)}, {"o": (2, 0), "X": (5, 1)}, {"o": (-5, 0)}]
    macs = [[t.get_text() for t in ax.child_axes[0].get_yticklabels()] for ax in fig.axes]
    assert macs == [["133 %"], ["200 %", "100 %"], ["400 %"]]
    assert all(ax.lines[0].get_xdata() == [0, 0] for ax in fig.axes)
    one_seed = points()[lambda t: t["seed"] == 0]
    alone = paired_differences(frontier.paired_differences(one_seed, "geta"), "geta")
    assert "mean and 95 % interval of 1 seed;" in texts(alone)[-1]
    with pytest.raises(ValueError, match="no method has a seed in common with 'geta'"):
        paired_differences(table[:0], "geta")


def layers_of(table, bits=32):
    rows = []
    for point, method, seed in table[["point", "method", "seed"]].itertuples(index=False):
        for layer in ("conv1.conv", "layer1.0.conv1"):
            kept = 8 if method == "baseline" or layer == "conv1.conv" else 3 + 2 * seed
            b = bits + seed if method == "geta" else 32
            rows.append({"point": point, "method": method, "seed": seed, "layer": layer})
            rows[-1] |= {"kept": kept, "total": 8, "weight_bits": b, "activation_bits": min(b, 8)}
    return pd.DataFrame(rows)


def test_cuts_are_numbers_of_what_was_cut_and_rounded():
    fig = cuts_by_method(cuts(layers_of(points(), bits=4), points()))
    shares, bits = fig.axes
    assert shares.get_title(loc="left") == "channels kept, %  (by method, target_group_sparsity)"
    rows = ["GETA   0.3", "   0.5", "   0.7", "uniformly slim   0.5"]
    assert [t.get_text() for t in shares.get_yticklabels()] == rows
    assert [t.get_text() for t in shares.texts] == ["100", "50"] * 4
    assert len(bits.get_yticklabels()) == 3
    assert [t.get_text() for t in bits.texts] == ["4.5 / 4.5"] * 6
    assert [t.get_text() for t in bits.get_xticklabels()] == ["conv1.conv", "layer1.0.conv1"]


def test_methods_without_bits_have_no_map_of_bits_and_without_cuts_none_at_all():
    assert len(cuts_by_method(cuts(layers_of(points()), points())).axes) == 1
    dense = points(SETTINGS[:1])
    with pytest.raises(ValueError, match=r"\['baseline'\] kept all"):
        cuts_by_method(cuts(layers_of(dense), dense))
