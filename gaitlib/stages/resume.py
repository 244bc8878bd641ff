"""Where a stage starts: its own checkpoint, another file, or anew with nothing lost."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaitlib import runs
from gaitlib.checkpoint import CheckpointError, find_checkpoint, restore_model
from gaitlib.compress import hesso
from gaitlib.config import Study
from gaitlib.stages.data import locate

log = logging.getLogger(__name__)


def to_restore(study: Study, run: str, stage: str) -> tuple[Path | None, bool]:
    """Return the checkpoint that ``restore_hint`` names, and whether it continues this stage."""
    cfg = study.trainer_cfg
    hint, folder = cfg.restore_hint, runs.stage_dir(run, stage) / "checkpoints"
    if isinstance(hint, int) or hint == "latest":
        checkpoint = find_checkpoint(folder, cfg.save_name, hint)
        return checkpoint, checkpoint is not None
    return find_checkpoint(folder, cfg.save_name, str(locate(hint))), False


def restore(
    study: Study,
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Load what ``restore_hint`` named, as far as the study wants it."""
    cfg = study.trainer_cfg
    for line in restore_model(model, state["model"], cfg.restore_ckpt_strict):
        log.warning("restored in part: %s", line)
    for name, target, reset in (
        ("optimizer", optimizer, cfg.optimizer_reset),
        ("scheduler", scheduler, cfg.scheduler_reset),
    ):
        if reset or state.get(name) is None:
            continue
        try:
            target.load_state_dict(state[name])
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint's {name} state does not fit this study ({error}); "
                f"trainer_cfg.{name}_reset: true starts it anew"
            ) from error


def keeps_its_state(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a state_dict holds all that the optimizer needs to go on."""
    return isinstance(optimizer, hesso.HESSO) or type(optimizer).__module__.startswith("torch.")


def set_aside(run: str, stage: str) -> None:
    """Move a stage that is about to start anew to ``runs/<run>/previous``, so nothing is lost."""
    folder = runs.stage_dir(run, stage)
    if not folder.exists():
        return
    target = runs.RUNS / run / "previous" / f"{stage}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    while target.exists():
        target = target.with_name(target.name + "+")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    log.info("%s starts anew; the earlier one is now %s", stage, target)
