"""One point of a study: a method, its settings and a seed, in ``runs/<study>/<point>/``."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from gaitlib import runs
from gaitlib.config import Study, load_study, read_yaml
from gaitlib.study.methods import METHODS, starts_from

State = Literal["done", "changed", "failed", "missing"]

#: What a point is, for the notebook that trains it; and what came of it.
POINT, RESULTS, FAILED = "point.yaml", "results.json", "failed.txt"


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
        total_iterations: steps behind the weights, those of what it starts from included.
        notebooks: run after the one that trains, in this order; relative paths start at the
            working folder, or else at the project's.
    """

    name: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    study: Study
    needs: Mapping[str, str]
    digest: str
    total_iterations: int
    notebooks: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The folder of the point's run that holds what its method makes."""
        return METHODS[self.method].stage

    @property
    def starts_from(self) -> str | None:
        """The method whose weights it starts from, among those that it needs; None for random."""
        return starts_from(self.needs)


def run_of(study: str, name: str) -> str:
    """Return the run of a point: a point is a run like any other, `gaitlib summary` reads it."""
    return f"{study}/{name}"


def point_dir(study: str, point: Point) -> Path:
    """Return ``runs/<study>/<point>``.

    Raises:
        ValueError: if the study's name would leave the runs folder.
    """
    return runs.stage_dir(run_of(study, point.name), point.stage).parent


def notebook_of(study: str, point: Point, notebook: str) -> Path:
    """Return where a notebook of a point lies once it has been executed to its end."""
    return point_dir(study, point) / "notebooks" / Path(notebook).name


def state_of(study: str, point: Point) -> State:
    """Say whether a point has its results and notebooks, has other settings' results, or failed."""
    executed = all(notebook_of(study, point, path).exists() for path in point.notebooks)
    if executed and has_results(study, point):
        return "done"
    if (point_dir(study, point) / FAILED).exists():
        return "failed"
    return "missing" if load_point(study, point) is None else "changed"


def has_results(study: str, point: Point) -> bool:
    """Say whether a point has been trained with its present settings."""
    results = load_point(study, point)
    return results is not None and results["digest"] == point.digest


def load_point(study: str, point: Point) -> dict[str, Any] | None:
    """Return a point's results.json, of whatever settings; None if there is none."""
    path = point_dir(study, point) / RESULTS
    return json.loads(path.read_text()) if path.exists() else None


def prepare(study: str, point: Point) -> Path:
    """Write a point's description into its folder, and move what other settings left there aside.

    What has been begun with the same settings stays, to be gone on with.

    Returns:
        The folder.
    """
    folder = point_dir(study, point)
    if (folder / POINT).exists() and read_yaml(folder / POINT)["digest"] != point.digest:
        aside = folder.parent / "previous" / f"{point.name}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
    (folder / FAILED).unlink(missing_ok=True)  # of an earlier try
    values = {field.name: getattr(point, field.name) for field in fields(point)}
    values |= {name: dict(values[name]) for name in ("settings", "needs")}
    values |= {"study": point.study.sections(), "notebooks": list(point.notebooks)}
    runs.write_atomically(folder / POINT, yaml.safe_dump(values, sort_keys=False))
    return folder


def read_point(run: str) -> tuple[str, Point]:
    """Return the study's name and the point of a run ``<study>/<point>``.

    Raises:
        ConfigError: if it is no run of a study.
    """
    values = read_yaml(runs.RUNS / run / POINT)
    values["study"] = load_study(values["study"])
    values["notebooks"] = tuple(values["notebooks"])
    return run.rpartition("/")[0], Point(**values)
