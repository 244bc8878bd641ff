"""Build a checked `Experiment` from YAML, a mapping or a notebook's parameters cell."""

import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gaitlib.prune.hesso_settings import BUDGETS, TARGETS, WITH_BUDGET
from gaitlib.quantize.bit_settings import BIT_TARGETS
from workbook.config.experiment import SECTIONS, Experiment
from workbook.config.opengait_keys import split_off_unused
from workbook.config.section import ConfigError, is_number, nearest, number_as_yaml
from workbook.config.yaml_reader import Place, read_with_lines, read_yaml
from workbook.system.folders import PARAMS

log = logging.getLogger(__name__)

QUICKSTART = PARAMS / "quickstart.yaml"

#: Further entries of a run's config.yaml, ignored when it is read back.
RECORD_KEYS = ("seed", "device", "processes", "data", "versions")


def load_experiment(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    checks: Mapping[Place, Callable[[Any], Any]] | None = None,
) -> Experiment:
    """Build an experiment from a YAML file or a mapping of sections.

    Args:
        source: a file, or sections. None, or sections that are all empty, mean the quickstart.
        overrides: dotted keys, each replacing one value: ``{"trainer_cfg.total_iter": 10}``.
            List entries count from 0: ``{"loss_cfg.0.margin": 0.3}``. A target of pruning also
            replaces the other targets of its section: see `TARGETS` and `BIT_TARGETS`.
        checks: more checks, by the place of the value that each receives; they raise ValueError or
            TypeError.

    Raises:
        ConfigError: if the experiment is invalid; the message lists each section, value and fix.

    One warning lists the keys that have no effect here.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(
            f"overrides is {overrides!r}: write a dictionary of dotted keys; papermill passes one "
            "with -y '{overrides: {trainer_cfg.total_iter: 10}}'"
        )
    lines: dict[Place, int | None] = {}
    if isinstance(source, Mapping):
        values = dict(source)
    else:
        values, lines = read_with_lines(Path(source or QUICKSTART))
    values = {
        key: value
        for key, value in values.items()
        if key not in RECORD_KEYS and value not in (None, {}, [], "")
    }
    if not values:
        values = read_yaml(QUICKSTART)
    for key, value in (overrides or {}).items():
        _set_dotted(values := _copied(values), str(key), value)
        _drop_other_targets(values, str(key), overrides)
        _drop_other_bits(values, str(key), overrides)
        changed = _place(str(key))
        lines = {p: None if p[: len(changed)] == changed else line for p, line in lines.items()}
        lines[changed] = None  # the value is no longer the file's
    values, listed, refused = split_off_unused(values)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        refused += _explain(error, lines)
    else:
        refused += _failed(checks or {}, experiment, lines)
    if refused:
        name = f" {source}" if isinstance(source, str | Path) else ""
        raise ConfigError("\n  ".join([f"the experiment{name} cannot run:", *refused]))
    listed += without_effect(experiment)
    if listed:
        log.warning("keys without effect here: %s", "; ".join(listed))
    return experiment


def without_effect(experiment: Experiment) -> list[str]:
    """Return one line per key of this program's that was set but has no effect."""
    optimizer, evaluator = experiment.optimizer_cfg, experiment.evaluator_cfg
    taken = optimizer.arguments().keys() | {"solver"}
    lines = [
        f"optimizer_cfg.{key}: {optimizer.solver} has no such argument"
        for key in sorted(optimizer.model_fields_set - taken)
    ]
    names = (experiment.trainer_cfg.save_name, type(evaluator).model_fields["save_name"].default)
    if evaluator.save_name not in names:
        lines.append("evaluator_cfg.save_name: trainer_cfg.save_name names the checkpoints")
    if (cfg := experiment.compression) is not None:
        section = f"{experiment.compression_optimizer}_optimizer_cfg"
        lines += [f"{section}.{key}: {reason}" for key, reason in cfg.without_effect().items()]
    return lines


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return list(map(_copied, value)) if isinstance(value, list | tuple) else value


def _place(dotted: str) -> Place:
    return tuple(int(step) if _is_index(step) else step for step in dotted.split("."))


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdecimal()


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *folders, last = dotted.split(".")
    place: Any = values
    for step in folders:
        place = (
            place[_entry(place, step, dotted)]
            if isinstance(place, list)
            else (place.setdefault(step, {}))
        )
        if not isinstance(place, dict | list):
            raise ConfigError(f"override {dotted!r}: {step} is not a section")
    place[_entry(place, last, dotted) if isinstance(place, list) else last] = value


def _drop_other_targets(
    values: Mapping[str, Any], dotted: str, overrides: Mapping[str, Any]
) -> None:
    """If an override is a target of pruning, remove what the section had for another one.

    That is the other targets and, unless a budget is left, the keys that only a budget reads.
    """
    section, _, target = dotted.rpartition(".")
    held = values.get(section)
    if target not in TARGETS or not isinstance(held, dict):
        return
    new = {k: overrides[name] for k in TARGETS if (name := f"{section}.{k}") in overrides}
    if new[target] is not None:
        replaced = {*TARGETS, "latency"} - {target}
    else:
        replaced = {"latency"} if target == "target_latency_ms" else set()
    if all((held | new).get(key) is None for key in BUDGETS if key not in replaced):
        replaced |= WITH_BUDGET.keys()
    _drop(held, section, replaced, overrides)


def _drop_other_bits(values: Mapping[str, Any], dotted: str, overrides: Mapping[str, Any]) -> None:
    """If an override says how many bits to end at, remove what the section had for it before."""
    section, _, target = dotted.rpartition(".")
    held = values.get(section)
    if target not in BIT_TARGETS or not isinstance(held, dict) or overrides[dotted] is None:
        return
    replaced = {*BIT_TARGETS} - {target}
    if target == "target_bits":  # it sets these
        replaced |= {"min_bit_wt", "bit_reduction"}
    _drop(held, section, replaced, overrides)


def _drop(
    held: dict[str, Any], section: str, keys: Iterable[str], overrides: Mapping[str, Any]
) -> None:
    """Remove keys of a section, except those that are overridden themselves."""
    for key in keys:
        if f"{section}.{key}" not in overrides:
            held.pop(key, None)


def _entry(entries: list[Any], step: str, dotted: str) -> int:
    if not _is_index(step) or int(step) >= len(entries):
        raise ConfigError(
            f"override {dotted!r}: {step} is not an entry of a list of {len(entries)}"
        )
    return int(step)


def _explain(error: ValidationError, lines: Mapping[Place, int | None]) -> list[str]:
    """Turn pydantic's report into one line per problem: section, file line, message, value."""
    explained = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"]) or "experiment"
        message = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if problem["type"] != "value_error":
            message += f" (here {value!r})"
        if isinstance(value, str) and is_number(value):
            message += f"; YAML 1.1 reads {value} as text, write {number_as_yaml(value)}"
        line = _line_of(problem["loc"], message, lines)
        explained.append(f"{place}{f' (line {line})' if line else ''}: {message}")
    return explained


def _failed(
    checks: Mapping[Place, Callable[[Any], Any]],
    experiment: Experiment,
    lines: Mapping[Place, int | None],
) -> list[str]:
    """Return one line per check that a value of the experiment fails, as `_explain` does."""
    failed = []
    for place, check in checks.items():
        try:
            check(functools.reduce(getattr, place, experiment))
        except (ValueError, TypeError) as error:
            line = lines.get(place)
            failed.append(f"{'.'.join(place)}{f' (line {line})' if line else ''}: {error}")
    return failed


def _line_of(loc: Place, message: str, lines: Mapping[Place, int | None]) -> int | None:
    """Return the file's line that a problem is about; None if the file does not hold it."""
    unknown = re.match(r"unknown key '(.+?)'", message)
    place: Place = ()
    for step in (*loc, *(unknown.groups() if unknown else ())):
        if (*place, step) in lines:  # pydantic adds steps of its own: the branch of a union
            place = (*place, step)
    return lines.get(place)


def notebook_experiment(namespace: Mapping[str, Any]) -> Experiment:
    """Build the experiment from a notebook's parameters cell.

    Call it as ``notebook_experiment(globals())``.

    Refuses a parameter that no notebook reads; papermill would set it and only warn.

    Raises:
        ConfigError: for an unknown injected parameter, or as `load_experiment` does.
    """
    refuse_unknown(namespace, {"run", "overrides", *RECORD_KEYS, *SECTIONS})
    sections = {name: namespace.get(name) for name in SECTIONS}
    return load_experiment(sections, namespace.get("overrides"))


def refuse_unknown(namespace: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a parameter that papermill injected and the notebook does not read.

    Args:
        namespace: the notebook's ``globals()``.
        known: the parameters that it reads.

    Raises:
        ConfigError: for an unknown parameter; the message has the nearest known name.
    """
    for name in _injected_names(namespace.get("In", ())):
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; {nearest(name, known)}")


def _injected_names(cells: Iterable[str]) -> list[str]:
    """Return the names that papermill's injected cell assigns (it starts ``# Parameters``)."""
    names = []
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            code = compile(cell, "parameters", "exec")
            names += [name for name in code.co_names if name not in names]
    return names
