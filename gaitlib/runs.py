"""Where things lie on disk, what a run is, and the files that one stage leaves for the next.

A run is a folder ``runs/<run>/``; a stage is a folder in it, named after what makes its network.
Everything a later notebook needs is read from there, never from a kernel's memory.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from gaitlib.config import Experiment
from gaitlib.system.files import ROOT, write_atomically

SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        words: what tables and figures call its network.
        notebook: the notebook that makes it; empty for a stage that studies alone make.
    """

    words: str
    notebook: str = ""


#: By the name of their folder, in the order of tables and figures.
STAGES = {
    "baseline": Stage("dense", "02_baseline_train.ipynb"),
    "hesso": Stage("HESSO", "03_geta_train.ipynb"),
    "ptq": Stage("HESSO + rounding (PTQ)", "03_geta_train.ipynb"),
    "torch_pruning": Stage("torch-pruning"),
    "geta": Stage("GETA", "03_geta_train.ipynb"),
}
#: Names that stages had before, with their present ones.
FORMER_STAGES = {"pruned": "hesso"}


class MissingRunError(FileNotFoundError):
    """A file of an earlier stage is not there; the message names the notebook to run first."""


def workspace() -> Path:
    """Return the folder of runs, figures and made data: GAITLIB_WORKSPACE, or the project's own."""
    return Path(os.environ.get("GAITLIB_WORKSPACE") or ROOT).resolve()


def runs_folder() -> Path:
    """Return the folder of all runs."""
    return workspace() / "runs"


def figures_folder() -> Path:
    """Return the folder of all figures."""
    return workspace() / "figures"


def data_folder() -> Path:
    """Return the folder of data sets that the project makes."""
    return workspace() / "data"


def locate(path: str | None) -> Path:
    """Return an absolute path: relative ones start here, or else at the project's folder."""
    here = Path(path or "").expanduser()
    return here if here.is_absolute() or here.exists() else ROOT / here


def stage_dir(run: str, stage: str) -> Path:
    """Return ``runs/<run>/<stage>``, or the folder of this stage in a run of an earlier version.

    Earlier versions wrote HESSO's network into ``pruned`` beside GETA's, and into ``geta`` without
    one. The caller makes the folder before it writes there.

    Raises:
        ValueError: if the stage is unknown, or the run's name would leave the runs folder.
    """
    if stage not in STAGES:
        hint = f"it is called {FORMER_STAGES[stage]!r} now" if stage in FORMER_STAGES else ""
        raise ValueError(f"unknown stage {stage!r}; {hint or f'choose from {sorted(STAGES)}'}")
    path = (runs_folder() / run / stage).resolve()
    if not run or runs_folder() not in path.parents or path.parent == runs_folder():
        raise ValueError(f"run {run!r} is not a folder name below runs/; use letters and -")
    if stage == "hesso" and not path.exists():
        former = path.with_name("pruned")
        if former.exists():
            return former
        if _made_by_hesso(path.with_name("geta")):
            return path.with_name("geta")
    return path


def _made_by_hesso(folder: Path) -> bool:
    """Say whether an earlier version wrote the network of a run without bits into ``geta``."""
    config = folder / "config.yaml"
    if not config.exists():
        return False
    sections = yaml.safe_load(config.read_text())
    return "quantize" not in (sections.get("geta_optimizer_cfg") or {})


def save_results(run: str, stage: str, results: Mapping[str, Any]) -> Path:
    """Write ``<stage>/results.json``: sorted keys, floats of six digits, the schema's version."""
    record = _stable({"schema": SCHEMA, "stage": stage, **results})
    text = json.dumps(record, indent=1, sort_keys=True)
    return write_atomically(stage_dir(run, stage) / "results.json", text + "\n")


def _stable(value: Any) -> Any:
    """Round floats to 6 significant digits, NaN to None, so that equal runs give equal files."""
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def stage_file(run: str, stage: str, *patterns: str) -> Path:
    """Return the newest file of a stage that fits a pattern (by name, which holds the time).

    Args:
        run: folder below runs/.
        stage: a name of STAGES.
        patterns: tried in this order; the first that any file fits counts.

    Raises:
        MissingRunError: if there is none; the message names the notebook that writes it.
    """
    for pattern in patterns:
        if found := sorted(stage_dir(run, stage).glob(pattern)):
            return found[-1]
    maker = STAGES[stage].notebook
    advice = f"run notebooks/{maker} with run={run!r} first" if maker else "finish its study first"
    raise MissingRunError(f"runs/{run}/{stage}/{patterns[0]} is not there: {advice}")


def load_results(run: str, stage: str) -> dict[str, Any]:
    """Read what `save_results` wrote.

    Raises:
        MissingRunError: if the stage has not finished.
        ValueError: if the file has another schema version.
    """
    path = stage_file(run, stage, "results.json")
    results = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {results.get('schema')}, this program reads {SCHEMA}")
    return results


def finished(run: str) -> list[str]:
    """Return the stages of a run that have results, in the order of STAGES."""
    folders = {stage: stage_dir(run, stage) for stage in STAGES}
    if folders["geta"] == folders["hesso"]:
        del folders["geta"]
    return [stage for stage, folder in folders.items() if (folder / "results.json").exists()]


def save_config(run: str, stage: str, record: Mapping[str, Any], *, of_run: bool = True) -> Path:
    """Write what is needed to repeat a stage: ``record`` and the packages' versions.

    Args:
        run: folder below runs/.
        stage: a name of STAGES.
        record: every section resolved, seed, device and so on, as plain values.
        of_run: also write ``runs/<run>/config.yaml``, which is that of the stage begun last.
    """
    packages = ("torch", "only_train_once", "numpy", "opencv-python-headless", "gaitlib")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    text = yaml.safe_dump({**record, "versions": versions}, sort_keys=False)
    own = write_atomically(stage_dir(run, stage) / "config.yaml", text)
    return write_atomically(runs_folder() / run / "config.yaml", text) if of_run else own


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        name: folder below runs/.
        experiment: what is run.
        seed: of weights, batches and augmentation.
        device: where this process computes.
    """

    name: str
    experiment: Experiment
    seed: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def compressing_stage(self) -> str:
        """The stage that the experiment's compression makes: ``geta`` if it chooses bits."""
        return "geta" if self.experiment.quantizes else "hesso"

    def of_stage(self, stage: str) -> "Run":
        """Return the run whose experiment is the stage's: ``hesso`` chooses no bits."""
        if stage != "hesso":
            return self
        return replace(self, experiment=self.experiment.pruned_alone())

    def folder(self, stage: str) -> Path:
        """Return the stage's folder; see `stage_dir`."""
        return stage_dir(self.name, stage)

    def file(self, stage: str, *patterns: str) -> Path:
        """Return the newest file of a stage; see `stage_file`."""
        return stage_file(self.name, stage, *patterns)
