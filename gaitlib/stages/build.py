"""Build what a stage trains: the network, its first weights, the optimizer."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gaitlib import distributed, runs
from gaitlib.checkpoint import find_checkpoint, load_checkpoint, restore_model
from gaitlib.compress import geta, hesso, oto
from gaitlib.compress.quantizer import (
    ATTRIBUTE,
    Quantization,
    calibrate,
    of_quantizer,
    quantize_network,
)
from gaitlib.config import ConfigError, GetaCfg, HessoCfg, Study
from gaitlib.model import GaitBase, build_model
from gaitlib.stages.data import StudyData, calibration_clips
from gaitlib.stages.resume import to_restore

log = logging.getLogger(__name__)


def require_compression(study: Study) -> HessoCfg:
    """Return the compression section.

    Raises:
        ConfigError: if the study has none.
    """
    if study.compression is None:
        raise ConfigError(
            "the study has no compression: add `compression_optimizer: hesso` and a "
            "hesso_optimizer_cfg section (params/quickstart.yaml shows one)"
        )
    return study.compression


def build_network(study: Study, device: torch.device) -> GaitBase:
    """Build the dense network of a study; its weights come from torch's global generator."""
    return build_model(**study.model_cfg.build_arguments()).to(device)


def attach_quantizers(
    study: Study, model: GaitBase, data: StudyData, *, seed: int
) -> Quantization | None:
    """Give a network the quantizers that a study asks for, calibrated on training clips.

    To be called when the network has its first weights and has been traced. In a distributed job
    rank 0 calibrates for all.

    Args:
        study: its compression section says what is quantized.
        model: float; changed in place.
        data: clips of the training half are looked at, without augmentation.
        seed: of the clips.

    Returns:
        The quantizers; None if the study quantizes nothing.
    """
    if not study.quantizes:
        return None
    quantization = _quantizers(study, model)
    if distributed.is_main():
        calibrate(model, quantization, calibration_clips(study, data, seed=seed))
    state = {name: value.cpu() for name, value in quantization.state_dict().items()}
    quantization.load_state_dict(distributed.broadcast(state))
    return quantization


def attach_quantizers_of(study: Study, model: GaitBase, weights: Mapping[str, Tensor]) -> None:
    """Give a network the quantizers whose scalars a checkpoint holds, if it holds any.

    Raises:
        ConfigError: if it does, and the study quantizes nothing.
    """
    if not any(of_quantizer(name) for name in weights):
        return
    if not study.quantizes:
        raise ConfigError(
            "the checkpoint is of a quantized network, and the study quantizes nothing: take the "
            "config.yaml of its run"
        )
    _quantizers(study, model)


def _quantizers(study: Study, model: GaitBase) -> Quantization:
    cfg = study.compression
    return quantize_network(
        model,
        cfg.quantize,
        weight_bits=cfg.max_bit_wt,
        activation_bits=cfg.max_bit_act,
        uniform=cfg.uniform,
    )


def trace(study: Study, model: nn.Module) -> oto.Graph:
    """Find the channels that leave together, as the study's implementation sees them.

    only_train_once as it is shipped does not know SeparateFCs, and leaves the last stage whole.
    """
    as_shipped = require_compression(study).implementation == "only_train_once"
    return oto.trace(model, as_shipped=as_shipped)


def build_optimizer(
    study: Study,
    model: nn.Module,
    graph: oto.Graph | None = None,
    quantization: Quantization | None = None,
) -> torch.optim.Optimizer:
    """Return the dense optimizer, or the compressing one when a graph is given.

    Args:
        study: the section that fits is used.
        model: what the dense optimizer trains.
        graph: what `gaitlib.compress.oto.trace` said of the model.
        quantization: of `attach_quantizers`, if the study quantizes.
    """
    if graph is None:
        cfg = study.optimizer_cfg
        return getattr(torch.optim, cfg.solver)(model.parameters(), **cfg.arguments())
    cfg = study.compression
    arguments = cfg.model_dump(exclude={"implementation", "start_from"})
    if cfg.implementation == "only_train_once":
        known = {name: arguments[name] for name in HessoCfg.model_fields if name in arguments}
        return oto.package_hesso(graph, **known)
    total = study.trainer_cfg.total_iter
    if isinstance(cfg, GetaCfg):
        for key in ("uniform", "yardstick"):  # not the optimizer's
            arguments.pop(key)
        return geta.build_geta(graph, arguments, quantization, total_steps=total)
    return hesso.build_hesso(graph, arguments, total_steps=total)


def start_weights(study: Study, run: str, model: nn.Module, stage: str = "geta") -> str:
    """Give a compressing stage its first weights as ``start_from`` says; return what was done.

    In a distributed job rank 0 reads them, and training gives its weights to the others.

    Raises:
        MissingRunError: if it starts from a baseline that has not been trained.
    """
    if not distributed.is_main():
        return "the weights of rank 0"
    cfg = study.trainer_cfg
    restored, continues = to_restore(study, run, stage)
    if restored is not None:
        if not continues:  # quantizers look at these weights before training loads them
            state = load_checkpoint(restored)["model"]
            restore_model(model, state, cfg.restore_ckpt_strict, optional=ATTRIBUTE)
        return f"restore_hint, {restored.name}"
    if study.compression.start_from == "scratch":
        return "random weights"
    return f"the baseline's {baseline_weights(study, run, model)}"


def baseline_weights(study: Study, run: str, model: nn.Module) -> str:
    """Give a network the weights of the run's baseline; return the checkpoint's name.

    Raises:
        MissingRunError: if the baseline has not been trained.
    """
    cfg = study.trainer_cfg
    folder = runs.stage_dir(run, "baseline") / "checkpoints"
    path = find_checkpoint(folder, cfg.save_name, "latest")
    if path is None:
        path = runs.stage_file(run, "baseline", f"checkpoints/{cfg.save_name}-*.pt")  # raises
    state = load_checkpoint(path)
    if (done := state.get("iteration", cfg.total_iter)) < cfg.total_iter:
        log.warning("%s is not finished: iteration %s", path.name, done)
    restore_model(model, state["model"], cfg.restore_ckpt_strict)
    return path.name
