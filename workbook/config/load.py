"""Build a checked `Experiment` from YAML, a mapping or a notebook's parameters cell."""

import contextlib
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gaitlib.prune.hesso_settings import BUDGETS, TARGETS, WITH_BUDGET
from gaitlib.quantize.bit_settings import BIT_TARGETS
from workbook.config.experiment import SECTIONS, Experiment
from workbook.config.opengait_keys import split_off_unused
from workbook.config.run_changes import RECORD_KEYS
from workbook.config.section import ConfigError, nearest
from workbook.config.yaml_reader import Place, is_number, number_as_yaml, read_with_lines, read_yaml
from workbook.system.folders import PARAMS

log = logging.getLogger(__name__)

QUICKSTART = PARAMS / "quickstart.yaml"


def load_experiment(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Experiment:
    """Build an experiment from a YAML file or a mapping of sections.

    Args:
        source: a file, or sections. None, or sections that are all empty, mean the quickstart.
        overrides: dotted keys, each replacing one value: ``{"trainer_cfg.total_iter": 10}``.
            List entries count from 0: ``{"loss_cfg.0.margin": 0.3}``. A target of pruning also
            replaces the other targets of its section: see `TARGETS` and `BIT_TARGETS`.

    Raises:
        ConfigError: if the experiment is invalid; the message lists each section, value and fix.

    One warning lists the keys that have no effect here.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(
            f"overrides is {overrides!r}: write a dictionary of dotted keys; papermill passes one "
            "with -y '{overrides: {trainer_cfg.total_iter: 10}}'"
        )
    lines: dict[Place, int] = {}
    if isinstance(source, Mapping):
        values = source
    else:
        values, lines = read_with_lines(Path(source or QUICKSTART))
    values = {
        key: _copied(value)
        for key, value in values.items()
        if key not in RECORD_KEYS and value not in (None, {}, [], "")
    }
    if not values:
        values = read_yaml(QUICKSTART)
    for key, value in (overrides or {}).items():
        place = _set_dotted(values, str(key), _copied(value))
        _drop_replaced(values, str(key), overrides)
        # the value is no longer the file's
        lines = {p: line for p, line in lines.items() if p[: len(place)] != place}
    values, listed, refused = split_off_unused(values)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        refused += explain(error, values, lines)
    if refused:
        name = f" {source}" if isinstance(source, str | Path) else ""
        raise ConfigError("\n  ".join([f"the experiment{name} cannot run:", *refused]))
    if (cfg := experiment.compression) is not None:
        section = f"{experiment.compression_optimizer}_optimizer_cfg"
        listed += [f"{section}.{key}: {reason}" for key, reason in cfg.without_effect().items()]
    if listed:
        log.warning("keys without effect here: %s", "; ".join(listed))
    return experiment


def _copied(value: Any) -> Any:
    """Return nested dictionaries and lists of their own, that an override may change."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return list(map(_copied, value)) if isinstance(value, list | tuple) else value


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> Place:
    """Set the value at a dotted key, and return its place."""
    held: Any = values
    place: Place = ()
    *folders, last = dotted.split(".")
    for step in folders:
        place = (*place, _step_into(held, step, dotted))
        held = held[place[-1]] if isinstance(held, list) else held.setdefault(step, {})
        if not isinstance(held, dict | list):
            raise ConfigError(f"override {dotted!r}: {step} is not a section")
    place = (*place, _step_into(held, last, dotted))
    held[place[-1]] = value
    return place


def _step_into(held: dict[str, Any] | list[Any], step: str, dotted: str) -> str | int:
    """Return the key, or the number of the entry, that a part of a dotted key names."""
    if not isinstance(held, list):
        return step
    if not (step.isascii() and step.isdecimal() and int(step) < len(held)):
        raise ConfigError(f"override {dotted!r}: {step} is not an entry of a list of {len(held)}")
    return int(step)


def _drop_replaced(values: dict[str, Any], dotted: str, overrides: Mapping[str, Any]) -> None:
    """If an override is a target of pruning or of bits, remove what its section had for another.

    For pruning that is also ``latency``, and, unless a budget is left, what only a budget reads.
    Keys that are overridden themselves stay.
    """
    section, _, target = dotted.rpartition(".")
    held, is_given = values.get(section), overrides.get(dotted) is not None
    if not isinstance(held, dict):
        return
    replaced: set[str] = set()
    if target in TARGETS:
        if is_given:
            replaced = {*TARGETS, "latency"} - {target}
        elif target == "target_latency_ms":
            replaced = {"latency"}
        left = {key: overrides.get(f"{section}.{key}", held.get(key)) for key in BUDGETS}
        if all(left[key] is None for key in BUDGETS if key not in replaced):
            replaced |= WITH_BUDGET.keys()
    elif target in BIT_TARGETS and is_given:
        replaced = {*BIT_TARGETS} - {target}
        if target == "target_bits":  # it sets these
            replaced |= {"min_bit_wt", "bit_reduction"}
    for key in replaced:
        if f"{section}.{key}" not in overrides:
            held.pop(key, None)


def explain(
    error: ValidationError,
    values: Mapping[str, Any],
    lines: Mapping[Place, int],
    whole: str = "experiment",
) -> list[str]:
    """Turn pydantic's report into one line per problem: key, file line, message, value.

    Args:
        error: of validating ``values``.
        values: what a file holds.
        lines: of the file's keys and entries.
        whole: the name of a problem that no single key has.
    """
    explained = []
    for problem in error.errors(include_url=False):
        held, place = values, ()
        for step in problem["loc"]:  # pydantic adds steps of its own: the branch of a union
            with contextlib.suppress(LookupError, TypeError):
                held, place = held[step], (*place, step)
        message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
        where = place
        if unknown := re.match(r"unknown key '(.+?)'", message):
            where = (*place, *unknown.groups())
        if problem["type"] == "missing" and place[-1:] != problem["loc"][-1:]:
            place = (*place, problem["loc"][-1])
        if problem["type"] != "value_error":
            message += f" (here {value!r})"
        if isinstance(value, str) and is_number(value):
            message += f"; YAML 1.1 reads {value} as text, write {number_as_yaml(value)}"
        name, line = ".".join(map(str, place)) or whole, lines.get(where)
        explained.append(f"{name} (line {line}): {message}" if line else f"{name}: {message}")
    return explained


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
    for cell in namespace.get("In", ()):
        if cell.startswith("# Parameters\n"):  # papermill's
            for name in compile(cell, "parameters", "exec").co_names:
                if name not in known:
                    raise ConfigError(f"unknown parameter {name!r}; {nearest(name, known)}")
