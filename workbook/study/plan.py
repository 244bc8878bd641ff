"""Read a study's file, ``params/studies/*.yaml``, and list its points."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from gaitlib.system.errors import UserError
from workbook.config import ConfigError, Experiment, load_experiment, read_yaml
from workbook.config.run_changes import digest, harmless_keys
from workbook.config.section import Section, nearest
from workbook.report.method_names import FORMER_METHODS
from workbook.runs import locate, run_dir
from workbook.study.methods import (
    METHODS,
    absolute_macs,
    budget_of,
    macs_budget,
    starts_from,
    steps_of_start,
)
from workbook.study.points import TEACHER, Point

#: Keys that do not affect results. A point is not trained again when they change.
WITHOUT_EFFECT: dict[str, set[str]] = {}
for _key in harmless_keys("results"):
    _section, _, _name = _key.partition(".")
    WITHOUT_EFFECT.setdefault(_section, set()).add(_name)

#: The key of ``notebooks`` that is about all methods, and its default: the notebook that trains.
ALL_METHODS, TRAINING_NOTEBOOKS = "all", ("notebooks/point.ipynb",)

#: The methods' names in earlier versions, by their present names.
FORMER_NAMES = {present: former for former, present in FORMER_METHODS.items()}

#: The most characters that one value takes in a point's name.
LONGEST_VALUE = 40


class StudyPlan(Section):
    """A study's file.

    - ``base``: the file of the experiment that all points share.
    - ``name``: the study's folder below runs/; by default the file's own name.
    - ``overrides``: dotted keys that replace single values of the base.
    - ``grid``: dotted keys with lists of values; every combination is trained.
    - ``seeds``: every combination is trained with each seed.
    - ``methods``: names of methods. Those that these need, such as the baseline, are added.
    - ``baseline_steps``: of the dense network that others start from (``start_from: baseline``), if
      they differ from ``trainer_cfg.total_iter``. Its learning-rate schedule is stretched to them.
    - ``notebooks``: the notebooks that a point runs: those of ``all``, then those of its method.
      The first one trains it.
    """

    base: str
    name: str | None = None
    overrides: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)] = (0,)
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    baseline_steps: PositiveInt | None = None
    notebooks: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = {}

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if method in FORMER_METHODS:
                raise UserError(f"method {method!r} is called {FORMER_METHODS[method]!r} now")
            if method not in METHODS:
                raise UserError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        return value

    @field_validator("notebooks")
    @classmethod
    def _notebooks_exist(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for method in value:
            if method in FORMER_METHODS:
                raise UserError(f"method {method!r} is called {FORMER_METHODS[method]!r} now")
            if method != ALL_METHODS and method not in METHODS:
                choices = {ALL_METHODS, *METHODS}
                raise UserError(f"unknown method {method!r}; {nearest(method, choices)}")
        for path in itertools.chain(*value.values()):
            if not locate(path).exists():
                raise UserError(f"the notebook {path} is not there")
        return {ALL_METHODS: TRAINING_NOTEBOOKS} | value

    @field_validator("seeds", "methods")
    @classmethod
    def _nothing_stands_twice(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise UserError(f"{list(value)} names one twice: remove the second")
        return value

    @model_validator(mode="after")
    def _a_grid_has_values(self) -> "StudyPlan":
        for key, values in self.grid.items():
            if not values:
                raise UserError(f"grid: {key} has no values: give some, or leave it out")
            if key in self.overrides:
                raise UserError(f"{key} stands in overrides and in grid: leave one out")
        return self


def read_plan(path: str | Path) -> StudyPlan:
    """Read a study's file.

    Raises:
        ConfigError: if the file is not a valid study; the message has one line per problem.
        UserError: if its name is not that of a run, as `workbook.runs.run_dir`.
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
    name = path.stem if plan.name is None else plan.name
    run_dir(name)  # raises
    return plan.model_copy(update={"name": name})


def expand(plan: StudyPlan) -> list[Point]:
    """Return the points of a study, each once and after the points that it needs.

    Combinations that a method cannot tell apart share one point: a baseline is trained once per
    seed, however many sparsities the grid has.

    Raises:
        ConfigError: if a point cannot run; the message names its settings.
    """
    found: dict[str, Point] = {}  # by digest
    for seed in plan.seeds:
        for values in itertools.product(*plan.grid.values()):
            settings = dict(zip(plan.grid, values, strict=True))
            try:
                experiment = load_experiment(locate(plan.base), {**plan.overrides, **settings})
                _check_start(experiment, plan.baseline_steps)
                if (budget := macs_budget(experiment)) is not None:
                    absolute_macs(experiment, budget)  # refuses one that no network can have
                for method in plan.methods:
                    _add_point(found, method, experiment, settings, seed, plan.baseline_steps)
            except ConfigError as error:
                where = ", ".join(f"{key}: {value}" for key, value in settings.items())
                raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    names: dict[str, Point] = {}
    for point in found.values():
        if point.name in names:
            raise ConfigError(
                f"two points would be called {point.name}: {dict(names[point.name].settings)} and "
                f"{dict(point.settings)}; write values that differ in spelling"
            )
        names[point.name] = point
    common = plan.notebooks.get(ALL_METHODS, TRAINING_NOTEBOOKS)
    return [
        replace(point, notebooks=(*common, *plan.notebooks.get(point.method, ())))
        for point in names.values()
    ]


def _check_start(experiment: Experiment, baseline_steps: int | None) -> None:
    """Refuse an experiment that restores a checkpoint, or steps of a baseline that nothing reads.

    Raises:
        ConfigError: if ``trainer_cfg.restore_hint`` is set, or ``baseline_steps`` is and the
            experiment does not start from a baseline.
    """
    if baseline_steps and not steps_of_start(experiment):
        raise ConfigError(
            f"baseline_steps is {baseline_steps}, but no method starts from the baseline: write "
            "start_from: baseline in the compression section, or leave baseline_steps out"
        )
    if hint := experiment.trainer_cfg.restore_hint:
        raise ConfigError(
            f"trainer_cfg.restore_hint is {hint!r}: points of a study start anew, from random "
            "weights or from a baseline (start_from: baseline); write 0"
        )


def _add_point(
    found: dict[str, Point],
    method: str,
    experiment: Experiment,
    settings: Mapping[str, Any],
    seed: int,
    baseline_steps: int | None,
) -> Point:
    """Return a method's point. If it is new, append it to ``found`` after the points it needs.

    Args:
        found: the points so far, by digest.
        method: the point's method.
        experiment: of this combination of the grid.
        settings: of this combination, by dotted key.
        seed: of the point.
        baseline_steps: of the plan.
    """
    definition = METHODS[method]
    resolved = definition.experiment(experiment, baseline_steps)
    needed = {
        other: _add_point(found, other, experiment, settings, seed, baseline_steps)
        for other in definition.needs(experiment)
    }
    if definition.is_taught and experiment.trainer_cfg.teacher == "baseline":
        needed[TEACHER] = _add_point(found, "baseline", experiment, settings, seed, baseline_steps)
    read = {key: value for key, value in settings.items() if _reads(resolved, key, experiment)}
    has_milestones = "milestones" in experiment.scheduler_cfg.arguments()
    if method == "baseline" and baseline_steps and not has_milestones:
        read.pop("trainer_cfg.total_iter", None)  # milestones are scaled from it
    cut_to = macs_budget(experiment) if definition.is_cut_to_macs else None
    if cut_to is not None:
        asked = f"{experiment.compression_optimizer}_optimizer_cfg.target_macs."
        read |= {key: value for key, value in settings.items() if asked.startswith(f"{key}.")}
    for point in needed.values():
        read |= point.settings
    read = {key: settings[key] for key in settings if key in read}
    matters = {  # with the names of earlier versions, so that their points still count as done
        "method": FORMER_NAMES.get(method, method),
        "seed": seed,
        "study": _what_matters(resolved),
        "needs": {FORMER_NAMES.get(m, m): point.digest for m, point in needed.items()},
    }
    if cut_to is not None:  # else it is in ``study``, or in what is needed
        matters["target_macs"] = cut_to
    key = digest(matters)
    if key not in found:
        name = "-".join([method, *_spelled_settings(read, settings), f"seed{seed}"])
        needs = {m: point.name for m, point in needed.items()}
        steps = resolved.trainer_cfg.total_iter
        if (start := starts_from(needed)) is not None:
            steps += needed[start].total_iterations
        budgets = [cut_to, budget_of(resolved), *(point.budget for point in needed.values())]
        budget = next((value for value in budgets if value is not None), None)
        found[key] = Point(name, method, seed, read, resolved, needs, key, steps, budget=budget)
    return found[key]


def _what_matters(experiment: Experiment) -> dict[str, Any]:
    """Return the part of an experiment that affects its result, as plain values."""
    return experiment.model_dump(mode="json", exclude_none=True, exclude=WITHOUT_EFFECT)


def _reads(resolved: Experiment, key: str, experiment: Experiment) -> bool:
    """Return whether a method's result depends on a key of the grid.

    It does if the resolved experiment holds the key. A key that the original does not hold either
    is shorthand for others, and counts as read.
    """
    in_original = _has_key(experiment.model_dump(mode="json"), key)
    return _has_key(_what_matters(resolved), key) or not in_original


def _has_key(values: Any, key: str) -> bool:
    """Return whether nested mappings and lists hold a dotted key."""
    for step in key.split("."):
        if isinstance(values, list) and step.isdigit() and int(step) < len(values):
            values = values[int(step)]
        elif isinstance(values, Mapping) and step in values:
            values = values[step]
        else:
            return False
    return True


def _spelled_settings(read: Mapping[str, Any], grid: Mapping[str, Any]) -> list[str]:
    """Write settings as ``key=value`` for a folder's name.

    The key is its last part, or all of it where two keys of the grid end in the same part.
    """
    last = [key.rpartition(".")[2] for key in grid]
    spelled = []
    for key, value in sorted(read.items()):  # so that their order in the file does not matter
        leaf = key.rpartition(".")[2]
        text = re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_")
        if len(text) > LONGEST_VALUE:
            text = f"{text[:30]}_{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"
        spelled.append(f"{leaf if last.count(leaf) == 1 else key}={text}")
    return spelled
