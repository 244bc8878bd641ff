"""The stages of a study: what notebooks 02, 03 and 05 and the command line do, step by step."""

import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from gaitlib import evaluate, profile, runs
from gaitlib.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from gaitlib.compress import hesso, oto, subnet
from gaitlib.config import ConfigError, HessoCfg, Study
from gaitlib.data.casia_b import SilhouetteDataset, load_split
from gaitlib.data.sampler import inference_batches, training_batches
from gaitlib.data.transforms import build_transform
from gaitlib.data.walker import make_walkers
from gaitlib.model import GaitBase, build_losses, build_model
from gaitlib.train import fit, gradient_scaler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyData:
    """The two halves of a data set.

    Attributes:
        name: what results.json calls it.
        train, test: sequences of disjoint subjects; ``train.labels`` are the classes.
    """

    name: str
    train: SilhouetteDataset
    test: SilhouetteDataset


def dataset_paths(study: Study, progress: bool = False) -> tuple[str, Path, Path]:
    """Return a data set's name, folder and partition file; walkers are made if need be.

    Relative paths start at the working folder, or else at the project's own.
    """
    cfg, walker = study.data_cfg, study.data_cfg.walker
    if walker is None:
        return cfg.dataset_name, _locate(cfg.dataset_root), _locate(cfg.dataset_partition)
    fewest, most = walker.frames
    name = f"walker-{walker.subjects}x{fewest}-{most}-seed{walker.seed}-noise{walker.noise:g}"
    root = (
        _locate(cfg.dataset_root)
        if cfg.dataset_root
        else (runs.DATA / f"{name}-train{walker.train}")
    )
    make_walkers(root, **walker.model_dump(), progress=progress)
    return name, root, _locate(cfg.dataset_partition or str(root / "partition.json"))


def _locate(path: str | None) -> Path:
    here = Path(path or "").expanduser()
    return here if here.is_absolute() or here.exists() else runs.ROOT / here


def open_data(study: Study, progress: bool = False) -> StudyData:
    """Read, check and count the sequences of a study.

    Raises:
        ConfigError: if the network's classes or the sampler do not fit the training subjects.
    """
    name, root, partition = dataset_paths(study, progress)
    train, test = (
        load_split(root, partition, split, cache=study.data_cfg.cache)
        for split in ("TRAIN_SET", "TEST_SET")
    )
    try:
        study.check_subjects(len(train.subjects))
        for section in (study.trainer_cfg, study.evaluator_cfg):
            _transform(section)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    return StudyData(name, train, test)


def _transform(section: Any) -> nn.Module:
    return build_transform([transform.model_dump() for transform in section.transform])


def build_network(study: Study, device: torch.device) -> GaitBase:
    """Build the dense network of a study; its weights come from torch's global generator."""
    return build_model(**study.model_cfg.build_arguments()).to(device)


def build_optimizer(
    study: Study, model: nn.Module, graph: oto.Graph | None = None
) -> torch.optim.Optimizer:
    """Return the dense optimizer, or the pruning one when a graph is given."""
    if graph is None:
        cfg = study.optimizer_cfg
        return getattr(torch.optim, cfg.solver)(model.parameters(), **cfg.arguments())
    cfg = study.compression
    arguments = cfg.model_dump(exclude={"implementation", "start_from"})
    if cfg.implementation == "only_train_once":
        return oto.package_hesso(graph, **arguments)
    return hesso.build_hesso(graph, arguments, total_steps=study.trainer_cfg.total_iter)


def start_weights(study: Study, run: str, model: nn.Module) -> str:
    """Give a GETA stage its first weights as ``start_from`` says; return what was done.

    Raises:
        MissingRunError: if it starts from a baseline that has not been trained.
    """
    restored, _ = _to_restore(study, run, "geta")
    if restored is not None:
        return f"restore_hint, {restored.name}"
    if study.compression.start_from == "scratch":
        return "random weights"
    cfg, folder = study.trainer_cfg, runs.stage_dir(run, "baseline") / "checkpoints"
    path = find_checkpoint(folder, cfg.save_name, "latest")
    if path is None:
        path = runs.stage_file(run, "baseline", f"checkpoints/{cfg.save_name}-*.pt")  # raises
    state = load_checkpoint(path)
    if state["iteration"] < cfg.total_iter:
        log.warning("%s is not finished: iteration %s", path.name, state["iteration"])
    restore_model(model, state["model"], cfg.restore_ckpt_strict)
    return f"the baseline's {path.name}"


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
    checkpoint, continues = _to_restore(study, run, stage)
    state = load_checkpoint(checkpoint) if checkpoint is not None else None
    if continues and not _keeps_its_state(optimizer):
        raise CheckpointError(
            "only_train_once's own HESSO does not save which groups it has pruned, so a run with "
            "it cannot be resumed: start anew, or write implementation: gaitlib"
        )
    if not continues:
        _set_aside(run, stage)
    folder = runs.stage_dir(run, stage)
    device = next(model.parameters()).device
    runs.save_config(run, stage, study.sections(), seed, str(device))

    scheduler = study.scheduler_cfg.build(optimizer, cfg.total_iter)
    scaler = gradient_scaler(cfg.enable_float16, device)
    start = 0
    if state is not None:
        _restore(study, state, model, optimizer, scheduler)
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
                optimizer if _keeps_its_state(optimizer) else None,
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
            _transform(cfg),
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


def _to_restore(study: Study, run: str, stage: str) -> tuple[Path | None, bool]:
    """Return the checkpoint that ``restore_hint`` names, and whether it continues this stage."""
    cfg = study.trainer_cfg
    hint, folder = cfg.restore_hint, runs.stage_dir(run, stage) / "checkpoints"
    if isinstance(hint, int) or hint == "latest":
        checkpoint = find_checkpoint(folder, cfg.save_name, hint)
        return checkpoint, checkpoint is not None
    return find_checkpoint(folder, cfg.save_name, str(_locate(hint))), False


def _restore(
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


def _keeps_its_state(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a state_dict holds all that the optimizer needs to go on."""
    return isinstance(optimizer, hesso.HESSO) or type(optimizer).__module__.startswith("torch.")


def _set_aside(run: str, stage: str) -> None:
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


def evaluate_network(
    study: Study, model: nn.Module, data: StudyData
) -> tuple[Tensor, evaluate.Evaluation]:
    """Embed the test set and rank it by the study's protocol.

    Returns:
        Embeddings float32 ``(n, C, P)`` in the order of ``data.test.table``, and the evaluation.
    """
    cfg, device = study.evaluator_cfg, next(model.parameters()).device
    batches = inference_batches(
        data.test,
        batch_size=cfg.sampler.batch_size,
        frames_all_limit=cfg.sampler.frames_all_limit,
        num_workers=study.data_cfg.num_workers,
        pin_memory=device.type == "cuda",
    )
    half = cfg.enable_float16 and device.type == "cuda"
    with torch.autocast(device.type, torch.float16, enabled=half):
        features = evaluate.embed(model, batches, _transform(cfg), device)
    evaluation = evaluate.evaluate_indoor(
        features.to(device),
        data.test.table,
        cfg.metric,
        cfg.cross_view_gallery,
        remove_no_gallery=study.data_cfg.remove_no_gallery,
    )
    return features, evaluation


def measure(model: GaitBase, file: Path | None = None) -> dict[str, Any]:
    """Return a network's costs under results.json's names.

    ``file_bytes`` is the size of ``file``, or of the network's saved state_dict.
    """
    if file is None:
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        size = buffer.getbuffer().nbytes
    else:
        size = file.stat().st_size
    return {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
        "file_bytes": size,
        "latency_ms": {
            f"batch_{n}": round(profile.measure_latency(model, batch=n, repeats=repeats), 2)
            for n, repeats in ((1, 20), (16, 5))
        },
    }


def record(
    study: Study,
    run: str,
    stage: str,
    data: StudyData,
    evaluation: evaluate.Evaluation,
    costs: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.json`` and ``hits.csv`` of a finished stage; return the results."""
    evaluate.write_hits(evaluation.hits, runs.stage_dir(run, stage) / "hits.csv")
    results = {
        "model": study.model_cfg.model,
        "dataset": data.name,
        "seed": seed,
        "iterations": study.trainer_cfg.total_iter,
        "device": str(device),
        "bits": {"weights": 32, "activations": 32},
        **evaluate.to_results(evaluation),
        **costs,
        **(extra or {}),
    }
    runs.save_results(run, stage, results)
    return runs.load_results(run, stage)


def compress_stage(study: Study, run: str, graph: oto.Graph, model: GaitBase) -> subnet.Compressed:
    """Cut the zeroed groups out of a trained network and write both into the GETA stage."""
    return subnet.construct_compressed_model(
        graph,
        model,
        runs.stage_dir(run, "geta") / "compressed",
        architecture=study.model_cfg.build_arguments(),
    )


def record_compressed(
    study: Study,
    run: str,
    data: StudyData,
    evaluation: evaluate.Evaluation,
    dense: GaitBase,
    compressed: subnet.Compressed,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Write the GETA stage's ``results.json``: the compressed network's, and the dense costs."""
    return record(
        study,
        run,
        "geta",
        data,
        evaluation,
        measure(compressed.model, compressed.path),
        seed=seed,
        device=device,
        extra={
            "dense": measure(dense),
            "group_sparsity": compressed.group_sparsity,
            "full_equals_compressed": compressed.max_error,
        },
    )


def require_compression(study: Study) -> HessoCfg:
    """Return the compression section.

    Raises:
        ConfigError: if the study has none.
    """
    if study.compression is None:
        raise ConfigError(
            "the study has no compression: add `compression_optimizer: hesso` and a "
            "hesso_optimizer_cfg section (params/quickstart.yaml shows one)"
        )
    return study.compression
