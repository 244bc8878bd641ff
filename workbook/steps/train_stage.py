"""Train one stage and write its folder during training."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from gaitlib.data.batches import training_batches
from gaitlib.data.casia_b import DataSplit
from gaitlib.model import build_losses
from gaitlib.prune import hesso
from gaitlib.quantize import geta
from gaitlib.system import distributed
from gaitlib.system.device import choose_precision
from gaitlib.system.files import write_atomically
from gaitlib.system.signals import deferred_signals
from gaitlib.train.checkpoint import CheckpointError, prune_checkpoints, save_checkpoint
from gaitlib.train.float_twin import FloatTwin
from gaitlib.train.gathered_loss import GatheredLoss
from gaitlib.train.history import History, read_rows, rows_to_continue
from gaitlib.train.loop import LogWindow, fit
from gaitlib.train.resume import (
    TEACHER,
    Start,
    check_same_run,
    extra_state,
    find_start,
    has_complete_state_dict,
    restore,
    run_record,
    set_aside,
    set_later_aside,
)
from gaitlib.train.training_cost import TrainingCost
from workbook import runs
from workbook.config import ConfigError
from workbook.runs import Run
from workbook.steps.budgets import write_budget
from workbook.steps.dataset import transform_of
from workbook.steps.finish_bits import check_judged, finish_bits
from workbook.steps.launch import train_in_processes
from workbook.steps.networks import load_teacher
from workbook.steps.results import evaluate_network
from workbook.system.lock import Lock

log = logging.getLogger(__name__)

OnHistory = Callable[[pd.DataFrame], None]


@dataclass(frozen=True)
class Watch:
    """Receivers of a training's progress.

    Attributes:
        on_history: called with the history so far after each logged step, for example to draw it.
        on_line: called with each line that the processes of a distributed job print.
        progress: draw a progress bar.
    """

    on_history: OnHistory | None = None
    on_line: Callable[[str], None] = log.info
    progress: bool = False


def train_stage(
    run: Run,
    stage: str,
    model: nn.Module,
    data: DataSplit,
    optimizer: torch.optim.Optimizer,
    watch: Watch = Watch(),  # noqa: B008 (frozen)
    *,
    processes: int = 1,
    force: bool = False,
) -> pd.DataFrame:
    """Train one stage from its start or a checkpoint, and write its folder during training.

    ``trainer_cfg.restore_hint``: 0 starts anew (an existing stage of this name is moved to
    ``runs/<run>/previous``); N or ``latest`` continues exactly from this stage's checkpoint; a path
    loads that file and starts at iteration 0, as OpenGait does.

    On SIGTERM or SIGINT it finishes the current iteration, writes a checkpoint, and stops.

    Args:
        run: gives the seed and the sections trainer_cfg, scheduler_cfg, loss_cfg and data_cfg.
        stage: a name of `workbook.runs.STAGES`.
        model: trained in place, on its parameters' device.
        data: the training half is used; the test half only with ``with_test``.
        optimizer: from `build_optimizer`.
        watch: receives the progress of training.
        processes: if more than one, torchrun starts this many processes, and this process only
            waits and loads the trained weights.
        force: resume even if the experiment differs from the checkpoint's.

    Returns:
        The history of the whole stage, as `gaitlib.train.loop.fit` describes it.

    Raises:
        ConfigError: if ``processes`` is not a whole number from 1.
        CheckpointError: if the checkpoint of ``restore_hint`` is missing, does not fit, or belongs
            to another run.
        NonFiniteLossError: as in `gaitlib.train.loop.fit`.
        TrainingStopped: by a signal, after the checkpoint is written.
        ProcessesFailedError: if one of several processes failed.
        LockedError: if another process writes this stage.
    """
    whole, run = run, run.of_stage(stage)
    if type(processes) is not int or processes < 1:
        raise ConfigError(f"processes is {processes!r}: write a whole number from 1")
    if processes > 1:
        train_in_processes(
            whole,
            stage,
            model,
            optimizer,
            processes,
            force=force,
            on_history=watch.on_history,
            on_line=watch.on_line,
        )
        return pd.DataFrame(read_rows(run.folder(stage) / "history.csv"))

    with run.locked(stage) as lock:
        return _train(whole, run, stage, model, data, optimizer, watch, lock, force)


def _train(
    whole: Run,
    run: Run,
    stage: str,
    model: nn.Module,
    data: DataSplit,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
    lock: Lock | None,
    force: bool,
) -> pd.DataFrame:
    """Train in this process, as `train_stage` describes it; the lock is rank 0's."""
    experiment, cfg = run.experiment, run.experiment.trainer_cfg
    start = find_start(run, stage)
    record = run_record(run, data)
    if start.continues:
        if not has_complete_state_dict(optimizer):
            raise CheckpointError(
                "only_train_once's own HESSO does not save which channels it has pruned, so a run "
                "with it cannot be resumed: start anew, or write implementation: gaitlib"
            )
        check_same_run(start, record, force)
    device = next(model.parameters()).device
    scheduler = experiment.scheduler_cfg.build(optimizer, cfg.total_iter)
    precision = choose_precision(cfg.enable_float16, cfg.amp_dtype, device)
    scaler, window, cost = precision.scaler(), LogWindow(), TrainingCost(model)
    twin = _float_twin(run, model, optimizer, data)
    teachers = {TEACHER: load_teacher(run, stage, model, record), "float_twin": twin}
    teachers = {name: teacher for name, teacher in teachers.items() if teacher is not None}
    restore(experiment, start, model, optimizer, scheduler, scaler, window, cost, teachers)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batches = training_batches(
        data.train,
        **cfg.sampler.model_dump(exclude={"type"}),
        seed=run.seed,
        start=start.iteration,
        stop=cfg.total_iter,
        num_workers=experiment.data_cfg.num_workers,
        pin_memory=device.type == "cuda",
        **share,
    )
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])

    if distributed.is_main():
        if start.continues:
            set_later_aside(run, stage, start.iteration)
        else:
            set_aside(run, stage)
    distributed.wait()  # until rank 0 has moved earlier files aside
    folder = run.folder(stage)
    if distributed.is_main():
        of_run = stage != "hesso" or not whole.experiment.quantizes  # else it is GETA's yardstick
        runs.save_config(run.name, stage, record, of_run=of_run)
    stage_log = _StageLog(folder, stage, optimizer, start, cfg.total_iter, watch.on_history)
    with stage_log, deferred_signals() as signals:

        def should_stop() -> int:
            return distributed.largest(signals[0] if signals else 0)

        def on_save(iteration: int) -> None:
            if iteration == cfg.total_iter and _rounds(optimizer):
                finish_bits(run, model, twin, data)
            extra = extra_state(record, scaler, window, cost, teachers)
            if lock is not None:
                lock.check()
                save_checkpoint(
                    folder / "checkpoints",
                    cfg.save_name,
                    iteration,
                    model,
                    optimizer if has_complete_state_dict(optimizer) else None,
                    scheduler,
                    extra=extra | {"history": stage_log.columns()},
                )
                prune_checkpoints(folder / "checkpoints", cfg.save_name, cfg.keep_checkpoints)
            if cfg.with_test and iteration % cfg.save_iter == 0 and iteration < cfg.total_iter:
                _, evaluation = evaluate_network(experiment, model, data)
                stage_log.log_rank1(evaluation.rank1, iteration)

        with distributed.data_parallel(model, cfg.sync_BN, cfg.find_unused_parameters) as network:
            fit(
                network,
                batches,
                partial(transform_of(cfg), **share),
                GatheredLoss(losses),
                optimizer,
                scheduler,
                seed=run.seed,
                precision=precision,
                scaler=scaler,
                window=window,
                cost=cost,
                teachers=list(teachers.values()),
                fix_bn=cfg.fix_BN,
                log_iter=cfg.log_iter,
                save_iter=cfg.save_iter,
                on_log=stage_log.log_row,
                on_save=on_save,
                should_stop=should_stop,
                total_iter=cfg.total_iter,
                progress=watch.progress and distributed.is_main(),
            )
    if isinstance(optimizer, hesso.HESSO) and distributed.is_main():
        write_atomically(folder / "saliency.csv", optimizer.importance().to_csv(index=False))
        write_budget(optimizer, folder)
    return stage_log.history.table()


def _rounds(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the stage's network ends with bits."""
    return isinstance(optimizer, geta.GETA)


def _float_twin(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, data: DataSplit
) -> FloatTwin | None:
    """Return what keeps the float network of a run's switch to bits; None if nothing reads it."""
    bits = run.experiment.float_first
    if bits is None or not (_rounds(optimizer) and (bits.distillation or bits.keep_better)):
        return None
    if bits.keep_better:
        check_judged(run, data)
    return FloatTwin(model, bits.distillation, run.experiment.logit_scale)


class _StageLog:
    """Writes a stage's history.csv, bits.csv, TensorBoard file and log lines, on rank 0 only."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        optimizer: torch.optim.Optimizer,
        start: Start,
        total: int,
        on_history: OnHistory | None,
    ) -> None:
        self.stage, self.optimizer, self.total = stage, optimizer, total
        self.on_history = on_history
        self.writes = distributed.is_main()

        def history(name: str) -> History:
            path = folder / name
            rows = rows_to_continue(start.state, path) if start.continues else []
            return History(path, rows, self.writes)

        self.history, self.bits = history("history.csv"), None
        if _rounds(optimizer):
            self.bits = history("bits.csv")
        self.board = None
        if self.writes:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start.iteration)

    def __enter__(self) -> "_StageLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.board is not None:
            self.board.close()

    def columns(self) -> dict[str, dict[str, Tensor]]:
        """Return the columns of each file by its stem, for a checkpoint."""
        files = [self.history] + ([self.bits] if self.bits is not None else [])
        return {file.path.stem: file.columns() for file in files}

    def log_row(self, row: dict[str, float]) -> None:
        """Write a row of history, and pass the history on to ``on_history``."""
        self.history.append(row)
        if not self.writes:
            return
        if self.bits is not None:
            self.bits.append({"iteration": row["iteration"]} | self.optimizer.bits_row())
        for name, value in row.items():
            self.board.add_scalar(name, value, int(row["iteration"]))
        terms = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "iteration")
        log.info("%s %s/%s: %s", self.stage, int(row["iteration"]), self.total, terms)
        if self.on_history is not None:
            self.on_history(self.history.table())

    def log_rank1(self, rank1: Mapping[str, float], iteration: int) -> None:
        """Write the accuracies of a test during training."""
        if self.writes:
            for condition, value in rank1.items():
                self.board.add_scalar(f"rank1/{condition}", value, iteration)
            log.info("%s %s: rank-1 %s", self.stage, iteration, rank1)
