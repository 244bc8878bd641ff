"""The stages of a study: what notebooks 02, 03 and 05 and the command line do, step by step."""

from gaitlib.stages.build import (
    attach_quantizers,
    attach_quantizers_of,
    build_network,
    build_optimizer,
    require_compression,
    start_weights,
    trace,
)
from gaitlib.stages.data import StudyData, open_data, transform_of
from gaitlib.stages.export import FORMATS, export_network
from gaitlib.stages.fine_tune import cut_and_fine_tune
from gaitlib.stages.launch import ProcessesFailedError
from gaitlib.stages.marks import schedule_marks
from gaitlib.stages.results import (
    LOWBIT,
    bits_table,
    check_test_set,
    compress_stage,
    evaluate_network,
    measure,
    record,
    record_compressed,
)
from gaitlib.stages.rounding import round_pruned
from gaitlib.stages.run import TRAINED, run_stage
from gaitlib.stages.training import train_stage

__all__ = [
    "LOWBIT",
    "FORMATS",
    "ProcessesFailedError",
    "TRAINED",
    "StudyData",
    "attach_quantizers",
    "attach_quantizers_of",
    "bits_table",
    "build_network",
    "build_optimizer",
    "check_test_set",
    "compress_stage",
    "cut_and_fine_tune",
    "evaluate_network",
    "export_network",
    "measure",
    "open_data",
    "record",
    "record_compressed",
    "require_compression",
    "round_pruned",
    "run_stage",
    "schedule_marks",
    "start_weights",
    "trace",
    "train_stage",
    "transform_of",
]
