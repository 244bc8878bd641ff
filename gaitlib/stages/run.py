"""A whole stage in one call: what notebooks 02 and 03 do cell by cell."""

import logging
from collections.abc import Callable

import torch

from gaitlib import distributed
from gaitlib.config import Study
from gaitlib.random_state import seed_streams
from gaitlib.stages.build import (
    attach_quantizers,
    build_network,
    build_optimizer,
    start_weights,
    trace,
)
from gaitlib.stages.data import open_data
from gaitlib.stages.results import (
    check_test_set,
    compress_stage,
    evaluate_network,
    measure,
    record,
    record_compressed,
)
from gaitlib.stages.training import OnHistory, train_stage

log = logging.getLogger(__name__)

#: The stages that are trained.
TRAINED = ("baseline", "geta", "pruned")


def run_stage(
    study: Study,
    run: str,
    stage: str,
    device: torch.device,
    *,
    seed: int,
    test: bool = True,
    force: bool = False,
    progress: bool = False,
    on_history: OnHistory | None = None,
    processes: int = 1,
    on_line: Callable[[str], None] = log.info,
) -> None:
    """Train a stage, compress it, test it, and write ``runs/<run>/<stage>/``.

    Every process of a distributed job calls it; rank 0 writes.

    Args:
        study: the study; for ``geta`` it has a compression section.
        run: folder below runs/.
        stage: ``baseline``; ``geta``, which compresses; or ``pruned``, the same without bits.
        device: this process's.
        seed: of weights, batches and augmentation.
        test: False stops after training.
        force: as `train_stage`, like the following.
        progress: draw bars.
        on_history: called with the history so far.
        processes: as `train_stage`, like the following.
        on_line: called with each line that they print.
    """
    study = study.pruned_alone() if stage == "pruned" else study
    data = open_data(study, progress)
    if test:
        check_test_set(study, data)
    seed_streams(seed)
    model = build_network(study, device)
    graph = quantization = None
    if stage != "baseline":
        start_weights(study, run, model, stage)
        graph = trace(study, model)
        quantization = attach_quantizers(study, model, data, seed=seed)
    optimizer = build_optimizer(study, model, graph, quantization)
    train_stage(
        study,
        run,
        stage,
        model,
        data,
        optimizer,
        seed=seed,
        on_history=on_history,
        progress=progress,
        force=force,
        processes=processes,
        on_line=on_line,
    )
    if not test:
        return
    about = {"seed": seed, "device": device}
    if graph is None:
        _, evaluation = evaluate_network(study, model, data)
        if distributed.is_main():
            record(study, run, stage, data, evaluation, measure(model), **about)
    else:
        compressed = compress_stage(study, run, graph, model, stage)
        _, evaluation = evaluate_network(study, compressed.model, data)
        if distributed.is_main():
            about["stage"] = stage
            record_compressed(study, run, data, evaluation, model, compressed, **about)
    distributed.wait()
