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

from gaitlib.data.casia_b import DataSplit
from gaitlib.system import distributed
from gaitlib.train.checkpoint import (
    CheckpointError,
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    refuse_narrow,
)
from workbook.config.run_changes import compare_records
from workbook.runs import Run, locate

log = logging.getLogger(__name__)


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


def set_aside(run: Run, stage: str) -> None:
    """Move an earlier run of a stage to ``runs/<run>/previous``; make the stage's new folder."""
    folder = run.folder(stage)
    if folder.exists():
        target = _previous(folder, stage)
        folder.rename(target)
        log.info("%s starts from the beginning; the earlier one is now %s", stage, target)
    folder.mkdir(parents=True)


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
