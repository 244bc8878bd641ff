"""Figures: each function takes tables or arrays and returns a Figure; none computes accuracies."""

from workbook.plots.bits_figures import bits_by_layer, bits_schedule, size_and_accuracy
from workbook.plots.data_figures import (
    foreground_statistics,
    frames_histogram,
    gei_grid,
    sequences_heatmap,
    views_strip,
)
from workbook.plots.graph_figure import dependency_graph
from workbook.plots.live_figure import LiveFigure
from workbook.plots.pruning_figures import (
    block_cost,
    channels_kept,
    pruning_schedule,
    saliency_of_groups,
)
from workbook.plots.recognition_figures import (
    embedding_map,
    rates_by_view,
    recognition_curves,
    speed_bars,
)
from workbook.plots.study_figures import (
    accuracy_and_cost,
    cuts_by_method,
    frontier_by_condition,
    frontiers,
    paired_differences,
)
from workbook.plots.style import CONDITION_COLOURS, save_figure
from workbook.plots.training_figures import hits_and_misses, model_blocks, training_curves
from workbook.plots.view_figures import (
    drop_intervals,
    view_curves,
    view_differences,
    view_heatmaps,
)

__all__ = [
    "CONDITION_COLOURS",
    "LiveFigure",
    "accuracy_and_cost",
    "bits_by_layer",
    "bits_schedule",
    "channels_kept",
    "cuts_by_method",
    "dependency_graph",
    "drop_intervals",
    "embedding_map",
    "foreground_statistics",
    "frames_histogram",
    "frontier_by_condition",
    "frontiers",
    "gei_grid",
    "hits_and_misses",
    "model_blocks",
    "paired_differences",
    "rates_by_view",
    "recognition_curves",
    "saliency_of_groups",
    "save_figure",
    "sequences_heatmap",
    "size_and_accuracy",
    "speed_bars",
    "pruning_schedule",
    "block_cost",
    "training_curves",
    "view_curves",
    "view_differences",
    "view_heatmaps",
    "views_strip",
]
