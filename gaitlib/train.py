"""One training loop. The optimizer decides what training means: SGD is dense, HESSO prunes."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from gaitlib.data.sampler import Batch

log = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message holds the iteration and every term."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the device: ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ValueError: if CUDA is asked for and absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none of auto, cpu, cuda, cuda:N") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ValueError(f"device {device!r} is not here ({count} GPUs): write 'auto' or 'cpu'")
    return chosen


def gradient_scaler(enable_float16: bool, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler for ``enable_float16``: switched off, with a warning, without a GPU."""
    if enable_float16 and device.type != "cuda":
        log.warning("enable_float16 needs a GPU: training in float32 on %s", device)
        enable_float16 = False
    return torch.amp.GradScaler(device.type, enabled=enable_float16)


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    transform: Callable[[Tensor, torch.Generator], Tensor],
    losses: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    *,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    fix_bn: bool = False,
    log_iter: int = 100,
    save_iter: int = 0,
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_save: Callable[[int], None] | None = None,
    total_iter: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train over ``batches`` once; return the history.

    Every random choice of iteration i follows from (seed, i): the batch by its sampler, the
    augmentation here. So a run that continues at iteration i sees what it would have seen.

    Args:
        model: its parameters' device is where training happens.
        batches: clips uint8 ``(N, T, H, W)`` and labels int64 ``(N,)``, each with its iteration.
        transform: uint8 clips and a CPU generator to float32 clips ``(N, T, H, W')``.
        losses: output and labels to (total loss, scalars to log).
        optimizer: stepped once a batch; if it has ``group_sparsity()``, that is logged.
        scheduler: stepped once a batch.
        seed: of the augmentation.
        scaler: of `gradient_scaler`; if enabled, the network runs under float16 autocast.
        fix_bn: keep BatchNorm's statistics as they are.
        log_iter: a row of history every so many iterations, means since the last row.
        save_iter: call ``on_save`` every so many iterations and at the end; 0 means the end alone.
        on_log: called with each row.
        on_save: called with the number of iterations done.
        total_iter: the last iteration, for the progress bar and the last save.
        progress: draw a bar.

    Returns:
        One row per logged step: ``iteration`` (done so far), ``total`` loss, the scalars, ``lr``,
        ``group_sparsity`` (when pruning), ``step_ms``.

    Raises:
        NonFiniteLossError: at once on a CPU; on a GPU at the next logged iteration, before
            anything is saved.
    """
    device = next(model.parameters()).device
    scaler = gradient_scaler(False, device) if scaler is None else scaler
    autocast = torch.autocast(device.type, torch.float16, enabled=scaler.is_enabled())
    generator = torch.Generator()
    rows: list[dict[str, float]] = []
    window = _Window()
    model.train()
    if fix_bn:
        _freeze_batchnorm(model)
    for batch in _with_bar(batches, total_iter, progress):
        generator.manual_seed((seed << 32) + batch.iteration)
        clips = transform(batch.clips.to(device, non_blocking=True), generator)
        labels = batch.labels.to(device, non_blocking=True)
        lengths = batch.seqL if batch.seqL is None else batch.seqL.to(device)
        with autocast:
            output = model(clips, lengths)
        total, scalars = losses(output, labels)
        done = batch.iteration + 1
        window.add(done, {"total": total.detach(), **scalars})
        if device.type == "cpu" and not total.isfinite():
            window.check()  # a GPU would have to be waited for: there it is seen once a row
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        lr = optimizer.param_groups[0]["lr"]
        taken = getattr(optimizer, "num_steps", None)
        scaler.step(optimizer)
        scaler.update()
        if hasattr(optimizer, "skip_step") and optimizer.num_steps == taken:
            optimizer.skip_step()  # overflow: keep the pruning schedule beside the learning rate's
        if scheduler is not None:
            scheduler.step()

        at_end = done == total_iter
        saves = at_end or (save_iter > 0 and done % save_iter == 0)
        if done % log_iter == 0 or saves:
            row = {"iteration": done, **window.close(), "lr": lr, "step_ms": window.step_ms}
            if hasattr(optimizer, "group_sparsity"):
                row["group_sparsity"] = float(optimizer.group_sparsity())
            rows.append(row)
            if on_log is not None:
                on_log(row)
        if saves and on_save is not None:
            on_save(done)
            model.train()
            if fix_bn:
                _freeze_batchnorm(model)
            window.restart_clock()
    return pd.DataFrame(rows)


class _Window:
    """The scalars since the last logged row: kept on the device, read back once a row."""

    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.values: list[dict[str, Tensor]] = []
        self.step_ms = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add(self, iteration: int, scalars: dict[str, Tensor]) -> None:
        self.iterations.append(iteration)
        self.values.append(scalars)

    def check(self) -> dict[str, float]:
        """Return the means; raise at the first loss that is not finite."""
        names = list(self.values[0])
        table = torch.stack([torch.stack([v[n].float() for n in names]) for v in self.values])
        table = table.cpu()  # (iterations, scalars): the one synchronisation
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
        self.step_ms = 1e3 * (time.perf_counter() - self.started) / len(self.values)
        self.iterations, self.values = [], []
        self.restart_clock()
        return means


def _freeze_batchnorm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _with_bar(batches: Iterable[Batch], total: int | None, progress: bool) -> Iterator[Batch]:
    bar = tqdm(batches, total=total, disable=not progress, unit="it", mininterval=1.0)
    yield from bar
