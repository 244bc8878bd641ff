"""Where things lie on disk, and the files that one stage leaves for the next.

A run is a folder ``runs/<run>/``; a stage (``baseline`` or ``geta``) is a folder in it. Everything
a later notebook needs is read from there, never from a kernel's memory.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from gaitlib.files import replacing

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params"
#: Holds runs, figures and made data sets: the checkout, unless GAITLIB_WORKSPACE names a folder.
WORKSPACE = Path(os.environ.get("GAITLIB_WORKSPACE", ROOT)).resolve()
FIGURES, RUNS, DATA = WORKSPACE / "figures", WORKSPACE / "runs", WORKSPACE / "data"

SCHEMA = 1
#: Each stage with the notebook that makes it: the dense network, one compressed by the study's
#: optimizer, and, where that quantizes, one that is pruned alone, and that one rounded afterwards.
STAGES = {
    "baseline": "02_baseline_train.ipynb",
    "geta": "03_geta_train.ipynb",
    "pruned": "03_geta_train.ipynb",
    "ptq": "03_geta_train.ipynb",
}
#: What tables and figures call their networks, in their order.
NAMES = {
    "baseline": "dense",
    "pruned": "pruned",
    "ptq": "pruned, then rounded",
    "geta": "compressed",
}


class MissingRunError(FileNotFoundError):
    """A file of an earlier stage is not there; the message names the notebook to run first."""


def stage_dir(run: str, stage: str) -> Path:
    """Return ``runs/<run>/<stage>``; whoever writes there makes it.

    Raises:
        ValueError: if the stage is unknown, or the run's name would leave the runs folder.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; choose from {sorted(STAGES)}")
    path = (RUNS / run / stage).resolve()
    if not run or RUNS not in path.parents or path.parent == RUNS:
        raise ValueError(f"run {run!r} is not a folder name below {RUNS.name}/; use letters and -")
    return path


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file beside its place and rename it, so that a reader never sees half of it."""
    with replacing(path) as part:
        part.write_text(text)
    return path


def _stable(value: Any) -> Any:
    """Round floats to 6 significant digits, NaN to None, so that equal runs give equal files."""
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def save_results(run: str, stage: str, results: Mapping[str, Any]) -> Path:
    """Write ``<stage>/results.json``: sorted keys, floats of six digits, the schema's version."""
    record = _stable({"schema": SCHEMA, "stage": stage, **results})
    text = json.dumps(record, indent=1, sort_keys=True)
    return write_atomically(stage_dir(run, stage) / "results.json", text + "\n")


def stage_file(run: str, stage: str, pattern: str) -> Path:
    """Return the newest file of a stage that fits ``pattern`` (by name, which holds the time).

    Raises:
        MissingRunError: if there is none; the message names the notebook that writes it.
    """
    found = sorted(stage_dir(run, stage).glob(pattern))
    if not found:
        raise MissingRunError(
            f"runs/{run}/{stage}/{pattern} is not there: run notebooks/{STAGES[stage]} "
            f"with run={run!r} first"
        )
    return found[-1]


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
    """Return the stages of a run that have results, in the order of NAMES."""
    return [stage for stage in NAMES if (stage_dir(run, stage) / "results.json").exists()]


def save_config(run: str, stage: str, record: Mapping[str, Any]) -> Path:
    """Write what is needed to repeat a stage: ``record`` and the packages' versions.

    The stage keeps its own copy; ``runs/<run>/config.yaml`` is that of the stage begun last, other
    than ``pruned``, whose study is a part of another's.

    Args:
        run: folder below runs/.
        stage: ``baseline`` or ``geta``.
        record: every section resolved, seed, device and so on, as plain values.
    """
    packages = ("torch", "only_train_once", "numpy", "opencv-python-headless", "kornia", "gaitlib")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    text = yaml.safe_dump({**record, "versions": versions}, sort_keys=False)
    own = write_atomically(stage_dir(run, stage) / "config.yaml", text)
    return own if stage == "pruned" else write_atomically(RUNS / run / "config.yaml", text)
