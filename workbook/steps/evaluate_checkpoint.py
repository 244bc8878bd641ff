"""Test any network that a run has left: a checkpoint, or a compressed network's file."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gaitlib.deploy import network_file
from gaitlib.evaluate import Evaluation, to_results
from gaitlib.model import GaitBase
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.widths import resize_layers, widths_of_weights
from gaitlib.system import distributed
from gaitlib.system.device import keep_freed_memory
from gaitlib.system.files import write_atomically
from gaitlib.train.checkpoint import (
    CheckpointError,
    find_checkpoint,
    is_narrow,
    load_checkpoint,
    match_keys,
    restore_model,
)
from workbook.config import ConfigError
from workbook.runs import Run
from workbook.steps.dataset import open_data
from workbook.steps.networks import build_network, new_quantizers
from workbook.steps.results import check_test_set, evaluate_network


def evaluate_checkpoint(
    run: Run, stage: str, path: Path, *, progress: bool = False, name: str = ""
) -> tuple[Evaluation, Path]:
    """Test a network by the run's protocol and write ``runs/<run>/<stage>/test-<name>.json``.

    Only TEST_SET is opened, and the network may have been trained on another data set. A protocol
    with a submission file has it in ``submission-<name>.csv``. Every process of a distributed job
    calls it; rank 0 writes.

    Args:
        run: its experiment says what is tested, and how.
        stage: the folder that the results go to.
        path: of the network, see `load_network`.
        progress: draw a bar while walkers are drawn.
        name: of the file; by default the network's.

    Returns:
        The evaluation, and the file of its results.
    """
    keep_freed_memory(run.device)
    model = load_network(run, path)
    data = open_data(run.experiment, progress, test_alone=True)
    check_test_set(run.experiment, data)
    _, evaluation = evaluate_network(run.experiment, model, data)
    name = name or path.stem
    target = run.folder(stage) / f"test-{name}.json"
    if distributed.is_main():
        text = json.dumps(to_results(evaluation), indent=1, sort_keys=True)
        write_atomically(target, text + "\n")
        if evaluation.submission is not None:
            answers = evaluation.submission.to_csv(index=False)
            write_atomically(target.with_name(f"submission-{name}.csv"), answers)
    return evaluation, target


def find_tested_checkpoint(run: Run, stage: str) -> Path:
    """Return the checkpoint that a test reads: ``evaluator_cfg.restore_hint``, or the latest.

    Raises:
        CheckpointError: if the stage has no such checkpoint.
    """
    run = run.of_stage(stage)
    hint = run.experiment.evaluator_cfg.restore_hint
    folder, name = run.folder(stage) / "checkpoints", run.experiment.trainer_cfg.save_name
    path = find_checkpoint(folder, name, hint or "latest")
    if path is None:
        raise CheckpointError(
            f"{run.name}/{stage} has no checkpoint: train it, or give --checkpoint"
        )
    return path


def load_network(run: Run, path: Path) -> GaitBase:
    """Load any network of this project for testing: a checkpoint, or a compressed network's file.

    A checkpoint of a quantized network gets the quantizers that the experiment asks for. One of a
    network that channels have left during training gives the narrow network. The classifier, which
    a test does not use, has the checkpoint's classes.

    Raises:
        CheckpointError: if a checkpoint does not fit the experiment's network.
        ConfigError: if a checkpoint is of a quantized network, and the experiment chooses no bits.
        NetworkFileError: if a compressed network's file is damaged.
    """
    if network_file.is_network_file(path):
        return network_file.load_network(path, run.device)
    state = load_checkpoint(path, run.device)
    weights = state["model"]
    model = build_network(run.experiment, run.device, classes=_classes_of(weights))
    if any(of_quantizer(name) for name in weights):
        if not run.experiment.quantizes:
            raise ConfigError(
                "the checkpoint is of a quantized network, and the experiment quantizes nothing: "
                "take the config.yaml of its run"
            )
        bits = run.experiment.compression.settings.bits
        if bits.phase(state.get("iteration", 0)) == "float":  # nothing was rounded yet
            weights = {n: value for n, value in weights.items() if not of_quantizer(n)}
        else:
            new_quantizers(run.experiment, model)
    if is_narrow(state):
        names = match_keys(weights, model.state_dict())
        here = {names[name]: value for name, value in weights.items() if name in names}
        resize_layers(model, widths_of_weights(model, here))
    restore_model(model, weights, run.experiment.evaluator_cfg.restore_ckpt_strict)
    return model


def _classes_of(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a checkpoint's classifier; None if it has none."""
    for name, value in weights.items():
        if name.endswith("BNNecks.fc_bin") and value.ndim == 3:
            return value.shape[2]
    return None
