"""Build what a stage needs for training: network, first weights, quantizers and optimizer."""

import glob
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from gaitlib.data.casia_b import DataSplit
from gaitlib.model import GaitBase, build_model
from gaitlib.model.float_state import QUANTIZATION
from gaitlib.prune import hesso, oto
from gaitlib.quantize import geta
from gaitlib.quantize.quantization import Quantization, calibrate, quantize_network
from gaitlib.system import distributed
from gaitlib.train.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    refuse_narrow,
    restore_model,
)
from gaitlib.train.teacher import Teacher
from workbook.config import ConfigError, Experiment, GetaCfg, HessoCfg
from workbook.config.model_cfg import ModelCfg
from workbook.runs import Run, finished, locate
from workbook.steps.budgets import latency_cost
from workbook.steps.dataset import calibration_clips, network_arguments
from workbook.steps.start_of_stage import checkpoint_to_restore

log = logging.getLogger(__name__)


def require_compression(experiment: Experiment) -> HessoCfg:
    """Return the compression section.

    Raises:
        ConfigError: if the experiment has none.
    """
    if experiment.compression is None:
        raise ConfigError(
            "the experiment has no compression: add `compression_optimizer: hesso` and a "
            "hesso_optimizer_cfg section (params/quickstart.yaml shows one)"
        )
    return experiment.compression


def build_network(
    experiment: Experiment, device: torch.device, classes: int | None = None
) -> GaitBase:
    """Build the dense network of an experiment, with weights from torch's global generator.

    Args:
        experiment: its model_cfg is used.
        device: of the network.
        classes: of the classifier; by default the experiment's.
    """
    arguments = network_arguments(experiment)
    if classes is not None:
        arguments["SeparateBNNecks"]["class_num"] = classes
    return build_model(**arguments).to(device)


def attach_quantizers(
    experiment: Experiment, model: GaitBase, data: DataSplit, *, seed: int
) -> Quantization | None:
    """Attach an experiment's quantizers to a network and calibrate them on training clips.

    Call it when the network has its first weights and has been traced. In a distributed job rank 0
    calibrates for all processes.

    Args:
        experiment: its compression section says what to quantize.
        model: float; changed in place.
        data: clips of the training half calibrate, without augmentation.
        seed: of the clips.

    Returns:
        The quantizers; None if the experiment quantizes nothing.
    """
    if not experiment.quantizes:
        return None
    quantization = new_quantizers(experiment, model)
    if distributed.is_main():
        calibrate(model, quantization, calibration_clips(experiment, data, seed=seed))
    state = {name: value.cpu() for name, value in quantization.state_dict().items()}
    quantization.load_state_dict(distributed.broadcast(state))
    return quantization


def new_quantizers(experiment: Experiment, model: GaitBase) -> Quantization:
    """Attach an experiment's quantizers to a network; the ranges of inputs are not set yet."""
    cfg = experiment.compression
    return quantize_network(
        model,
        cfg.quantize,
        weight_bits=cfg.max_bit_wt,
        activation_bits=cfg.max_bit_act,
        uniform=cfg.uniform,
    )


def trace(experiment: Experiment, model: nn.Module) -> oto.Graph:
    """Find the groups of tensors that share channels, as the experiment's implementation does.

    only_train_once as shipped does not know SeparateFCs, so it does not prune the last block.
    """
    as_shipped = require_compression(experiment).implementation == "only_train_once"
    return oto.trace(model, as_shipped=as_shipped)


def build_optimizer(
    experiment: Experiment,
    model: nn.Module,
    graph: oto.Graph | None = None,
    quantization: Quantization | None = None,
) -> torch.optim.Optimizer:
    """Return the dense optimizer, or the compressing one when a graph is given.

    With ``target_latency_ms`` the layers are measured on first use: see `latency_cost`.

    Args:
        experiment: the section that fits is used.
        model: what the dense optimizer trains.
        graph: what `gaitlib.prune.oto.trace` found in the model.
        quantization: of `attach_quantizers`, if the experiment quantizes.
    """
    if graph is None:
        cfg = experiment.optimizer_cfg
        return getattr(torch.optim, cfg.solver)(model.parameters(), **cfg.arguments())
    cfg = experiment.compression
    if cfg.implementation == "only_train_once":
        return oto.package_hesso(graph, cfg.settings)
    latency = latency_cost(cfg, graph)
    if isinstance(cfg, GetaCfg):
        return geta.build_geta(graph, cfg.settings, quantization, latency)
    return hesso.build_hesso(graph, cfg.settings, latency)


def start_weights(run: Run, model: nn.Module, stage: str | None = None) -> str:
    """Load a compressing stage's first weights as ``start_from`` says; return their source.

    In a distributed job rank 0 loads them, and training broadcasts them to the other processes. A
    checkpoint that the stage continues from is loaded by training, as all of ``baseline``'s are.

    Args:
        run: the run of the stage.
        model: changed in place.
        stage: a stage that can be trained; by default the run's compressing one.

    Raises:
        MissingRunError: if the stage starts from a baseline that has not been trained.
    """
    if not distributed.is_main():
        return "the weights of rank 0"
    stage = stage or run.compressing_stage
    path, continues = checkpoint_to_restore(run, stage)
    if path is not None:
        if not continues and stage != "baseline":  # quantizers read these weights before training
            strict = run.experiment.trainer_cfg.restore_ckpt_strict
            load_weights(path, model, strict, optional=QUANTIZATION)
        return f"restore_hint, {path.name}"
    if stage == "baseline":
        return "random weights"
    if run.experiment.compression.start_from == "baseline":
        return f"the baseline's {baseline_weights(run, model)}"
    unused = "baseline" in finished(run.name)
    return "random weights" + unused * (
        ", not from this run's finished baseline, which start_from: baseline would take"
    )


def newest_checkpoint(run: Run, stage: str) -> Path:
    """Return the checkpoint of a stage with the most iterations.

    Raises:
        MissingRunError: if the stage has none.
    """
    name = run.experiment.trainer_cfg.save_name
    path = find_checkpoint(run.folder(stage) / "checkpoints", name, "latest")
    return path or run.file(stage, f"checkpoints/{glob.escape(name)}-*.pt")  # raises


def baseline_weights(run: Run, model: nn.Module) -> str:
    """Load the weights of the run's baseline into a network; return the checkpoint's name.

    Raises:
        MissingRunError: if the baseline has not been trained.
    """
    strict = run.experiment.trainer_cfg.restore_ckpt_strict
    return _load_baseline(run, model, strict)[0].name


def _load_baseline(run: Run, model: nn.Module, strict: bool) -> tuple[Path, dict[str, Any]]:
    """Load the baseline's weights, all of them if ``strict``; return its checkpoint and content."""
    cfg, path = run.experiment.trainer_cfg, newest_checkpoint(run, "baseline")
    state = load_weights(path, model, strict)
    own = (state.get("config") or {}).get("trainer_cfg", {})
    total = own.get("total_iter", cfg.total_iter)  # a baseline may have steps of its own
    if (done := state.get("iteration", total)) < total:
        log.warning("%s is not finished: iteration %s of %s", path.name, done, total)
    return path, state


def load_teacher(
    run: Run, stage: str, model: GaitBase, record: Mapping[str, Any]
) -> Teacher | None:
    """Return the teacher of a stage as ``trainer_cfg.teacher`` says; None if it has none.

    No random number is drawn. A teacher that was trained on other sequences is a warning, as far as
    its checkpoint says so: its classes may be other people.

    Args:
        run: of the stage.
        stage: what is trained.
        model: the network in training.
        record: of `workbook.steps.start_of_stage.run_record`.

    Raises:
        MissingRunError: if the baseline teaches and has not been trained.
        CheckpointError: if the file cannot be read or does not fit, whatever restore_ckpt_strict
            says, or its network has other classes or parts.
    """
    experiment = run.experiment
    name = experiment.trainer_cfg.teacher
    if name is None or name == stage == "baseline":
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            if name == "baseline":
                network = build_network(experiment, run.device)
                path, state = _load_baseline(run, network, strict=True)
                source = f"the baseline's {path.name}"
            else:
                (network, state), source = _read_dense(locate(name), experiment), name
    except CheckpointError as error:
        raise CheckpointError(
            f"trainer_cfg.teacher {name} cannot teach; name the checkpoint of a dense network of "
            f"these subjects, or leave teacher out: {error}"
        ) from error
    # (P, C, K)
    (parts, _, classes), (our_parts, _, our_classes) = (
        net.BNNecks.fc_bin.shape for net in (network, model)
    )
    if (parts, classes) != (our_parts, our_classes):
        raise CheckpointError(
            f"trainer_cfg.teacher {name}: its network has {classes} classes and {parts} parts, "
            f"this one {our_classes} and {our_parts}: name one that was trained on the same "
            "subjects, or leave teacher out"
        )
    log.info("%s learns from %s too", stage, source)
    of_teacher = (state.get("config") or {}).get("data", record["data"])
    if distributed.is_main() and of_teacher != record["data"]:
        log.warning(
            "trainer_cfg.teacher %s was trained on other sequences (%s, here %s): see that its "
            "classes are the same subjects in the same order, or leave teacher out",
            *(name, of_teacher, record["data"]),
        )
    return Teacher(network.to(run.device).eval().requires_grad_(False), experiment.logit_scale)


def _read_dense(path: Path, experiment: Experiment) -> tuple[GaitBase, dict[str, Any]]:
    """Return the dense network of a checkpoint, and the checkpoint's content.

    Its architecture is that of the run which wrote it, or else the experiment's.
    """
    state = load_checkpoint(path)
    refuse_narrow(state, path)
    arguments = network_arguments(experiment)
    if (written := (state.get("config") or {}).get("model_cfg")) is not None:
        try:
            own = ModelCfg.model_validate(written).build_arguments()
        except ValidationError as error:
            raise CheckpointError(f"{path} says what no network can be: {error}") from error
        arguments |= own
    network = build_model(**arguments)
    restore_model(network, state["model"], strict=True)
    return network, state
