"""Figures: each function takes tables or arrays and returns a Figure; none computes accuracies."""

from workbook.plots.cost_figures import (
    bits_by_layer,
    block_cost,
    channels_kept,
    model_blocks,
    size_and_accuracy,
    speed_bars,
)
from workbook.plots.data_figures import (
    foreground_statistics,
    frames_histogram,
    gei_grid,
    sequences_heatmap,
    views_strip,
)
from workbook.plots.graph_figure import dependency_graph
from workbook.plots.live_figure import LiveFigure
from workbook.plots.pruning_figures import bits_schedule, pruning_schedule, saliency_of_groups
from workbook.plots.recognition_figures import embedding_map, rates_by_view, recognition_curves
from workbook.plots.study_figures import (
    accuracy_and_cost,
    cuts_by_method,
    frontier_by_condition,
    frontiers,
    paired_differences,
)
from workbook.plots.style import save_figure
from workbook.plots.training_figures import hits_and_misses, training_curves
from workbook.plots.view_figures import (
    drop_intervals,
    view_curves,
    view_differences,
    view_heatmaps,
)
