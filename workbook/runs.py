"""Folders of the workspace, runs and their stages, and the files that a stage keeps there.

A run is a folder ``runs/<run>/``. A stage is a folder in it, named after what makes its network.
Later notebooks read everything from these files, never from a kernel's memory.
"""

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from gaitlib.system import distributed
from gaitlib.system.errors import UserError
from gaitlib.system.files import read_json, write_atomically
from workbook.config import Experiment, at_equal_compute
from workbook.system.folders import ROOT, name_fault
from workbook.system.lock import Lock, locked

SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        words: the name of its network in tables and figures.
        notebook: the notebook that makes it; empty for a stage that only studies make.
    """

    words: str
    notebook: str = ""


#: By folder name, in the order of tables and figures.
STAGES = {
    "baseline": Stage("dense", "02_baseline_train.ipynb"),
    "hesso": Stage("HESSO", "03_geta_train.ipynb"),
    "ptq": Stage("HESSO + rounding (PTQ)", "03_geta_train.ipynb"),
    "torch_pruning": Stage("torch-pruning"),
    "geta": Stage("GETA", "03_geta_train.ipynb"),
}
#: A stage's compressed network, below its folder.
NETWORK_FILE = "compressed/compressed_*.safetensors"
#: Names that a folder of a run has, so that no run inside of it can have them.
FOLDERS_OF_A_RUN = {*STAGES, "previous", "notebooks"}


class MissingRunError(UserError):
    """A file of an earlier stage is missing; the message names the notebook to run first."""


def workspace() -> Path:
    """Return the folder of runs, figures and data: GAITLIB_WORKSPACE, or the project's folder."""
    return Path(os.environ.get("GAITLIB_WORKSPACE") or ROOT).resolve()


def runs_folder() -> Path:
    """Return the folder of all runs."""
    return workspace() / "runs"


def figures_folder() -> Path:
    """Return the folder of all figures."""
    return workspace() / "figures"


def data_folder() -> Path:
    """Return the folder of the data sets that the project generates."""
    return workspace() / "data"


def locate(path: str | None) -> Path:
    """Return a path; a relative one that does not exist here starts at the project's folder."""
    here = Path(path or "").expanduser()
    return here if here.is_absolute() or here.exists() else ROOT / here


def run_dir(run: str) -> Path:
    """Return the folder of a run, which may not exist yet.

    Args:
        run: a name, or ``<study>/<point>``.

    Raises:
        UserError: if that is no name of a folder, or is inside of another run's stage.
    """
    if not isinstance(run, str):
        raise UserError(f"run is {run!r}, not text: quote it; in papermill, write -r run {run}")
    study, *inner = run.split("/")
    faults = [name_fault(name) for name in (study, *inner)]
    faults += [f"{n!r} is a folder of runs/{study}" for n in inner if n in FOLDERS_OF_A_RUN]
    if fault := next(filter(None, faults), ""):
        raise UserError(f"run {run!r} is not a folder name below runs/: {fault}; use letters")
    return runs_folder().joinpath(study, *inner)


def stage_dir(run: str, stage: str) -> Path:
    """Return the folder of a stage: ``runs/<run>/<stage>``, which may not exist yet.

    Raises:
        UserError: if the stage is unknown, or as `run_dir`.
    """
    if stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}; choose from {sorted(STAGES)}")
    return run_dir(run) / stage


def save_results(run: str, stage: str, results: Mapping[str, Any]) -> Path:
    """Write ``<stage>/results.json`` with sorted keys, six-digit floats and a schema version."""
    record = _stable({"schema": SCHEMA, "stage": stage, **results})
    text = json.dumps(record, indent=1, sort_keys=True)
    return write_atomically(stage_dir(run, stage) / "results.json", text + "\n")


def _stable(value: Any) -> Any:
    """Round floats to 6 significant digits and turn NaN to None: equal runs give equal files."""
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def stage_file(run: str, stage: str, pattern: str) -> Path:
    """Return the newest file of a stage that matches a pattern; file names contain their time.

    Args:
        run: folder below runs/.
        stage: a name of STAGES.
        pattern: a glob in the stage's folder.

    Raises:
        MissingRunError: if no file matches; the message names the notebook that writes it.
    """
    if found := sorted(stage_dir(run, stage).glob(pattern)):
        return found[-1]
    notebook = STAGES[stage].notebook
    advice = "finish its study first"
    if notebook:
        advice = f"run notebooks/{notebook} with run={run!r} first"
    raise MissingRunError(f"runs/{run}/{stage}/{pattern} is not there: {advice}")


def config_file(run: str, stage: str) -> Path:
    """Return the config.yaml of a stage; ``ptq`` rounds HESSO's network and has HESSO's.

    Raises:
        MissingRunError: if the stage has not been trained.
        UserError: if it is unknown.
    """
    stage_dir(run, stage)  # raises
    return stage_file(run, "hesso" if stage == "ptq" else stage, "config.yaml")


def load_results(run: str, stage: str) -> dict[str, Any]:
    """Read a stage's results.json.

    Raises:
        MissingRunError: if the stage has not finished.
        UserError: if the file is damaged, or has another schema version.
    """
    path = stage_file(run, stage, "results.json")
    again = "run the stage with trainer_cfg.restore_hint: latest, which writes it anew"
    try:
        results = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}: {again}") from error
    if not isinstance(results, dict):
        raise UserError(f"{path} holds {type(results).__name__}, not results: {again}")
    if results.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {results.get('schema')}, this program reads {SCHEMA}")
    return results


def finished(run: str) -> list[str]:
    """Return the stages of a run that have a results.json, in the order of STAGES."""
    return [stage for stage in STAGES if (stage_dir(run, stage) / "results.json").exists()]


def save_config(run: str, stage: str, record: Mapping[str, Any], *, of_run: bool = True) -> Path:
    """Write config.yaml, which repeats a stage: ``record`` and the packages' versions.

    Args:
        run: folder below runs/.
        stage: a name of STAGES.
        record: resolved sections, seed, device and so on, as plain values.
        of_run: also write ``runs/<run>/config.yaml``, which belongs to the stage begun last.

    Returns:
        The path of the last file written.
    """
    packages = ("torch", "only_train_once", "numpy", "opencv-python-headless", "gaitlib")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    text = yaml.safe_dump({**record, "versions": versions}, sort_keys=False)
    path = write_atomically(stage_dir(run, stage) / "config.yaml", text)
    return write_atomically(run_dir(run) / "config.yaml", text) if of_run else path


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        name: folder below runs/.
        experiment: the sections that it runs.
        seed: of weights, batches and augmentation.
        device: where this process computes.

    Raises:
        UserError: for a name as `run_dir`, or a seed that is not a whole number from 0.
    """

    name: str
    experiment: Experiment
    seed: int = 0
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        run_dir(self.name)  # raises
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise UserError(f"seed is {self.seed!r}: write a whole number from 0 to 2147483647")

    @property
    def compressing_stage(self) -> str:
        """The stage that compresses: ``geta`` if the experiment chooses bits, else ``hesso``."""
        return "geta" if self.experiment.quantizes else "hesso"

    def of_stage(self, stage: str) -> "Run":
        """Return the run with the stage's experiment, which has all of the stage's steps.

        For ``hesso`` it chooses no bits; see `workbook.config.at_equal_compute` for the steps.
        """
        if stage not in ("hesso", "geta"):
            return self
        chosen = self.experiment.without_bits() if stage == "hesso" else self.experiment
        return replace(self, experiment=at_equal_compute(chosen))

    def folder(self, stage: str) -> Path:
        """Return the stage's folder; see `stage_dir`."""
        return stage_dir(self.name, stage)

    @contextlib.contextmanager
    def locked(self, stage: str) -> Iterator[Lock | None]:
        """Let no other process write the stage in the block; of several ranks, 0 holds the lock.

        Raises:
            LockedError: if another process writes it.
        """
        if not distributed.is_main():
            yield None
            return
        path = run_dir(self.name) / f".{stage}.lock"
        with locked(path, f"runs/{self.name}/{stage}") as lock:
            yield lock

    def file(self, stage: str, pattern: str) -> Path:
        """Return the newest file of a stage; see `stage_file`."""
        return stage_file(self.name, stage, pattern)

    def network_file(self, stage: str) -> Path:
        """Return the newest compressed network of a stage; see `stage_file`."""
        return self.file(stage, NETWORK_FILE)
