"""A study's file, ``params/studies/*.yaml``, and the points that it stands for."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from gaitlib.config import ConfigError, Experiment, load_experiment, read_yaml
from gaitlib.config.run_changes import digest
from gaitlib.config.section import Section, nearest
from gaitlib.report.method_names import FORMER_METHODS
from gaitlib.runs import locate
from gaitlib.study.methods import METHODS, starts_from
from gaitlib.study.points import Point

#: Keys that change no result; a point is not trained again when they change.
WITHOUT_EFFECT = {
    "data_cfg": {"cache", "num_workers"},
    "trainer_cfg": {"save_iter", "log_iter", "keep_checkpoints", "with_test"},
    "evaluator_cfg": {"restore_hint", "save_name"},
}

#: The notebook that trains a point, for all methods.
ALL, TRAINS = "all", ("notebooks/point.ipynb",)

#: The names that earlier versions used, by the present ones.
FORMER_NAMES = {present: former for former, present in FORMER_METHODS.items()}

#: Longest spelling of one value in a point's name.
LONGEST = 40


class StudyPlan(Section):
    """A study's file.

    - ``base``: the file of the experiment that all points share.
    - ``name``: folder below runs/; the file's own name if left out.
    - ``overrides``: dotted keys that replace single values of the base.
    - ``grid``: dotted keys with lists of values; every combination is tried.
    - ``seeds``: each combination is trained with each.
    - ``methods``: names of METHODS. What one needs, such as the baseline, is added.
    - ``notebooks``: what each point runs: those of ``all``, then those of its method. The first
      trains it.
    """

    base: str
    name: str | None = None
    overrides: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)] = (0,)
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    notebooks: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = {}

    @field_validator("methods")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if method in FORMER_METHODS:
                raise ValueError(f"method {method!r} is called {FORMER_METHODS[method]!r} now")
            if method not in METHODS:
                raise ValueError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        return value

    @field_validator("notebooks")
    @classmethod
    def _of_known_methods(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for method in value:
            if method != ALL and method not in METHODS:
                raise ValueError(f"unknown method {method!r}; {nearest(method, {ALL, *METHODS})}")
        for path in itertools.chain(*value.values()):
            if not locate(path).exists():
                raise ValueError(f"the notebook {path} is not there")
        return {ALL: TRAINS} | value

    @field_validator("seeds", "methods")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} names one twice: leave it out")
        return value

    @model_validator(mode="after")
    def _a_grid_has_values(self) -> "StudyPlan":
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key} has no values: give some, or leave it out")
            if key in self.overrides:
                raise ValueError(f"{key} stands in overrides and in grid: leave one out")
        return self


def read_plan(path: str | Path) -> StudyPlan:
    """Read a study's file.

    Raises:
        ConfigError: if it is no such file; a line a problem.
    """
    path = Path(path)
    try:
        plan = StudyPlan.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"the study {path} cannot run:"]
        for problem in error.errors(include_url=False):
            place = ".".join(map(str, problem["loc"]))
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: {message}" if place else message)
        raise ConfigError("\n  ".join(lines)) from error
    return plan.model_copy(update={"name": plan.name or path.stem})


def expand(plan: StudyPlan) -> list[Point]:
    """Return the points of a study, each once, after those that it needs.

    Two combinations that differ only in what a method does not read are one point of it: a baseline
    is trained once a seed, however many sparsities there are.

    Raises:
        ConfigError: if a point cannot run; the message holds its settings.
    """
    found: dict[str, Point] = {}  # by digest
    for seed in plan.seeds:
        for values in itertools.product(*plan.grid.values()):
            settings = dict(zip(plan.grid, values, strict=True))
            try:
                experiment = load_experiment(locate(plan.base), {**plan.overrides, **settings})
                _check_start(experiment)
                for method in plan.methods:
                    _add(found, method, experiment, settings, seed)
            except ConfigError as error:
                where = ", ".join(f"{key}: {value}" for key, value in settings.items())
                raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    names: dict[str, Point] = {}
    for point in found.values():
        if point.name in names:
            raise ConfigError(
                f"two points would be called {point.name}: {dict(names[point.name].settings)} and "
                f"{dict(point.settings)}; give them values that are spelled differently"
            )
        names[point.name] = point
    order = plan.notebooks.get(ALL, TRAINS)
    return [
        replace(point, notebooks=(*order, *plan.notebooks.get(point.method, ())))
        for point in names.values()
    ]


def _check_start(experiment: Experiment) -> None:
    if hint := experiment.trainer_cfg.restore_hint:
        raise ConfigError(
            f"trainer_cfg.restore_hint is {hint!r}: points of a study start anew, from random "
            "weights or with start_from: baseline; write 0"
        )


def _add(
    found: dict[str, Point],
    method: str,
    experiment: Experiment,
    settings: Mapping[str, Any],
    seed: int,
) -> Point:
    """Return a method's point, found or new, and put it behind those it needs."""
    way = METHODS[method]
    resolved = way.resolve(experiment)
    needed = {m: _add(found, m, experiment, settings, seed) for m in way.needs(experiment)}
    read = {key: value for key, value in settings.items() if _reads(resolved, key, experiment)}
    for point in needed.values():
        read |= point.settings
    read = {key: settings[key] for key in settings if key in read}
    matters = {  # with the names that earlier versions used, whose points then count as done
        "method": FORMER_NAMES.get(method, method),
        "seed": seed,
        "study": _content(resolved),
        "needs": {FORMER_NAMES.get(m, m): point.digest for m, point in needed.items()},
    }
    key = digest(matters)
    if key not in found:
        name = "-".join([method, *_spelled(read, settings), f"seed{seed}"])
        needs = {m: point.name for m, point in needed.items()}
        steps = resolved.trainer_cfg.total_iter
        if (start := starts_from(needed)) is not None:
            steps += needed[start].total_iterations
        found[key] = Point(name, method, seed, read, resolved, needs, key, steps)
    return found[key]


def _content(experiment: Experiment) -> dict[str, Any]:
    """Return what changes an experiment's result, as plain values."""
    return experiment.model_dump(mode="json", exclude_none=True, exclude=WITHOUT_EFFECT)


def _reads(resolved: Experiment, key: str, experiment: Experiment) -> bool:
    """Say whether a resolved experiment still holds a key, or the key is short for others."""
    return _has(_content(resolved), key) or not _has(experiment.model_dump(mode="json"), key)


def _has(values: Any, key: str) -> bool:
    for step in key.split("."):
        if isinstance(values, list) and step.isdigit() and int(step) < len(values):
            values = values[int(step)]
        elif isinstance(values, Mapping) and step in values:
            values = values[step]
        else:
            return False
    return True


def _spelled(read: Mapping[str, Any], grid: Mapping[str, Any]) -> list[str]:
    """Spell settings for a folder's name: the key's last part, or all of it where two share it."""
    last = [key.rpartition(".")[2] for key in grid]
    spelled = []
    for key, value in sorted(read.items()):  # whatever their order in the file
        leaf = key.rpartition(".")[2]
        text = re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_")
        if len(text) > LONGEST:
            text = f"{text[:30]}_{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"
        spelled.append(f"{leaf if last.count(leaf) == 1 else key}={text}")
    return spelled
