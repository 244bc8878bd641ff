"""Accuracy: embed sequences, rank them by CASIA-B's protocol, compare two models view by view."""

from gaitlib.evaluate.compare import bootstrap_drop, examples, nearest, worst_pairs
from gaitlib.evaluate.evaluation_records import from_results, read_hits, to_results, write_hits
from gaitlib.evaluate.features import collect, distance, embed, embed_batches
from gaitlib.evaluate.protocol import (
    CONDITIONS,
    Evaluation,
    check_test_set,
    evaluate_indoor,
    mean_without_identical_view,
    probe_view_means,
    rank1_by_view,
)

__all__ = [
    "CONDITIONS",
    "Evaluation",
    "bootstrap_drop",
    "check_test_set",
    "collect",
    "distance",
    "embed",
    "embed_batches",
    "evaluate_indoor",
    "examples",
    "from_results",
    "mean_without_identical_view",
    "nearest",
    "probe_view_means",
    "rank1_by_view",
    "read_hits",
    "to_results",
    "worst_pairs",
    "write_hits",
]
