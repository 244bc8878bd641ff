"""Train one stage and write its folder during training."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from gaitlib.data.batches import training_batches
from gaitlib.data.casia_b import DataSplit
from gaitlib.model import build_losses
from gaitlib.prune.hesso import HESSO
from gaitlib.quantize.geta import GETA
from gaitlib.system import distributed
from gaitlib.system.device import choose_precision
from gaitlib.system.files import write_atomically
from gaitlib.system.signals import deferred_signals
from gaitlib.train.checkpoint import CheckpointError, prune_checkpoints, save_checkpoint
from gaitlib.train.float_twin import FloatTwin
from gaitlib.train.gathered_loss import GatheredLoss
from gaitlib.train.history import History, read_rows, rows_to_continue
from gaitlib.train.loop import Report, fit
from gaitlib.train.resume import TEACHER, has_complete_state_dict, restore
from gaitlib.train.training_cost import TrainingCost
from gaitlib.train.training_state import TrainingState
from workbook import runs
from workbook.config import ConfigError
from workbook.runs import Run
from workbook.steps.budgets import write_budget
from workbook.steps.dataset import transform_of
from workbook.steps.finish_bits import check_judged, finish_bits
from workbook.steps.launch import train_in_processes
from workbook.steps.networks import load_teacher
from workbook.steps.results import evaluate_network
from workbook.steps.start_of_stage import (
    Start,
    check_same_run,
    find_start,
    run_record,
    set_aside,
    set_later_aside,
)
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
    if type(processes) is not int or processes < 1:
        raise ConfigError(f"processes is {processes!r}: write a whole number from 1")
    # GETA's yardstick is a stage of GETA's run, which keeps its own config.yaml
    of_run = stage != "hesso" or not run.experiment.quantizes
    whole, run = run, run.of_stage(stage)
    if processes > 1:
        options = {"force": force, "on_history": watch.on_history, "on_line": watch.on_line}
        train_in_processes(whole, stage, model, optimizer, processes, **options)
        return pd.DataFrame(read_rows(run.folder(stage) / "history.csv"))
    with run.locked(stage) as lock:
        job = _Job(run, stage, model, data, optimizer, watch, lock)
        job.start = _find_start(job, force)
        job.training = _training_state(job)
        _restore(job)
        _make_folder(job, of_run)
        history = _fit(job)
        _write_choices(job)
    return history


@dataclass
class _Job:
    """A stage in training, and what its steps share."""

    run: Run
    stage: str
    model: nn.Module
    data: DataSplit
    optimizer: torch.optim.Optimizer
    watch: Watch
    lock: Lock | None  # rank 0's
    start: Start = field(init=False)
    training: TrainingState = field(init=False)

    def __post_init__(self) -> None:
        experiment = self.run.experiment
        self.cfg = experiment.trainer_cfg
        self.record = run_record(self.run, self.data)
        self.device = next(self.model.parameters()).device
        self.scheduler = experiment.scheduler_cfg.build(self.optimizer, self.cfg.total_iter)

    @property
    def rounds(self) -> bool:
        """Whether the stage's network ends with bits."""
        return isinstance(self.optimizer, GETA)


def _find_start(job: _Job, force: bool) -> Start:
    """Return what the stage starts from, after a check that it is the same run."""
    start = find_start(job.run, job.stage)
    if start.continues:
        if not has_complete_state_dict(job.optimizer):
            raise CheckpointError(
                "only_train_once's own HESSO does not save which channels it has pruned, so a run "
                "with it cannot be resumed: start anew, or write implementation: gaitlib"
            )
        check_same_run(start, job.record, force)
    return start


def _training_state(job: _Job) -> TrainingState:
    """Return number format, teachers and counters of a training that has not begun."""
    cfg, twin = job.cfg, _float_twin(job)
    teacher = load_teacher(job.run, job.stage, job.model, job.record)
    teachers = {TEACHER: teacher, "float_twin": twin}
    return TrainingState(
        seed=job.run.seed,
        precision=choose_precision(cfg.enable_float16, cfg.amp_dtype, job.device),
        fix_bn=cfg.fix_BN,
        teachers={name: network for name, network in teachers.items() if network is not None},
        cost=TrainingCost(job.model),
    )


def _float_twin(job: _Job) -> FloatTwin | None:
    """Return what keeps the float network of a run's switch to bits; None if nothing reads it."""
    experiment, bits = job.run.experiment, job.run.experiment.float_first
    if bits is None or not (job.rounds and (bits.distillation or bits.keep_better)):
        return None
    if bits.keep_better:
        check_judged(job.run, job.data)
    return FloatTwin(job.model, bits.distillation, experiment.logit_scale)


def _restore(job: _Job) -> None:
    """Load what the stage starts from."""
    if job.start.state is None:
        return
    resets = {"optimizer": job.cfg.optimizer_reset, "scheduler": job.cfg.scheduler_reset}
    restore(
        job.start.state,
        job.model,
        job.optimizer,
        job.scheduler,
        job.training,
        continues=job.start.continues,
        strict=job.cfg.restore_ckpt_strict,
        reset=[name for name, is_reset in resets.items() if is_reset],
    )


def _make_folder(job: _Job, of_run: bool) -> None:
    """Move files of earlier starts aside, and write what this stage is."""
    if distributed.is_main():
        if job.start.continues:
            set_later_aside(job.run, job.stage, job.start.iteration)
        else:
            set_aside(job.run, job.stage)
    distributed.wait()  # until rank 0 has moved earlier files aside
    if distributed.is_main():
        runs.save_config(job.run.name, job.stage, job.record, of_run=of_run)


def _fit(job: _Job) -> pd.DataFrame:
    """Train to the end; return the history of the whole stage."""
    cfg, experiment = job.cfg, job.run.experiment
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batches = training_batches(
        job.data.train,
        cfg.sampler.build(),
        job.run.seed,
        range(job.start.iteration, cfg.total_iter),
        num_workers=experiment.data_cfg.num_workers,
        pin_memory=job.device.type == "cuda",
        **share,
    )
    losses = GatheredLoss(build_losses([term.model_dump() for term in experiment.loss_cfg]))
    optimizer, scheduler = job.optimizer, job.scheduler
    with deferred_signals() as signals, closing(_StageReport(job, signals)) as report:
        transform = partial(transform_of(cfg), **share)
        with distributed.data_parallel(job.model, cfg.sync_BN, cfg.find_unused_parameters) as net:
            fit(net, batches, transform, losses, optimizer, scheduler, job.training, report)
    return report.history.table()


def _write_choices(job: _Job) -> None:
    """Write which channels left, and why, and how the budget was met."""
    if isinstance(job.optimizer, HESSO) and distributed.is_main():
        folder = job.run.folder(job.stage)
        table = job.optimizer.importance()
        write_atomically(folder / "saliency.csv", table.to_csv(index=False))
        write_budget(job.optimizer, folder)


class _StageReport(Report):
    """Writes a stage's history.csv, bits.csv, checkpoints, TensorBoard file and log lines."""

    def __init__(self, job: _Job, signals: list[int]) -> None:
        cfg, progress = job.cfg, job.watch.progress and distributed.is_main()
        super().__init__(cfg.log_iter, cfg.save_iter, cfg.total_iter, progress)
        self.job, self.signals = job, signals
        self.folder, self.writes = job.run.folder(job.stage), distributed.is_main()
        self.history = self._history("history.csv")
        self.bits = self._history("bits.csv") if job.rounds else None
        self.board = None
        if self.writes:
            folder = str(self.folder / "tensorboard")
            self.board = SummaryWriter(folder, purge_step=job.start.iteration)

    def _history(self, name: str) -> History:
        path, start = self.folder / name, self.job.start
        rows = rows_to_continue(start.state, path) if start.continues else []
        return History(path, rows, self.writes)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self.board is not None:
            self.board.close()

    def stopping(self) -> int:
        """Return a signal that any process has received, or 0."""
        return distributed.largest(self.signals[0] if self.signals else 0)

    def log(self, row: dict[str, float]) -> None:
        """Write a row of history, and pass the history on to ``on_history``."""
        self.history.append(row)
        if not self.writes:
            return
        if self.bits is not None:
            self.bits.append({"iteration": row["iteration"]} | self.job.optimizer.bits_row())
        for name, value in row.items():
            self.board.add_scalar(name, value, int(row["iteration"]))
        terms = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "iteration")
        log.info("%s %s/%s: %s", self.job.stage, int(row["iteration"]), self.total_iter, terms)
        if self.job.watch.on_history is not None:
            self.job.watch.on_history(self.history.table())

    def save(self, iteration: int) -> None:
        """Write a checkpoint; finish bits after the last iteration, or test as ``with_test``."""
        job, ends = self.job, iteration == self.total_iter
        if ends and job.rounds:
            finish_bits(job.run, job.model, job.training.teachers.get("float_twin"), job.data)
        extra = job.training.state_dict() | {"config": job.record, "history": self._columns()}
        if job.lock is not None:
            job.lock.check()
            folder, name = self.folder / "checkpoints", job.cfg.save_name
            optimizer = job.optimizer if has_complete_state_dict(job.optimizer) else None
            save_checkpoint(folder, name, iteration, job.model, optimizer, job.scheduler, extra)
            prune_checkpoints(folder, name, job.cfg.keep_checkpoints)
        if job.cfg.with_test and not ends and iteration % self.save_iter == 0:
            _, evaluation = evaluate_network(job.run.experiment, job.model, job.data)
            self._log_rank1(evaluation.rank1, iteration)

    def _columns(self) -> dict[str, dict[str, Tensor]]:
        """Return the columns of each file by its stem, for a checkpoint."""
        files = [self.history] + ([self.bits] if self.bits is not None else [])
        return {file.path.stem: file.columns() for file in files}

    def _log_rank1(self, rank1: Mapping[str, float], iteration: int) -> None:
        if self.writes:
            for condition, value in rank1.items():
                self.board.add_scalar(f"rank1/{condition}", value, iteration)
            log.info("%s %s: rank-1 %s", self.job.stage, iteration, rank1)
