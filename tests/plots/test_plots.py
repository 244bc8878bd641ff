import inspect
import itertools

import matplotlib
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from workbook import plots
from workbook.plots.style import mosaic, with_prefix
from workbook.report.frontier import cuts, paired_differences, summarise

VIEWS = ["000", "018", "036"]
TYPES = ["nm-01", "bg-01", "cl-01"]
SEQUENCES = pd.DataFrame(
    itertools.product(["001", "002"], TYPES, VIEWS), columns=["subject", "type", "view"]
).assign(frames=range(10, 28), filled=0.25, width=np.linspace(20, 30, 18))
CLIP = np.full((5, 16, 16), 255, np.uint8)
BLOCKS = pd.DataFrame(
    {"block": ["conv1", "layer1"], "params": [576, 73984], "macs": [1e6, 2e8], "per": "frame"}
)
HISTORY = pd.DataFrame({"iteration": [10, 20, 30], "total": [3.0, 2.0, 1.0]}).assign(
    **{"triplet/loss": 0.2, "softmax/loss": 1.0, "softmax/accuracy": 0.5, "lr": 0.1},
    group_sparsity=[0.0, np.nan, 0.5],
)
CHEAPER = HISTORY.assign(cost_share=[1.0, 0.6, 0.4], training_macs=[100, 180, 220])
LAYERS = pd.DataFrame({"layer": ["conv1", "layer1.conv1"], "kept": [3, 8], "total": [8, 8]})
SCORES = pd.DataFrame({"layer": ["conv1", "conv1"], "score": [0.1, 0.9], "kept": [False, True]})
DROP = pd.DataFrame(
    {"condition": ["NM", "CL"], "rank1_a": [97.0, 80.0], "rank1_b": [96.0, 77.0]}
).assign(difference=[-1.0, -3.0], low=[-2.0, np.nan], high=[0.0, np.nan], subjects=50)
BITS = pd.DataFrame({"iteration": [1, 2], "weights:FCs": [8.5, 4], "activations:FCs": [9, 8]})
BITS = BITS.assign(weights_min=2, weights_max=8, activations_min=2, activations_max=16)
LAYER_BITS = pd.DataFrame({"layer": ["FCs"], "weight_bits": [4], "activation_bits": [32]}).assign(
    weights=[80], bops=[1e6], per="frame"
)
NETWORKS = pd.DataFrame({"file_kb": [24.31], "relative_bops": [0.4]}, index=["GETA"]).assign(
    rank1_NM=87.0, rank1_BG=85.0, rank1_CL=74.0
)
POINTS = pd.DataFrame({"point": ["a", "b"], "method": ["baseline", "hesso"], "seed": 0}).assign(
    **{"cfg.sparsity": [np.nan, 0.5], "rank1_NM": [90.0, 88.0], "rank1_CL": [70.0, 69.0]},
    **dict.fromkeys(["params", "macs_per_frame", "relative_bops", "file_bytes"], [100.0, 40.0]),
)
CUT = LAYERS.assign(point="b", weight_bits=4, activation_bits=8)
SUMMARY = summarise(POINTS)
DIFFERENCES = paired_differences(POINTS, "hesso")
CURVES = pd.DataFrame(
    itertools.product(["dense", "compressed"], ["NM", "CL"], VIEWS),
    columns=["model", "condition", "view"],
).assign(rank1=90.0)


def matrices(level):
    matrix = pd.DataFrame(level, VIEWS, VIEWS, dtype=float)
    matrix.iloc[0, 2] = np.nan
    return {"NM": matrix, "CL": matrix - 20}


def network():
    graph = nx.DiGraph()
    nodes = [("conv1", "Conv", "a"), ("relu", "Relu", "a"), ("conv2", "Conv", "b")]
    for name, operator, group in [*nodes, ("add", "Add", "a"), ("FCs", "SeparateFCs", "")]:
        graph.add_node(name, type=operator, group=group, prunable=group != "", channels=8)
    graph.add_edges_from(
        [("conv1", "relu"), ("relu", "conv2"), ("relu", "add"), ("conv2", "add"), ("add", "FCs")]
    )
    return graph


ROC = pd.DataFrame({"false_accepts": [1.0, 10.0, 100.0], "identified": [20.0, 60.0, 95.0]})
RANKS = pd.DataFrame({"k": [1, 2], "share": [90.0, 100.0]})
RATES = pd.DataFrame(
    {"named_right": [70.0, 80.0], "false_accepts": [0.0, 5.0]},
    index=pd.MultiIndex.from_product([["NM"], ["000", "090"]], names=["condition", "view"]),
)
SPEED = pd.DataFrame({"ms_per_walk": [8.25], "walks_per_second": [150.0]}, index=["dense"])
WALKS = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0], "subject": "025", "condition": "NM"})
MAPS = {"dense": matrices(95), "compressed": matrices(93)}
IMAGE = CLIP[0]
ALL_THE_TIME = "iteration\n(bits of activations: 8 all the time)"
# function, its arguments, axes (colour bars and twins included), a text that must be in it
CASES = [
    (plots.sequences_heatmap, (SEQUENCES, 3), 2, "18 sequences, 0 missing"),
    (plots.frames_histogram, (SEQUENCES,), 3, "median 15.5, shortest 10"),
    (plots.views_strip, ({v: CLIP for v in VIEWS},), 1, "018  (5)"),
    (plots.gei_grid, ({("nm-01", "000"): IMAGE, ("cl-01", "018"): IMAGE},), 1, "cl-01"),
    (plots.foreground_statistics, (SEQUENCES,), 2, "bg-01"),
    (plots.training_curves, (HISTORY,), 3, "softmax/accuracy"),
    (plots.training_curves, (HISTORY[["iteration", "total"]],), 1, "total"),
    (plots.hits_and_misses, ([(IMAGE, IMAGE, "075 / 081", False)],), 1, "075 / 081"),
    (plots.model_blocks, (BLOCKS,), 2, "74 k  (99%)"),
    (plots.dependency_graph, (network(),), 1, "a: 3 layers"),
    (plots.pruning_schedule, (HISTORY, [(10, 20), (20, 30)], 0.5), 2, "pruning periods"),
    (plots.pruning_schedule, (CHEAPER,), 2, "multiply-adds of a step"),
    (plots.channels_kept, (LAYERS,), 1, "3 of 8  (38%)"),
    (plots.block_cost, (BLOCKS, BLOCKS.assign(params=288)), 2, "288  (50%)"),
    (plots.saliency_of_groups, (SCORES,), 1, "cut (1)"),
    (plots.view_heatmaps, (MAPS,), 9, "compressed minus dense, CL"),
    (plots.view_differences, (MAPS,), 6, "compressed minus dense, CL"),
    (plots.view_curves, (CURVES,), 2, "CL, in a coat"),
    (plots.drop_intervals, (DROP,), 1, "97.0 to 96.0 %   -1.0 (-2.0 to +0.0)"),
    (plots.bits_schedule, (BITS, {"joint": 1}), 2, "4  FCs"),
    (plots.bits_schedule, (BITS.drop(columns=BITS.filter(like="act")), {}), 1, "bits of weights"),
    (plots.bits_schedule, (BITS.assign(**{"activations:FCs": 8}), {}), 1, ALL_THE_TIME),
    (plots.bits_by_layer, (LAYER_BITS,), 3, "float"),
    (plots.size_and_accuracy, (NETWORKS,), 3, "24.3"),
    (plots.frontiers, (SUMMARY,), 6, "rank-1 (%), mean of NM, CL"),
    (plots.accuracy_and_cost, (SUMMARY,), 1, "MMAC per frame (log axis)"),
    (plots.frontier_by_condition, (SUMMARY,), 2, "CL, in a coat"),
    (plots.paired_differences, (DIFFERENCES, "hesso"), 1, "dense"),
    (plots.recognition_curves, ({"dense": ROC}, {"dense": RANKS}), 2, "Rank curve: no threshold"),
    (plots.rates_by_view, ({"dense": RATES},), 2, "NM, normal"),
    (plots.speed_bars, (SPEED,), 2, "8.25"),
    (plots.embedding_map, ({"dense": WALKS},), 1, "025"),
    (plots.cuts_by_method, (cuts(CUT, POINTS),), 2, "HESSO (five scores)   0.5"),
]


def texts(fig):
    return [t.get_text() for t in fig.findobj(plt.Text)]


@pytest.mark.parametrize(
    ("draw", "arguments", "axes", "text"), CASES, ids=lambda c: getattr(c, "__name__", "")
)
def test_a_figure_has_its_axes_and_the_words_of_its_data(draw, arguments, axes, text):
    settings = matplotlib.rcParams.copy()
    fig = draw(*arguments)
    assert isinstance(fig, Figure) and len(fig.axes) == axes
    assert text in texts(fig)
    assert not plt.get_fignums(), "pyplot still holds the figure: the notebook would show it twice"
    assert matplotlib.rcParams == settings


def test_every_plot_function_is_tried_above():
    drawing = dict(inspect.getmembers(plots, inspect.isfunction))
    assert {name for name in drawing if name != "save_figure"} == {c[0].__name__ for c in CASES}


def test_equal_data_give_equal_files(tmp_path, workspace):
    for name in ("once/sparsity_0.5", "twice/sparsity_0.5"):
        plots.save_figure(plots.saliency_of_groups(SCORES), name)
    for suffix in ("png", "pdf"):
        files = [
            tmp_path / "figures" / folder / f"sparsity_0.5.{suffix}" for folder in ("once", "twice")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_layers_stand_below_what_they_read_and_a_hidden_one_keeps_its_neighbours_connected():
    fig = plots.dependency_graph(network())
    y = {t.get_text(): t.get_position()[1] for t in fig.axes[0].texts}
    assert all(y[above] > y[below] for above, below in network().edges)
    fig = plots.dependency_graph(network(), hide={"Relu"})
    assert "relu" not in texts(fig)
    ends = {tuple(arc.get_path().vertices[[0, -1], 1].round()) for arc in fig.axes[0].patches}
    assert (0, -2) in ends and len(ends) == 4  # conv1 to add


def test_multiply_adds_per_clip_have_no_bar_beside_those_per_frame():
    heads = pd.DataFrame({"block": ["FCs"], "params": [100], "macs": [1e9], "per": ["clip"]})
    table = pd.concat([BLOCKS, heads], ignore_index=True)
    for fig in (plots.model_blocks(table), plots.block_cost(table, table)):
        macs = fig.axes[1]
        assert max(bar.get_width() for bar in macs.patches) == 2e8
        assert macs.get_title(loc="left").startswith("multiply-adds: 201 M")
        assert any(text.startswith("1 G per clip") for text in texts(fig))


def test_heatmaps_share_their_scale_and_the_difference_is_symmetric():
    fig = plots.view_heatmaps(MAPS)
    maps = [ax for ax in fig.axes if ax.get_title()]
    limits = [ax.collections[0].get_clim() for ax in maps]
    assert limits[:4] == [(70, 100)] * 4
    assert limits[4:] == [(-2, 2)] * 2


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="layer1"):
        plots.block_cost(BLOCKS, BLOCKS[:1])
    with pytest.raises(ValueError, match="needs two models"):
        plots.view_differences({"dense": matrices(50)})
    assert len(plots.view_heatmaps({"dense": matrices(50)}).axes) == 3


def test_a_mosaic_keeps_the_images_apart():
    sheet = mosaic([[np.zeros((2, 2)), np.ones((2, 2))], [None]], gap=1)
    nan = np.nan
    expected = [[0, 0, nan, 1, 1]] * 2 + [[nan] * 5] + [[225, 225, nan, nan, nan]] * 2
    np.testing.assert_array_equal(sheet, expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7305408, "7.31 M"), (999_999, "1 M"), (640, "640"), (1.178e9, "1.18 G"), (0, "0")],
)
def test_counts_are_written_short(value, text):
    assert with_prefix(value) == text
