"""The stages of a study: what notebooks 02, 03 and 05 and the command line do, step by step."""

from gaitlib.stages.build import (
    build_network,
    build_optimizer,
    require_compression,
    start_weights,
)
from gaitlib.stages.data import StudyData, open_data
from gaitlib.stages.launch import ProcessesFailedError
from gaitlib.stages.results import (
    check_test_set,
    compress_stage,
    evaluate_network,
    measure,
    record,
    record_compressed,
)
from gaitlib.stages.run import run_stage
from gaitlib.stages.training import train_stage

__all__ = [
    "ProcessesFailedError",
    "StudyData",
    "build_network",
    "build_optimizer",
    "check_test_set",
    "compress_stage",
    "evaluate_network",
    "measure",
    "open_data",
    "record",
    "record_compressed",
    "require_compression",
    "run_stage",
    "start_weights",
    "train_stage",
]
