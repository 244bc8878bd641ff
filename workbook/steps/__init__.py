"""What notebooks and the command line do with a run: single steps, and whole stages."""

from workbook.steps.budgets import describe_bit_budget, describe_budget
from workbook.steps.check_resume import ResumeError, check_resume
from workbook.steps.clean import find_leftovers, remove_leftovers
from workbook.steps.dataset import make_walkers, open_data, transform_of
from workbook.steps.deployment import compare_latency, deployed, load_networks
from workbook.steps.evaluate_checkpoint import (
    evaluate_checkpoint,
    find_tested_checkpoint,
    load_network,
)
from workbook.steps.export import FORMATS, export_network
from workbook.steps.fine_tune import cut_and_fine_tune
from workbook.steps.launch import ProcessesFailedError
from workbook.steps.networks import (
    attach_quantizers,
    build_network,
    build_optimizer,
    require_compression,
    start_weights,
    trace,
)
from workbook.steps.people import open_people
from workbook.steps.results import (
    bits_table,
    check_test_set,
    compress_stage,
    evaluate_network,
    measure,
    record,
    record_compressed,
)
from workbook.steps.round_hesso import round_hesso
from workbook.steps.run_stage import choose_stage, prepare_process, run_stage
from workbook.steps.train_stage import Watch, train_stage
