"""Train one stage and write its folder as it goes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from gaitlib import runs
from gaitlib.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gaitlib.compress import hesso
from gaitlib.config import Study
from gaitlib.data.sampler import training_batches
from gaitlib.model import build_losses
from gaitlib.stages.data import StudyData, transform_of
from gaitlib.stages.results import evaluate_network
from gaitlib.stages.resume import keeps_its_state, restore, set_aside, to_restore
from gaitlib.train import fit, gradient_scaler

log = logging.getLogger(__name__)


def train_stage(
    study: Study,
    run: str,
    stage: str,
    model: nn.Module,
    data: StudyData,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int,
    on_history: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train one stage from its start or its checkpoint, writing the stage's folder as it goes.

    ``trainer_cfg.restore_hint``: 0 starts anew (an earlier stage of that name is moved to
    ``runs/<run>/previous``), N or ``latest`` continues this stage's checkpoint exactly, a path
    loads that file and starts at iteration 0, as OpenGait does.

    Args:
        study: sections trainer_cfg, scheduler_cfg, loss_cfg and data_cfg are used.
        run: folder below runs/.
        stage: ``baseline`` or ``geta``.
        model: trained in place, on its parameters' device.
        data: the training half is used; the test half with ``with_test``.
        optimizer: of `build_optimizer`.
        seed: of batches and augmentation.
        on_history: called with the history so far after each logged step, to draw it.
        progress: draw a bar.

    Returns:
        The history of the whole stage, as `gaitlib.train.fit` describes it.

    Raises:
        CheckpointError: if what ``restore_hint`` names is not there or does not fit.
        NonFiniteLossError: as `gaitlib.train.fit`.
    """
    cfg = study.trainer_cfg
    checkpoint, continues = to_restore(study, run, stage)
    state = load_checkpoint(checkpoint) if checkpoint is not None else None
    if continues and not keeps_its_state(optimizer):
        raise CheckpointError(
            "only_train_once's own HESSO does not save which groups it has pruned, so a run with "
            "it cannot be resumed: start anew, or write implementation: gaitlib"
        )
    if not continues:
        set_aside(run, stage)
    folder = runs.stage_dir(run, stage)
    device = next(model.parameters()).device
    runs.save_config(run, stage, study.sections(), seed, str(device))

    scheduler = study.scheduler_cfg.build(optimizer, cfg.total_iter)
    scaler = gradient_scaler(cfg.enable_float16, device)
    start = 0
    if state is not None:
        restore(study, state, model, optimizer, scheduler)
        if continues:
            start = int(state["iteration"])
            if state.get("scaler"):
                scaler.load_state_dict(state["scaler"])
    history = _History(folder / "history.csv", start)
    sampler = cfg.sampler
    batches = training_batches(
        data.train,
        **sampler.model_dump(exclude={"type"}),
        seed=seed,
        start=start,
        stop=cfg.total_iter,
        num_workers=study.data_cfg.num_workers,
        pin_memory=device.type == "cuda",
    )
    losses = build_losses([term.model_dump() for term in study.loss_cfg])

    with SummaryWriter(str(folder / "tensorboard"), purge_step=start) as board:

        def on_log(row: dict[str, float]) -> None:
            history.append(row)
            for name, value in row.items():
                board.add_scalar(name, value, int(row["iteration"]))
            terms = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "iteration")
            log.info("%s %s/%s: %s", stage, int(row["iteration"]), cfg.total_iter, terms)
            if on_history is not None:
                on_history(history.table())

        def on_save(iteration: int) -> None:
            save_checkpoint(
                folder / "checkpoints",
                cfg.save_name,
                iteration,
                model,
                optimizer if keeps_its_state(optimizer) else None,
                scheduler,
                extra={"scaler": scaler.state_dict()},
            )
            if cfg.with_test and iteration < cfg.total_iter:
                _, evaluation = evaluate_network(study, model, data)
                for condition, value in evaluation.rank1.items():
                    board.add_scalar(f"rank1/{condition}", value, iteration)
                log.info("%s %s: rank-1 %s", stage, iteration, evaluation.rank1)

        fit(
            model,
            batches,
            transform_of(cfg),
            losses,
            optimizer,
            scheduler,
            seed=seed,
            scaler=scaler,
            fix_bn=cfg.fix_BN,
            log_iter=cfg.log_iter,
            save_iter=cfg.save_iter,
            on_log=on_log,
            on_save=on_save,
            total_iter=cfg.total_iter,
            progress=progress,
        )
    if isinstance(optimizer, hesso.HESSO):
        runs.write_atomically(folder / "saliency.csv", optimizer.importance().to_csv(index=False))
    return history.table()


class _History:
    """``history.csv``: a row per logged step, cut back to the iteration that a run resumes at."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if start and path.exists():
            kept = pd.read_csv(path)
            self.rows = kept[kept["iteration"] <= start].to_dict("records")
        runs.write_atomically(path, self.table().to_csv(index=False) if self.rows else "")

    def append(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))
        with self.path.open("a") as stream:
            pd.DataFrame([row]).to_csv(stream, header=stream.tell() == 0, index=False)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)
