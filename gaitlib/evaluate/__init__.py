"""Accuracy: embed sequences, rank them by a protocol, compare two models view by view."""

from gaitlib.evaluate.compare import bootstrap_drop, examples, nearest, worst_pairs
from gaitlib.evaluate.evaluation import (
    Averaging,
    Evaluation,
    averaging_of,
    conditions_of,
    mean_rank1,
    probe_view_means,
)
from gaitlib.evaluate.evaluation_records import from_results, read_hits, to_results, write_hits
from gaitlib.evaluate.features import collect, distance, embed_batches
from gaitlib.evaluate.protocol import check_test_set, evaluate_features
