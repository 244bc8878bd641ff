"""One point of a study: a method, its settings and a seed, in ``runs/<study>/<point>/``."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from gaitlib.system.files import read_json, write_atomically
from workbook import runs
from workbook.config import Experiment, load_experiment, read_yaml
from workbook.study.methods import METHODS, starts_from

#: The entry of a point's ``needs`` whose network it learns from.
TEACHER = "teacher"
State = Literal["done", "changed", "failed", "missing"]

#: Files of a point: its description, for the notebook that trains it; its results; its traceback.
POINT, RESULTS, FAILED = "point.yaml", "results.json", "failed.txt"


@dataclass(frozen=True)
class Point:
    """One network of a study: all that its training depends on.

    Attributes:
        name: folder below ``runs/<study>/``.
        method: one of METHODS.
        seed: of weights, batches and augmentation.
        settings: the grid's values that this method depends on, by dotted key.
        experiment: what the method trains, resolved.
        needs: the points that must be done first: their names, by method, or by TEACHER.
        digest: hash of everything above that affects the result, and of the needed points.
        total_iterations: steps that trained the weights, including those of the network that it
            starts from.
        notebooks: run in this order, the training one first. Relative paths start at the working
            folder, or else at the project's.
        budget: what a budget (such as ``target_macs``) asks for, of the experiment or of a needed
            point; None if the method has no such limit.
    """

    name: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    experiment: Experiment
    needs: Mapping[str, str]
    digest: str
    total_iterations: int
    notebooks: tuple[str, ...] = ()
    budget: float | None = None

    @property
    def stage(self) -> str:
        """The folder of the point's run that holds its method's files."""
        return METHODS[self.method].stage

    @property
    def starts_from(self) -> str | None:
        """The needed method whose weights are the start; None if the start is random."""
        return starts_from(self.needs)


def point_dir(run: str, point: Point) -> Path:
    """Return ``runs/<study>/<point>``.

    Raises:
        UserError: if the study's name points outside the runs folder.
    """
    return runs.run_dir(f"{run}/{point.name}")


def notebook_of(run: str, point: Point, notebook: str) -> Path:
    """Return the path that a point's notebook has once all its cells have run."""
    return point_dir(run, point) / "notebooks" / Path(notebook).name


def state_of(run: str, point: Point) -> State:
    """Return a point's state.

    ``done``: its results and notebooks are there. ``failed``: it left a traceback. ``changed``:
    there are results of other settings. ``missing``: there are none.
    """
    executed = all(notebook_of(run, point, path).exists() for path in point.notebooks)
    if executed and has_results(run, point):
        return "done"
    if (point_dir(run, point) / FAILED).exists():
        return "failed"
    return "missing" if load_point(run, point) is None else "changed"


def has_results(run: str, point: Point) -> bool:
    """Return whether a point has results of its present settings."""
    results = load_point(run, point)
    return results is not None and results["digest"] == point.digest


def load_point(run: str, point: Point) -> dict[str, Any] | None:
    """Return a point's results.json, even of other settings; None if there is none."""
    path = point_dir(run, point) / RESULTS
    return read_json(path) if path.exists() else None


def prepare(run: str, point: Point) -> Path:
    """Write a point's description into its folder, and return the folder.

    A folder of other settings is moved to ``runs/<study>/previous``. What was begun with the same
    settings is kept, so that training continues there.
    """
    folder = point_dir(run, point)
    if (folder / POINT).exists() and read_yaml(folder / POINT)["digest"] != point.digest:
        aside = folder.parent / "previous" / f"{point.name}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
    (folder / FAILED).unlink(missing_ok=True)  # from an earlier attempt
    values = {field.name: getattr(point, field.name) for field in fields(point)}
    values |= {name: dict(values[name]) for name in ("settings", "needs")}
    values |= {"experiment": point.experiment.sections(), "notebooks": list(point.notebooks)}
    write_atomically(folder / POINT, yaml.safe_dump(values, sort_keys=False))
    return folder


def read_point(run: str) -> tuple[str, Point]:
    """Return the study's folder name and the point of a run ``<study>/<point>``.

    Raises:
        ConfigError: if the run is not a point of a study.
    """
    values = read_yaml(runs.runs_folder() / run / POINT)
    values["experiment"] = load_experiment(values["experiment"])
    values["notebooks"] = tuple(values["notebooks"])
    return run.rpartition("/")[0], Point(**values)
