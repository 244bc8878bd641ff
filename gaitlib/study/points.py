"""One point of a study: a method, its settings and a seed, in ``runs/<study>/<point>/``."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from gaitlib import profile, runs, stages
from gaitlib.config import Study
from gaitlib.study.methods import METHODS, narrowed, total_iterations

State = Literal["done", "changed", "failed", "missing"]


@dataclass(frozen=True)
class Point:
    """What one network of a study is trained from.

    Attributes:
        name: folder below ``runs/<study>/``.
        method: one of METHODS.
        seed: of weights, batches and augmentation.
        settings: the grid's values that this method depends on, by dotted key.
        study: what is trained, resolved.
        needs: the points that have to be done first, name by method.
        digest: of everything above that changes the result, and of what it needs.
    """

    name: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    study: Study
    needs: Mapping[str, str]
    digest: str


def point_dir(study: str, point: Point) -> Path:
    """Return ``runs/<study>/<point>``.

    Raises:
        ValueError: if the study's name would leave the runs folder.
    """
    return runs.stage_dir(_run(study, point.name), METHODS[point.method].stage).parent


def state_of(study: str, point: Point) -> State:
    """Say whether a point has its results, has those of other settings, has failed, or has none."""
    results = load_point(study, point)
    if results is not None and results["digest"] == point.digest:
        return "done"
    if (point_dir(study, point) / "failed.txt").exists():
        return "failed"
    return "missing" if results is None else "changed"


def load_point(study: str, point: Point) -> dict[str, Any] | None:
    """Return a point's results.json, of whatever settings; None if there is none."""
    path = point_dir(study, point) / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def run_point(
    study: str,
    point: Point,
    device: torch.device,
    on_history: Callable[[pd.DataFrame], None] | None = None,
) -> dict[str, Any]:
    """Train, compress and test a point, and write its results.json last of all.

    What it needs of other points is found in its own folder too, so that a point is a run like any
    other: `gaitlib summary <study>/<point>`, and the notebooks, read it.

    Args:
        study: folder below runs/.
        point: what it needs is done.
        device: where it is trained and tested.
        on_history: as `gaitlib.stages.run_stage`.

    Returns:
        The results: those of the point's stage, and ``point``, ``method``, ``settings``,
        ``digest``, ``total_iterations`` (with the baseline's) and ``seconds``.
    """
    began, run, stage = time.monotonic(), _run(study, point.name), METHODS[point.method].stage
    trained, extra = point.study, {}
    if point.method == "uniform":
        target = runs.load_results(_run(study, point.needs["pruned"]), "pruned")["macs_per_frame"]
        trained = narrowed(point.study, target)
        extra["dense"] = _costs_before(point.study)
    else:
        for lent, lender in point.needs.items():
            _lend(_run(study, lender), run, lent)
    if point.method == "ptq":
        data = stages.open_data(trained)
        stages.round_pruned(trained, run, data, seed=point.seed, device=device)
    else:
        about = {"seed": point.seed, "on_history": on_history}
        stages.run_stage(trained, run, stage, device, **about)
    results = {
        **runs.load_results(run, stage),
        **extra,
        "point": point.name,
        "method": point.method,
        "settings": dict(point.settings),
        "digest": point.digest,
        "total_iterations": total_iterations(point.study),
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    folder = point_dir(study, point)
    runs.write_atomically(folder / "results.json", text)
    (folder / "failed.txt").unlink(missing_ok=True)  # of an earlier try
    return results


def _run(study: str, name: str) -> str:
    return f"{study}/{name}"


def _costs_before(study: Study) -> dict[str, int]:
    model = stages.build_network(study, torch.device("cpu"))
    return {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
    }


def _lend(lender: str, run: str, stage: str) -> None:
    """Put a finished stage of another run into this one, without a second copy on the disk."""
    target = runs.stage_dir(run, stage)
    if target.exists():  # what was lent to an earlier run of this point
        shutil.rmtree(target)
    shutil.copytree(runs.stage_dir(lender, stage), target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
