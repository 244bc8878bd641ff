"""Build what a stage trains: the network, its first weights, the optimizer."""

import logging

import torch
from torch import nn

from gaitlib import distributed, runs
from gaitlib.checkpoint import find_checkpoint, load_checkpoint, restore_model
from gaitlib.compress import hesso, oto
from gaitlib.config import ConfigError, HessoCfg, Study
from gaitlib.model import GaitBase, build_model
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


def build_optimizer(
    study: Study, model: nn.Module, graph: oto.Graph | None = None
) -> torch.optim.Optimizer:
    """Return the dense optimizer, or the pruning one when a graph is given."""
    if graph is None:
        cfg = study.optimizer_cfg
        return getattr(torch.optim, cfg.solver)(model.parameters(), **cfg.arguments())
    cfg = study.compression
    arguments = cfg.model_dump(exclude={"implementation", "start_from"})
    if cfg.implementation == "only_train_once":
        return oto.package_hesso(graph, **arguments)
    return hesso.build_hesso(graph, arguments, total_steps=study.trainer_cfg.total_iter)


def start_weights(study: Study, run: str, model: nn.Module) -> str:
    """Give a GETA stage its first weights as ``start_from`` says; return what was done.

    In a distributed job rank 0 reads them, and training gives its weights to the others.

    Raises:
        MissingRunError: if it starts from a baseline that has not been trained.
    """
    if not distributed.is_main():
        return "the weights of rank 0"
    restored, _ = to_restore(study, run, "geta")
    if restored is not None:
        return f"restore_hint, {restored.name}"
    if study.compression.start_from == "scratch":
        return "random weights"
    cfg, folder = study.trainer_cfg, runs.stage_dir(run, "baseline") / "checkpoints"
    path = find_checkpoint(folder, cfg.save_name, "latest")
    if path is None:
        path = runs.stage_file(run, "baseline", f"checkpoints/{cfg.save_name}-*.pt")  # raises
    state = load_checkpoint(path)
    if (done := state.get("iteration", cfg.total_iter)) < cfg.total_iter:
        log.warning("%s is not finished: iteration %s", path.name, done)
    restore_model(model, state["model"], cfg.restore_ckpt_strict)
    return f"the baseline's {path.name}"
