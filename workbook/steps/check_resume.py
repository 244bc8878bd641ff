"""Prove that a killed run resumes exactly: kill one many times, compare it with one never killed.

Both runs train the baseline and the compressed network of an experiment, each in its own process.
One runs undisturbed. The other gets SIGKILL many times: between iterations, while a checkpoint is
written, before the first iteration and after the last. Each time it starts again with
``restore_hint: latest``. At the end all files of the two must be the same, bit for bit.
"""

import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from gaitlib.system.errors import UserError
from gaitlib.train.checkpoint import checkpoints, find_checkpoint, load_checkpoint
from workbook.config import ConfigError, Experiment, load_experiment
from workbook.runs import Run, run_dir, workspace
from workbook.steps.networks import require_compression
from workbook.steps.run_stage import run_stage
from workbook.steps.train_stage import Watch

log = logging.getLogger(__name__)

WHOLE, KILLED = "check-resume/whole", "check-resume/killed"
TIMING = {"latency_ms", "measured_dense_ms", "measured_ms", "step_ms", "training_seconds"}
STARTS = 20  # to hit one moment
PATIENCE = 120.0  # seconds a start may take to come to the moment where it is killed


class ResumeError(UserError):
    """A resumed run is not the run that was never killed; the message lists what differs."""


def check_resume(
    experiment: Experiment, kills: int, *, seed: int = 0, on_kill: Callable[[str], None] = log.info
) -> pd.DataFrame:
    """Run an experiment whole and killed, and compare; both are kept in ``runs/check-resume``.

    Args:
        experiment: with a compression section; one process on the CPU runs it.
        kills: how often the second run is killed, shared evenly by the two stages.
        seed: of both runs, and of the moments.
        on_kill: called with a line for each kill.

    Returns:
        A row for each kill: ``stage``, ``phase`` (``start``, ``dense``, ``before pruning``,
        ``inside pruning``, ``after pruning``, ``end``), ``iteration`` (done when killed),
        ``writing`` (whether a half-written checkpoint was left), ``resumes_at``.

    Raises:
        ConfigError: if the experiment has no compression or keeps no state to resume from.
        ResumeError: if the two differ.
    """
    if require_compression(experiment).implementation != "gaitlib":
        raise ConfigError("only gaitlib's own HESSO can be resumed: write implementation: gaitlib")
    values = experiment.sections()
    values["trainer_cfg"] |= {"restore_hint": "latest", "log_iter": 1}
    experiment = load_experiment(values)
    for name in (WHOLE, KILLED):
        shutil.rmtree(run_dir(name), ignore_errors=True)
    whole, killed = Run(WHOLE, experiment, seed), Run(KILLED, experiment, seed)
    checked = ("baseline", whole.compressing_stage)
    chance = random.Random(seed)
    rows = []
    for stage, share in zip(checked, (kills // 2, kills - kills // 2), strict=True):
        _Attempt(whole, stage).finish()
        total = whole.of_stage(stage).experiment.trainer_cfg.total_iter
        moments = sorted(chance.uniform(-0.05, 1.05) * total for _ in range(share))
        for number, moment in enumerate(moments):
            row = _kill(killed, stage, moment, at_save=number % 3 == 1, chance=chance)
            rows.append(row)
            on_kill(f"kill {len(rows)}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
        _Attempt(killed, stage).finish()
    differences = [d for stage in checked for d in compare_runs(whole, killed, stage)]
    if differences:
        raise ResumeError(
            f"after {kills} kills the resumed run differs:\n  " + "\n  ".join(differences)
        )
    return pd.DataFrame(rows)


def compare_runs(first: Run, second: Run, stage: str) -> list[str]:
    """Return what differs between two runs of a stage, timings aside; empty if nothing does."""
    folders = [run.folder(stage) for run in (first, second)]
    found = []
    for name in ("history.csv", "bits.csv", "hits.csv", "saliency.csv", "results.json"):
        texts = [_without_timing(folder / name) for folder in folders]
        found += _differences(*texts, f"{stage}/{name}")
    cfg = first.of_stage(stage).experiment.trainer_cfg
    paths = [find_checkpoint(f / "checkpoints", cfg.save_name, cfg.total_iter) for f in folders]
    found += _differences(*(_drop(load_checkpoint(p)) for p in paths), f"{stage}/checkpoint")
    if stage != "baseline":
        cut = [run.file(stage, "compressed/compressed_*.pt") for run in (first, second)]
        found += _differences(*map(load_checkpoint, cut), f"{stage}/compressed")
        packed = [run.network_file(stage).read_bytes() for run in (first, second)]
        found += _differences(*packed, f"{stage}/network file")
    return found


class _Attempt:
    """A process that runs a stage from its last checkpoint on, and tells how far it is."""

    def __init__(self, run: Run, stage: str) -> None:
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            # a start then costs no imports; torch imports _dynamo with the first optimizer
            context.set_forkserver_preload([__name__, "torch._dynamo"])
        self.done = context.Value("i", -1, lock=False)
        where = str(workspace())
        arguments = (run.experiment.sections(), where, run.name, stage, run.seed, self.done)
        self.process: BaseProcess = context.Process(target=_run, args=arguments)
        self.process.start()

    def finish(self) -> None:
        """Let it come to its end."""
        self.process.join()
        if self.process.exitcode:
            raise ResumeError(f"a start ended by itself with status {self.process.exitcode}")

    def wait_for(self, iteration: float) -> bool:
        """Wait until so many iterations are done; False as `wait_until`."""
        return self.wait_until(lambda: self.done.value >= iteration)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition`` holds; False if the process ended or took too long."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self.process.is_alive() or time.monotonic() > deadline:
                return False
            time.sleep(0.0002)
        return True


def _run(
    sections: Mapping[str, Any], folder: str, run: str, stage: str, seed: int, done: Any
) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    os.environ["GAITLIB_WORKSPACE"] = folder  # of this process, which is its own

    def tell(history: pd.DataFrame) -> None:
        done.value = int(history["iteration"].iloc[-1])

    run_stage(Run(run, load_experiment(sections), seed), stage, Watch(on_history=tell))


def _kill(
    run: Run, stage: str, moment: float, at_save: bool, chance: random.Random
) -> dict[str, Any]:
    """Start the run and kill it when ``moment`` iterations are done, or at the save after that."""
    experiment = run.of_stage(stage).experiment
    folder = run.folder(stage) / "checkpoints"
    total = experiment.trainer_cfg.total_iter
    for _ in range(STARTS):
        trained = _saved(experiment, folder) == total
        attempt = _Attempt(run, stage)
        if trained or moment < 0:  # nothing tells how far it is
            time.sleep(chance.uniform(0, 0.5))
            reached = True
        elif at_save:
            attempt.wait_for(min(moment, total - 1))
            reached = attempt.wait_until(lambda: _half_written(folder))
        else:
            reached = attempt.wait_for(min(moment, total))
            time.sleep(chance.uniform(0, 0.3 if moment > total else 0.02))
        iteration = total if trained else attempt.done.value
        attempt.process.kill()
        attempt.process.join()
        if attempt.process.exitcode == 1:
            raise ResumeError("a resumed start failed by itself; its traceback is above")
        if reached and attempt.process.exitcode != 0:  # it had not ended before
            return {
                "stage": stage,
                "phase": _phase(experiment, stage, iteration),
                "iteration": iteration,
                "writing": _half_written(folder),
                "resumes_at": _saved(experiment, folder),
            }
    raise ResumeError(f"{STARTS} starts of {stage} ended before they could be killed")


def _saved(experiment: Experiment, folder: Path) -> int:
    """Return the iteration of the last checkpoint, 0 without one."""
    return max(checkpoints(folder, experiment.trainer_cfg.save_name), default=0)


def _half_written(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(".*.part"))


def _phase(experiment: Experiment, stage: str, iteration: int) -> str:
    """Name the phase of a run in which ``iteration`` iterations are done."""
    if iteration < 0:
        return "start"
    if iteration >= experiment.trainer_cfg.total_iter:
        return "end"
    if stage == "baseline":
        return "dense"
    cfg = experiment.compression
    if iteration <= cfg.start_pruning_step:
        return "before pruning"
    inside = iteration < cfg.start_pruning_step + cfg.pruning_steps
    return "inside pruning" if inside else "after pruning"


def _without_timing(path: Path) -> Any:
    """Read a run's file without what the clock puts into it; None if it is not there."""
    if not path.is_file():
        return None
    if path.suffix == ".csv":
        table = pd.read_csv(io.StringIO(path.read_text()))
        return table.drop(columns=TIMING & set(table)).to_csv(index=False)
    return _drop(json.loads(path.read_text()))


def _drop(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop(v) for k, v in value.items() if k not in TIMING}
    return value


def _differences(first: Any, second: Any, where: str) -> list[str]:
    """Compare nested values and tensors exactly; return where they differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = [*first, *(key for key in second if key not in first)]
        pairs = [(first.get(key), second.get(key), f"{where}/{key}") for key in keys]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return [f"{where}: {len(first)} and {len(second)} entries"]
        pairs = [(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if _equal(first, second) else [f"{where}: other values"]
    else:
        return [] if first == second else [f"{where}: {str(first)[:60]} and {str(second)[:60]}"]
    return [found for pair in pairs for found in _differences(*pair)]


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal, NaN to NaN too."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(first.isclose(second, rtol=0, atol=0, equal_nan=True).all())
