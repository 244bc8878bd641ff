"""Where a stage starts: from its checkpoint, from another file, or from the beginning.

A new start moves the files of the earlier one aside, so that nothing is lost.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaitlib.data.casia_b import DataSplit
from gaitlib.model.float_state import QUANTIZATION
from gaitlib.prune import hesso
from gaitlib.system import distributed
from gaitlib.system.errors import UserError
from gaitlib.system.random_streams import random_state, restore_random_state
from gaitlib.train.checkpoint import (
    CheckpointError,
    checkpoints,
    find_checkpoint,
    is_narrow,
    load_checkpoint,
    refuse_narrow,
    restore_model,
)
from gaitlib.train.loop import LogWindow
from gaitlib.train.saved_state import kind_fault, optimizer_fault
from gaitlib.train.teacher import Teacher
from gaitlib.train.training_cost import TrainingCost
from workbook.config import Experiment
from workbook.config.run_changes import compare_records, digest
from workbook.runs import Run, locate, make_stage_dir

log = logging.getLogger(__name__)

#: The entry of a checkpoint that tells its teacher from another one.
TEACHER = "teacher"
#: What a state of the wrong kind can raise when it is loaded.
UNREADABLE = (ValueError, LookupError, RuntimeError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        name: of the checkpoint's file; empty if there is none.
        state: the content of the file, on the CPU; None if there is none.
        continues: True continues at the file's iteration, False starts at 0.
    """

    name: str = ""
    state: dict[str, Any] | None = None
    continues: bool = False

    @property
    def iteration(self) -> int:
        """The number of iterations done."""
        return int(self.state["iteration"]) if self.continues else 0


def find_start(run: Run, stage: str) -> Start:
    """Read the checkpoint that ``trainer_cfg.restore_hint`` names; rank 0 reads for all.

    Raises:
        CheckpointError: if it does not exist, or is past the end of the run.
    """
    return distributed.broadcast(_read(run, stage) if distributed.is_main() else Start())


def _read(run: Run, stage: str) -> Start:
    path, continues = checkpoint_to_restore(run, stage)
    if path is None:
        return Start()
    start = Start(path.name, load_checkpoint(path), continues)
    if continues and "iteration" not in start.state:
        raise CheckpointError(
            f"{path} holds weights alone, so no run can continue from it: take an earlier one, "
            "trainer_cfg.restore_hint: <iteration>, or start from its weights, restore_hint: <path>"
        )
    if not continues:
        refuse_narrow(start.state, path)
    total = run.experiment.trainer_cfg.total_iter
    if start.iteration > total:
        raise CheckpointError(
            f"{path.name} has {start.iteration} iterations done, more than trainer_cfg.total_iter "
            f"{total}: raise total_iter, or name an earlier checkpoint in restore_hint"
        )
    return start


def checkpoint_to_restore(run: Run, stage: str) -> tuple[Path | None, bool]:
    """Return the checkpoint that ``restore_hint`` names, and whether it continues this stage."""
    cfg = run.experiment.trainer_cfg
    hint, folder = cfg.restore_hint, run.folder(stage) / "checkpoints"
    if isinstance(hint, int) or hint == "latest":
        checkpoint = find_checkpoint(folder, cfg.save_name, hint)
        return checkpoint, checkpoint is not None
    return find_checkpoint(folder, cfg.save_name, str(locate(hint))), False


def run_record(run: Run, data: DataSplit) -> dict[str, Any]:
    """Return the settings that determine a run: its sections, seed, data, device and processes."""
    table = data.train.table[["subject", "type", "view"]].to_csv(index=False)
    return {
        **run.experiment.sections(),
        "seed": run.seed,
        "device": str(run.device),
        "processes": distributed.world_size(),
        "data": {
            "train_subjects": len(data.train.subjects),
            "train_sequences": len(data.train),
            "train_digest": hashlib.sha256(table.encode()).hexdigest()[:16],
        },
    }


def check_same_run(start: Start, record: Mapping[str, Any], force: bool = False) -> None:
    """Log the settings that changed since the checkpoint; refuse those that change the run.

    Raises:
        CheckpointError: for a change that makes it another run, unless ``force``.
    """
    saved = start.state.get("config")
    if not saved:  # not written by this program
        return
    changes = compare_records(saved, record)
    for change in changes:
        if distributed.is_main() and change.key != "trainer_cfg.restore_hint":  # set to resume
            log.warning("resumed with %s", change)
    serious = [str(change) for change in changes if not change.harmless]
    if serious and not force:
        raise CheckpointError(
            f"resuming {start.name} with these changes would make it another run:\n  "
            + "\n  ".join(serious)
            + "\nUndo the changes, or train under another --run, or continue anyway with --force"
        )


def restore(
    experiment: Experiment,
    start: Start,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    window: LogWindow,
    cost: TrainingCost,
    teachers: Mapping[str, Teacher],
) -> None:
    """Load the state that `find_start` read; the ``*_reset`` settings skip a part of it.

    Raises:
        CheckpointError: if a part does not fit the experiment, or a teacher is another one.
    """
    cfg, state = experiment.trainer_cfg, start.state
    if state is None:
        return
    if start.continues and cfg.optimizer_reset and isinstance(optimizer, hesso.HESSO):
        raise CheckpointError(
            "optimizer_reset would forget in mid-run which channels are pruned: remove it, or "
            "start a new run, with restore_hint: <path of a checkpoint from before pruning began>"
        )
    narrow = is_narrow(state)
    if start.continues and state.get("optimizer"):
        narrow_as(state["optimizer"], optimizer)
    optional = "" if start.continues else QUANTIZATION  # a dense file has no quantizers
    for line in restore_model(model, state["model"], cfg.restore_ckpt_strict, optional=optional):
        log.warning("not restored: %s", line)
    for name, target, reset in (
        ("optimizer", optimizer, cfg.optimizer_reset),
        ("scheduler", scheduler, cfg.scheduler_reset),
    ):
        if reset or state.get(name) is None:
            continue
        try:
            _load(target, state[name])
        except UNREADABLE as error:
            fix = f"trainer_cfg.{name}_reset: true starts it afresh"
            if narrow and name == "optimizer":
                fix = "channels have left its network, so it goes on only as its own run was set up"
            raise CheckpointError(
                f"the checkpoint's {name} state does not fit this experiment ({error}); {fix}"
            ) from error
    if start.continues:
        streams = state.get("random", [])
        try:
            for name, target in {"scaler": scaler, "window": window, **teachers}.items():
                if state.get(name):
                    _load(target, state[name])
            name = "random"
            if distributed.rank() < len(streams):
                _restore_streams(streams[distributed.rank()])
        except UNREADABLE as error:
            if name == TEACHER:
                raise CheckpointError(
                    f"{start.name} cannot continue: {error}. Name the teacher that it began with "
                    "in trainer_cfg.teacher, or start anew, trainer_cfg.restore_hint: 0"
                ) from error
            raise CheckpointError(
                f"{start.name} is damaged: {name}: {error or type(error).__name__}. Take an "
                "earlier one, trainer_cfg.restore_hint: <iteration>"
            ) from error
        cost.load_state_dict(state.get("cost"))
        if cost.macs is None:
            log.warning("%s does not say what its steps cost: training_macs stays out", start.name)


def _load(target: Any, saved: Mapping[str, Any]) -> None:
    """Load a saved state into an optimizer, a scheduler or the like.

    Raises:
        UserError: if a part is of another kind than in the target's own state, or, as others of
            UNREADABLE, from the target.
    """
    ours = target.state_dict()
    if isinstance(target, torch.optim.Optimizer):
        ours = {"param_groups": ours["param_groups"]}
    if fault := kind_fault(ours, saved):
        raise UserError(fault)
    if isinstance(target, torch.optim.lr_scheduler.LRScheduler):  # it sets all as attributes
        saved = {name: value for name, value in saved.items() if name in ours}
    target.load_state_dict(saved)
    if isinstance(target, torch.optim.Optimizer) and (fault := optimizer_fault(target)):
        raise UserError(fault)


def _restore_streams(saved: Mapping[str, Any]) -> None:
    """Restore the random streams; raises as `_load`."""
    if fault := kind_fault(random_state(), saved):
        raise UserError(fault)
    restore_random_state(saved)


def narrow_as(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Take the channels out of a network that are out of a checkpoint's, so that its weights fit.

    Args:
        state: the checkpoint's ``optimizer``.
        optimizer: of the network, which changes with it.

    Raises:
        CheckpointError: if channels cannot leave this network.
    """
    if not isinstance(optimizer, hesso.HESSO):
        return
    try:
        optimizer.narrow_as(state)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint does not fit the network: {error}") from error


def extra_state(
    record: Mapping[str, Any],
    scaler: torch.amp.GradScaler,
    window: LogWindow,
    cost: TrainingCost,
    teachers: Mapping[str, Teacher],
) -> dict[str, Any]:
    """Return a checkpoint's entries that OpenGait's do not have; every process must call this."""
    return {name: teacher.state_dict() for name, teacher in teachers.items()} | {
        "scaler": scaler.state_dict(),
        "window": window.state_dict(),
        "cost": cost.state_dict(),
        "random": distributed.gather(random_state()),
        "config": dict(record),
        "config_digest": digest(record),
    }


def has_complete_state_dict(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the state_dict holds all that the optimizer needs to continue."""
    return isinstance(optimizer, hesso.HESSO) or type(optimizer).__module__.startswith("torch.")


def set_aside(run: Run, stage: str) -> None:
    """Move an earlier run of a stage to ``runs/<run>/previous``; make the stage's new folder."""
    folder = run.folder(stage)
    if folder.exists():
        target = _previous(folder, stage)
        folder.rename(target)
        log.info("%s starts from the beginning; the earlier one is now %s", stage, target)
    make_stage_dir(run.name, stage)


def set_later_aside(run: Run, stage: str, iteration: int) -> None:
    """Move checkpoints after the iteration that a stage continues from to ``previous``."""
    folder = run.folder(stage)
    found = checkpoints(folder / "checkpoints", run.experiment.trainer_cfg.save_name)
    later = [path for number, path in found.items() if number > iteration]
    if later:
        target = _previous(folder, stage)
        target.mkdir()
        for path in later:
            path.rename(target / path.name)
        log.info(
            "%s continues from iteration %d; later checkpoints are now in %s",
            stage,
            iteration,
            target,
        )


def _previous(folder: Path, stage: str) -> Path:
    """Return an unused path in ``runs/<run>/previous`` for the folder of a stage."""
    target = folder.parent / "previous" / f"{stage}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    while target.exists():
        target = target.with_name(target.name + "+")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
