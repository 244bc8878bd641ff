"""Run a whole stage in one call, as notebooks 02 and 03 do cell by cell."""

import contextlib
import logging

from gaitlib.system import distributed
from gaitlib.system.device import keep_freed_memory
from gaitlib.system.random_streams import seed_streams
from workbook.config import ConfigError
from workbook.runs import Run
from workbook.steps.dataset import open_data
from workbook.steps.networks import (
    attach_quantizers,
    build_network,
    build_optimizer,
    require_compression,
    start_weights,
    trace,
)
from workbook.steps.results import (
    check_test_set,
    compress_stage,
    evaluate_network,
    measure,
    record,
    record_compressed,
)
from workbook.steps.train_stage import Watch, train_stage

log = logging.getLogger(__name__)

#: The stages that can be trained.
TRAINABLE = ("baseline", "geta", "hesso")


def choose_stage(run: Run, stage: str = "") -> str:
    """Return the stage to train or test: the named one, or by default the experiment's own.

    Raises:
        ConfigError: if there is no such stage, or the experiment lacks a section for it.
    """
    if stage and stage not in TRAINABLE:
        raise ConfigError(f"--stage {stage!r}: choose from {', '.join(TRAINABLE)}")
    if not stage:
        stage = "baseline" if run.experiment.compression is None else run.compressing_stage
    if stage != "baseline":
        require_compression(run.experiment)
    if stage == "geta" and run.compressing_stage != "geta":
        raise ConfigError(
            "--stage 'geta', but the experiment chooses no bits: write --stage hesso, or give "
            "geta_optimizer_cfg bits (params/quickstart.yaml shows them)"
        )
    return stage


def prepare_process(run: Run) -> None:
    """Prepare this process for a run: seed its random streams and let it keep freed memory."""
    seed_streams(run.seed)
    keep_freed_memory(run.device)


def run_stage(
    run: Run,
    stage: str,
    watch: Watch = Watch(),  # noqa: B008 (frozen)
    *,
    test: bool = True,
    compress: bool = True,
    processes: int = 1,
    force: bool = False,
) -> None:
    """Train a stage, compress it, test it, and write ``runs/<run>/<stage>/``.

    In a distributed job every process calls it, and rank 0 writes.

    Args:
        run: its experiment has a compression section, except for ``baseline``.
        stage: ``baseline``; ``geta``, which prunes and quantizes; or ``hesso``, which prunes.
        watch: receives the progress of training.
        test: False writes no results.json.
        compress: False stops after training.
        processes: as in `train_stage`.
        force: as in `train_stage`.

    Raises:
        LockedError: if another process writes this stage.
    """
    # several processes hold the lock themselves, while they train
    with run.locked(stage) if processes == 1 else contextlib.nullcontext():
        whole, run = run, run.of_stage(stage)
        data = open_data(run.experiment, watch.progress)
        if test or run.experiment.trainer_cfg.with_test:
            check_test_set(run.experiment, data)
        prepare_process(run)
        model = build_network(run.experiment, run.device)
        log.info("%s starts from %s", stage, start_weights(run, model, stage))
        graph = quantization = None
        if stage != "baseline":
            graph = trace(run.experiment, model)
            quantization = attach_quantizers(run.experiment, model, data, seed=run.seed)
        optimizer = build_optimizer(run.experiment, model, graph, quantization)
        train_stage(whole, stage, model, data, optimizer, watch, processes=processes, force=force)
        if not compress:
            return
        if graph is None:
            network = model
        else:
            compressed = compress_stage(run, graph, model, stage)
            network = compressed.model
        if test:
            _, evaluation = evaluate_network(run.experiment, network, data)
            if distributed.is_main() and graph is None:
                record(run, stage, data, evaluation, measure(model))
            elif distributed.is_main():
                record_compressed(run, data, evaluation, compressed, stage)
        distributed.wait()
