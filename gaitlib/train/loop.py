"""The training loop. With SGD it trains a dense network, with HESSO it also prunes."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from gaitlib.data.batches import Batch
from gaitlib.prune.hesso import HESSO
from gaitlib.system.signals import TrainingStopped
from gaitlib.train.training_state import TrainingState


@dataclass(eq=False)
class Report:
    """Whom the loop tells how far it is. This one keeps quiet; a caller overrides what it needs.

    Args:
        log_iter: iterations per row of history, which holds means since the last row.
        save_iter: iterations between saves; 0 saves only at the end.
        total_iter: the last iteration, which is saved; None if the batches say it.
        progress: draw a bar.
    """

    log_iter: int = 100
    save_iter: int = 0
    total_iter: int | None = None
    progress: bool = False

    def log(self, row: dict[str, float]) -> None:
        """Take a row of history."""

    def save(self, iteration: int) -> None:
        """Save the training after this iteration."""

    def stopping(self) -> int:
        """Return the signal that asks to stop, or 0; called after every iteration."""
        return 0

    def saves(self, iteration: int) -> bool:
        """Return whether the training is saved after this iteration."""
        due = self.save_iter > 0 and iteration % self.save_iter == 0
        return due or iteration == self.total_iter


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    transform: Callable[..., Tensor],
    losses: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    state: TrainingState | None = None,
    report: Report | None = None,
) -> pd.DataFrame:
    """Train over ``batches`` once; return the history.

    All random choices of iteration i depend on (seed, i) alone: the sampler draws the batch, this
    function the augmentation. So a run that continues at iteration i gets the same input as one
    that never stopped.

    Args:
        model: trained on the device of its parameters.
        batches: clips uint8 ``(N, T, H, W)`` and labels int64 ``(N,)``, each with its iteration.
        transform: maps uint8 clips and a CPU generator to float32 clips ``(N, T, H, W')``; it also
            takes the ``lengths`` of clips that are concatenated along frames.
        losses: maps output and labels to (total loss, scalars to log).
        optimizer: stepped once per batch.
        scheduler: stepped once per batch, also when the gradient scaler skips a step.
        state: seed, number format, teachers; by default seed 0 in float32 without a teacher.
        report: whom to tell; by default nobody.

    Returns:
        One row per logged step: ``iteration`` (done so far), ``total`` loss, the scalars, ``lr``,
        ``step_ms``, ``group_sparsity`` (when pruning), ``cost_share`` (with a budget),
        ``training_macs`` (if the state counts them: of all steps so far).

    Raises:
        NonFiniteLossError: at once on a CPU; on a GPU at the next row or save, before saving.
        TrainingStopped: if a signal asked to stop, after the training was saved.
    """
    state, report = state or TrainingState(), report or Report()
    generator = torch.Generator()
    rows: list[dict[str, float]] = []
    _train_mode(model, state.fix_bn)
    state.window.restart_clock()
    shown = {"total": report.total_iter, "disable": not report.progress, "mininterval": 1}
    for batch in tqdm(batches, unit="it", **shown):
        generator.manual_seed((state.seed << 32) + batch.iteration)
        total, scalars = _forward(model, batch, transform, losses, state, generator)
        done = batch.iteration + 1
        state.window.add(done, {"total": total.detach(), **scalars})
        if total.device.type == "cpu" and not total.isfinite():
            state.window.check()  # on a GPU this would wait for the device: once per row
        lr = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(total).backward()
        _step(optimizer, state.scaler, scheduler)

        stopping, saves = report.stopping(), report.saves(done)
        if done % report.log_iter == 0 or saves:
            row = {"iteration": done, **state.window.close(), "lr": lr}
            row |= {"step_ms": state.window.step_ms, **_pruning_row(optimizer)}
            if state.cost is not None:
                row["training_macs"] = state.cost.total()
            rows.append(row)
            report.log(row)
        if saves or stopping:
            state.window.check()
            report.save(done)
            _train_mode(model, state.fix_bn)
            state.window.restart_clock()
        if stopping:
            raise TrainingStopped(stopping, done)
    return pd.DataFrame(rows)


def _forward(
    model: nn.Module,
    batch: Batch,
    transform: Callable[..., Tensor],
    losses: nn.Module,
    state: TrainingState,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a batch's loss, and the scalars to log."""
    device = next(model.parameters()).device
    joined = {} if batch.seqL is None else {"lengths": batch.seqL}
    clips = transform(batch.clips.to(device, non_blocking=True), generator, **joined)
    labels = batch.labels.to(device, non_blocking=True)
    lengths = None if batch.seqL is None else batch.seqL.to(device)
    teachers = state.teachers.values()
    for teacher in teachers:
        teacher.begin_step()
    with state.precision.autocast():
        output = model(clips, lengths)
    if state.cost is not None:
        asked = [teacher.network for teacher in teachers if teacher.teaches]
        state.cost.add_step(len(labels), clips.shape[0] * clips.shape[1], asked)
    total, scalars = losses(output, labels)
    for teacher in teachers:
        autocast = state.precision.autocast()
        total, scalars = teacher.add_term(total, scalars, output, (clips, lengths), autocast)
    return total, scalars


def _step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> None:
    """Step, unless a gradient overflowed; schedules count the step all the same."""
    before = optimizer.num_steps if isinstance(optimizer, HESSO) else None
    scaler.step(optimizer)
    scaler.update()
    if isinstance(optimizer, HESSO) and optimizer.num_steps == before:
        optimizer.skip_step()
    if scheduler is None:
        return
    first = scheduler.last_epoch == 0  # torch warns if the scaler skips the first step
    with warnings.catch_warnings() if first else contextlib.nullcontext():
        if first:
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler.step()


def _pruning_row(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return how far an optimizer has pruned; empty for one that does not."""
    if not hasattr(optimizer, "group_sparsity"):  # `HESSO`, or only_train_once's own
        return {}
    row = {"group_sparsity": float(optimizer.group_sparsity())}
    share = optimizer.cost_share if isinstance(optimizer, HESSO) else None
    return row if share is None else row | {"cost_share": share}


def _train_mode(model: nn.Module, fix_bn: bool) -> None:
    """Let a model train; with ``fix_bn`` its batch norms keep their statistics."""
    model.train()
    for module in model.modules() if fix_bn else ():
        if isinstance(module, _BatchNorm):
            module.eval()
