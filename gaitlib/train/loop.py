"""The training loop. With SGD it trains a dense network, with HESSO it also prunes."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from gaitlib.data.batches import Batch
from gaitlib.system.device import Precision
from gaitlib.system.errors import UserError
from gaitlib.system.signals import TrainingStopped
from gaitlib.train.teacher import Teacher
from gaitlib.train.training_cost import TrainingCost


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message gives the iteration and every term."""


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    transform: Callable[[Tensor, torch.Generator], Tensor],
    losses: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    *,
    seed: int = 0,
    precision: Precision | None = None,
    scaler: torch.amp.GradScaler | None = None,
    window: "LogWindow | None" = None,
    cost: TrainingCost | None = None,
    teachers: Sequence[Teacher] = (),
    fix_bn: bool = False,
    log_iter: int = 100,
    save_iter: int = 0,
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_save: Callable[[int], None] | None = None,
    should_stop: Callable[[], int] | None = None,
    total_iter: int | None = None,
    progress: bool = False,
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
        optimizer: stepped once per batch. If it has ``group_sparsity()`` or ``cost_share``, that is
            logged. If it has ``skip_step()``, that is called when the scaler skips a step.
        scheduler: stepped once per batch, also when the scaler skips a step.
        seed: of the augmentation.
        precision: the number format of the network's forward; float32 if None.
        scaler: for ``precision``; a new one if None.
        window: the scalars since the last row of history; an empty one if None.
        cost: counts the multiply-adds of the steps.
        teachers: networks whose logits it also learns.
        fix_bn: do not update the statistics of batch norms.
        log_iter: iterations per row of history, which holds means since the last row.
        save_iter: iterations between calls of ``on_save``, which is also called at the end; 0 calls
            it only at the end.
        on_log: called with each row.
        on_save: called with the number of iterations done.
        should_stop: called after every iteration; returns the signal that asks to stop, or 0.
        total_iter: the last iteration, for the progress bar and the last save.
        progress: draw a bar.

    Returns:
        One row per logged step: ``iteration`` (done so far), ``total`` loss, the scalars, ``lr``,
        ``group_sparsity`` (when pruning), ``cost_share`` (with a budget), ``training_macs`` (with
        ``cost``: of all steps so far), ``step_ms``.

    Raises:
        NonFiniteLossError: at once on a CPU; on a GPU at the next row or save, before saving.
        TrainingStopped: if a signal asked to stop, after a call of ``on_save``.
    """
    device = next(model.parameters()).device
    precision = Precision(device) if precision is None else precision
    scaler = precision.scaler() if scaler is None else scaler
    window = LogWindow() if window is None else window
    generator = torch.Generator()
    rows: list[dict[str, float]] = []

    def train_mode() -> None:
        model.train()
        if fix_bn:
            _freeze_batchnorm(model)

    first_step = True
    train_mode()
    window.restart_clock()
    for batch in _with_bar(batches, total_iter, progress):
        generator.manual_seed((seed << 32) + batch.iteration)
        joined = {} if batch.seqL is None else {"lengths": batch.seqL}
        clips = transform(batch.clips.to(device, non_blocking=True), generator, **joined)
        labels = batch.labels.to(device, non_blocking=True)
        lengths = batch.seqL if batch.seqL is None else batch.seqL.to(device)
        for teacher in teachers:
            teacher.begin_step()
        with precision.autocast():
            output = model(clips, lengths)
        if cost is not None:
            asked = [teacher.network for teacher in teachers if teacher.teaches]
            cost.add_step(len(labels), clips.shape[0] * clips.shape[1], asked)
        total, scalars = losses(output, labels)
        for teacher in teachers:
            inputs = (clips, lengths)
            total, scalars = teacher.add_term(total, scalars, output, inputs, precision.autocast())
        done = batch.iteration + 1
        window.add(done, {"total": total.detach(), **scalars})
        if device.type == "cpu" and not total.isfinite():
            window.check()  # on a GPU this would wait for the device: it is checked once per row
        lr = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        _step(optimizer, scaler)
        if scheduler is not None:
            with _no_warning_if_scaler_skipped() if first_step else contextlib.nullcontext():
                scheduler.step()
        first_step = False

        stopping = 0 if should_stop is None else should_stop()
        saves = done == total_iter or (save_iter > 0 and done % save_iter == 0)
        if done % log_iter == 0 or saves:
            row = {"iteration": done, **window.close(), "lr": lr, "step_ms": window.step_ms}
            if hasattr(optimizer, "group_sparsity"):
                row["group_sparsity"] = float(optimizer.group_sparsity())
            if getattr(optimizer, "cost_share", None) is not None:
                row["cost_share"] = optimizer.cost_share
            if cost is not None and (macs := cost.total()) is not None:
                row["training_macs"] = macs
            rows.append(row)
            if on_log is not None:
                on_log(row)
        if (saves or stopping) and on_save is not None:
            window.check()
            on_save(done)
            train_mode()
            window.restart_clock()
        if stopping:
            raise TrainingStopped(stopping, done)
    return pd.DataFrame(rows)


def _step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Step, unless a gradient overflowed; then let a pruning schedule count the skipped step."""
    before = getattr(optimizer, "num_steps", None)
    scaler.step(optimizer)
    scaler.update()
    if hasattr(optimizer, "skip_step") and optimizer.num_steps == before:
        optimizer.skip_step()


@contextlib.contextmanager
def _no_warning_if_scaler_skipped() -> Iterator[None]:
    """Hide torch's warning that the scheduler steps first.

    The scaler may skip the optimizer's first step, and the schedule counts that step nevertheless.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        yield


class LogWindow:
    """The scalars since the last logged row: kept on the device, read back once per row."""

    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.values: list[dict[str, Tensor]] = []
        self.step_ms = 0.0
        self.seconds_before = 0.0  # of steps before a resumption inside the window
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the clock of ``step_ms``, to exclude the time of saving and testing."""
        self.started = time.perf_counter()

    def add(self, iteration: int, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one iteration; the first is the total loss."""
        self.iterations.append(iteration)
        self.values.append(scalars)

    def check(self) -> dict[str, float]:
        """Return the means so far.

        Raises:
            NonFiniteLossError: if a loss is not finite; the message is about the first.
        """
        if not self.values:
            return {}
        names, table = self._table()
        finite = table[:, 0].isfinite()
        if not finite.all():
            first = int((~finite).nonzero()[0])
            terms = ", ".join(f"{n} {v:g}" for n, v in zip(names, table[first], strict=True))
            raise NonFiniteLossError(
                f"the loss is not finite at iteration {self.iterations[first]}: {terms}. "
                "Lower the learning rate, or look at the batch's data"
            )
        return dict(zip(names, table.double().mean(0).tolist(), strict=True))

    def close(self) -> dict[str, float]:
        """Return the means and start the next window."""
        means = self.check()
        self.step_ms = 1e3 * self._seconds() / len(self.values)
        self.iterations, self.values, self.seconds_before = [], [], 0.0
        self.restart_clock()
        return means

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the window as plain values and one tensor."""
        if not self.values:
            return {"iterations": [], "names": [], "table": torch.empty(0), "seconds": 0.0}
        names, table = self._table()
        window = {"iterations": list(self.iterations), "names": names, "table": table}
        return window | {"seconds": self._seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved window."""
        self.seconds_before = state.get("seconds", 0.0)  # earlier versions saved none
        self.iterations = list(state["iterations"])
        names = state["names"]
        self.values = [dict(zip(names, row, strict=True)) for row in state["table"]]

    def _table(self) -> tuple[list[str], Tensor]:
        """Return the scalars' names and their float32 values ``(iterations, scalars)``."""
        names = list(self.values[0])
        rows = [torch.stack([v[n].float() for n in names]).cpu() for v in self.values]
        return names, torch.stack(rows)


def _freeze_batchnorm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _with_bar(batches: Iterable[Batch], total: int | None, progress: bool) -> Iterator[Batch]:
    bar = tqdm(batches, total=total, disable=not progress, unit="it", mininterval=1.0)
    yield from bar
