"""Continue a training from a checkpoint, as if it had never stopped, or start from its weights."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from gaitlib.model.float_state import QUANTIZATION
from gaitlib.prune.hesso import HESSO
from gaitlib.train.checkpoint import TAKE_EARLIER, CheckpointError, is_narrow, restore_model
from gaitlib.train.saved_state import StateError, load_checked
from gaitlib.train.training_state import TrainingState

log = logging.getLogger(__name__)

#: The entry of a checkpoint that tells its teacher from another one.
TEACHER = "teacher"


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    training: TrainingState,
    *,
    continues: bool,
    strict: bool = True,
    reset: Collection[str] = (),
) -> None:
    """Load a checkpoint into all that a training consists of.

    Args:
        state: from `gaitlib.train.checkpoint.load_checkpoint`.
        model: changed in place, as the following three.
        optimizer: of the model.
        scheduler: of the optimizer.
        training: what else is carried from step to step.
        continues: go on at the checkpoint's iteration; False takes weights, optimizer and schedule
            alone.
        strict: refuse weights unless all of them fit.
        reset: ``optimizer`` or ``scheduler``, which stay as they are.

    Raises:
        CheckpointError: if a part does not fit, or a teacher is another one.
    """
    prunes = isinstance(optimizer, HESSO)
    if continues and "optimizer" in reset and prunes:
        raise CheckpointError(
            "optimizer_reset would forget in mid-run which channels are pruned: remove it, or "
            "start a new run, with restore_hint: <path of a checkpoint from before pruning began>"
        )
    narrow = is_narrow(state)
    if continues and state.get("optimizer") and prunes:
        try:
            optimizer.narrow_as(state["optimizer"])
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the network: {error}") from error
    optional = "" if continues else QUANTIZATION  # a dense file has no quantizers
    for line in restore_model(model, state["model"], strict, optional=optional):
        log.warning("not restored: %s", line)
    for name, target in {"optimizer": optimizer, "scheduler": scheduler}.items():
        if name in reset or state.get(name) is None:
            continue
        try:
            load_checked(target, state[name], name)
        except StateError as error:
            fix = f"trainer_cfg.{name}_reset: true starts it afresh"
            if narrow and name == "optimizer":
                fix = "channels have left its network, so it goes on only as its own run was set up"
            raise CheckpointError(
                f"the checkpoint's {name} state does not fit this experiment ({error}); {fix}"
            ) from error
    if continues:
        _restore_training(training, state)


def _restore_training(training: TrainingState, state: Mapping[str, Any]) -> None:
    try:
        training.load_state_dict(state)
    except StateError as error:
        if error.entry == TEACHER:
            raise CheckpointError(
                f"the run cannot continue: {error}. Name the teacher that it began with in "
                "trainer_cfg.teacher, or start anew, trainer_cfg.restore_hint: 0"
            ) from error
        damage = f"the checkpoint is damaged: {error.entry}: {error}"
        raise CheckpointError(f"{damage}. {TAKE_EARLIER}") from error


def has_complete_state_dict(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the state_dict holds all that the optimizer needs to continue."""
    return isinstance(optimizer, HESSO) or type(optimizer).__module__.startswith("torch.")
