"""Read a study's file, ``params/studies/*.yaml``, and list its points."""

import hashlib
import itertools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from gaitlib.system.errors import UserError
from workbook.config import ConfigError, Experiment, load_experiment
from workbook.config.load import explain
from workbook.config.run_changes import digest, harmless_keys
from workbook.config.section import Section, nearest
from workbook.config.yaml_reader import read_with_lines
from workbook.runs import locate, run_dir
from workbook.study import methods
from workbook.study.points import TEACHER, Point

#: Keys that do not affect results. A point is not trained again when they change.
WITHOUT_EFFECT: dict[str, set[str]] = {}
for _key in harmless_keys("results"):
    _section, _, _name = _key.partition(".")
    WITHOUT_EFFECT.setdefault(_section, set()).add(_name)

#: The key of ``notebooks`` that is about all methods, and its default: the notebook that trains.
ALL_METHODS, TRAINING_NOTEBOOKS = "all", ("notebooks/point.ipynb",)

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

    @model_validator(mode="after")
    def _can_run(self) -> "StudyPlan":
        for method in (*self.methods, *(self.notebooks.keys() - {ALL_METHODS})):
            if method not in methods.METHODS:
                raise UserError(f"unknown method {method!r}; {nearest(method, methods.METHODS)}")
        for path in itertools.chain(*self.notebooks.values()):
            if not locate(path).exists():
                raise UserError(f"the notebook {path} is not there")
        for values in (self.seeds, self.methods):
            if len(set(values)) < len(values):
                raise UserError(f"{list(values)} names one twice: remove the second")
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
    values, lines = read_with_lines(path)
    try:
        plan = StudyPlan.model_validate(values)
    except ValidationError as error:
        problems = explain(error, values, lines, "study")
        raise ConfigError("\n  ".join([f"the study {path} cannot run:", *problems])) from error
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
                if (budget := methods.macs_budget(experiment)) is not None:
                    methods.absolute_macs(experiment, budget)  # raises if no network can have it
                for method in plan.methods:
                    _add_point(found, plan, method, experiment, settings, seed)
            except ConfigError as error:
                where = ", ".join(f"{key}: {value}" for key, value in settings.items())
                raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    names: dict[str, Point] = {}
    for point in found.values():
        if (other := names.setdefault(point.name, point)) is not point:
            raise ConfigError(
                f"two points would be called {point.name}: {dict(other.settings)} and "
                f"{dict(point.settings)}; write values that differ in spelling"
            )
    return list(names.values())


def _check_start(experiment: Experiment, baseline_steps: int | None) -> None:
    """Refuse an experiment that restores a checkpoint, or steps of a baseline that nothing reads.

    Raises:
        ConfigError: if ``trainer_cfg.restore_hint`` is set, or ``baseline_steps`` is and the
            experiment does not start from a baseline.
    """
    if baseline_steps and not methods.steps_of_start(experiment):
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
    plan: StudyPlan,
    method: str,
    experiment: Experiment,
    settings: Mapping[str, Any],
    seed: int,
) -> Point:
    """Return a method's point. If it is new, append it to ``found`` after the points it needs.

    Args:
        found: the points so far, by digest.
        plan: the study.
        method: the point's method.
        experiment: of this combination of the grid.
        settings: of this combination, by dotted key.
        seed: of the point.
    """
    definition = methods.METHODS[method]
    resolved = methods.resolve(method, experiment, plan.baseline_steps)
    sources = {other: other for other in methods.needs_of(method, experiment)}
    if definition.is_taught and experiment.trainer_cfg.teacher == "baseline":
        sources[TEACHER] = "baseline"
    needed = {
        role: _add_point(found, plan, other, experiment, settings, seed)
        for role, other in sources.items()
    }
    cut_to = methods.macs_budget(experiment) if definition.is_cut_to_macs else None
    read = {key for key in settings if _reads(resolved, key, experiment)}
    has_milestones = "milestones" in experiment.scheduler_cfg.arguments()
    if method == "baseline" and plan.baseline_steps and not has_milestones:
        read.discard("trainer_cfg.total_iter")  # milestones are scaled from it
    if cut_to is not None:
        asked = f"{experiment.compression_optimizer}_optimizer_cfg.target_macs."
        read |= {key for key in settings if asked.startswith(f"{key}.")}
    read |= {key for point in needed.values() for key in point.settings}
    matters = {
        "method": method,
        "seed": seed,
        "study": _what_matters(resolved),
        "needs": {role: point.digest for role, point in needed.items()},
    }
    if cut_to is not None:  # else it is in ``study``, or in what is needed
        matters["target_macs"] = cut_to
    key = digest(matters)
    if key not in found:
        start, steps = methods.starts_from(needed), resolved.trainer_cfg.total_iter
        budgets = [
            cut_to,
            methods.budget_of(resolved),
            *(point.budget for point in needed.values()),
        ]
        own = plan.notebooks.get(method, ())
        found[key] = Point(
            name="-".join([method, *_spelled_settings(read, settings), f"seed{seed}"]),
            method=method,
            seed=seed,
            settings={key: value for key, value in settings.items() if key in read},
            experiment=resolved,
            needs={role: point.name for role, point in needed.items()},
            digest=key,
            total_iterations=steps + (needed[start].total_iterations if start else 0),
            notebooks=(*plan.notebooks.get(ALL_METHODS, TRAINING_NOTEBOOKS), *own),
            budget=next((value for value in budgets if value is not None), None),
        )
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
    try:
        for step in key.split("."):
            values = values[int(step) if isinstance(values, list) else step]
    except (LookupError, ValueError, TypeError):
        return False
    return True


def _spelled_settings(read: Collection[str], settings: Mapping[str, Any]) -> list[str]:
    """Write settings as ``key=value`` for a folder's name.

    The key is its last part, or all of it where two keys of the grid end in the same part.

    Args:
        read: the keys to write.
        settings: all of the grid, by dotted key.
    """
    last = [key.rpartition(".")[2] for key in settings]
    spelled = []
    for key in sorted(read):  # so that their order in the file does not matter
        leaf, value = key.rpartition(".")[2], str(settings[key])
        text = re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_")
        if len(text) > LONGEST_VALUE:
            text = f"{text[:30]}_{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        spelled.append(f"{leaf if last.count(leaf) == 1 else key}={text}")
    return spelled
