"""From YAML, a mapping or a notebook's parameters cell to a checked `Study`."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gaitlib.config.base import ConfigError, is_number, nearest
from gaitlib.config.study import SECTIONS, Study
from gaitlib.runs import PARAMS

log = logging.getLogger(__name__)

QUICKSTART = PARAMS / "quickstart.yaml"

#: OpenGait's keys that are accepted and change nothing here, with the reason.
NO_EFFECT = {
    "data_cfg.test_dataset_name": "one data set is trained on and tested",
    "trainer_cfg.sync_BN": "one process has nothing to synchronise",
    "trainer_cfg.find_unused_parameters": "one process has no gradient buckets",
    "evaluator_cfg.save_name": "the stage's folder names the run",
}


#: What a run's config.yaml records beside the sections; ignored when it is read back.
RECORD = ("seed", "device", "versions")


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"key {key!r} stands twice ({key_node.start_mark}): keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a study's sections as plain values.

    Raises:
        ConfigError: if the file is missing, is not YAML (a tab, say), or repeats a key.
    """
    path = Path(path)
    try:
        with path.open() as stream:
            values = yaml.load(stream, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not sections (trainer_cfg: ...)")
    return values


def load_study(
    source: str | Path | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Study:
    """Build a study from a YAML file or a mapping of sections.

    Args:
        source: a file, or sections; None or sections that are all empty mean the quickstart.
        overrides: dotted keys, each replacing one value: ``{"trainer_cfg.total_iter": 10}``;
            entries of a list are numbered from 0: ``{"loss_cfg.0.margin": 0.3}``.

    Raises:
        ConfigError: naming each section, value and what would be right.

    Keys that are OpenGait's and change nothing here are listed in one warning.
    """
    values = dict(source) if isinstance(source, Mapping) else read_yaml(source or QUICKSTART)
    values = {
        key: value
        for key, value in values.items()
        if key not in RECORD and value not in (None, {}, [], "")
    }
    if not values:
        values = read_yaml(QUICKSTART)
    for key, value in (overrides or {}).items():
        _set_dotted(values := _copied(values), str(key), value)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    if lines := without_effect(study):
        log.warning("keys without effect here: %s", "; ".join(lines))
    return study


def without_effect(study: Study) -> list[str]:
    """Return a line for each key that asks for something that changes nothing here."""
    lines = []
    for dotted, reason in NO_EFFECT.items():
        section, key = dotted.split(".")
        cfg = getattr(study, section)
        if key in cfg.model_fields_set and getattr(cfg, key) != type(cfg).model_fields[key].default:
            lines.append(f"{dotted}: {reason}")
    optimizer = study.optimizer_cfg
    taken = optimizer.arguments().keys() | {"solver"}
    lines += [
        f"optimizer_cfg.{key}: {optimizer.solver} has no such argument"
        for key in sorted(optimizer.model_fields_set - taken)
    ]
    return lines


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return list(map(_copied, value)) if isinstance(value, list | tuple) else value


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


def _entry(entries: list[Any], step: str, dotted: str) -> int:
    if not step.isdigit() or int(step) >= len(entries):
        raise ConfigError(f"override {dotted!r}: {step} is no entry of a list of {len(entries)}")
    return int(step)


def _explain(error: ValidationError) -> str:
    """Turn pydantic's report into one line a problem: section, message, value."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"]) or "study"
        message = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if problem["type"] != "value_error":
            message += f" (here {value!r})"
        if isinstance(value, str) and is_number(value):
            message += f"; YAML 1.1 reads {value} as text, write {float(value)!r} with a point"
        lines.append(f"{place}: {message}")
    return "the study cannot run:\n  " + "\n  ".join(lines)


def notebook_study(namespace: Mapping[str, Any]) -> Study:
    """Build the study from a notebook's parameters cell; call it as ``notebook_study(globals())``.

    papermill sets a parameter that no notebook knows with only a warning; here it is refused.

    Raises:
        ConfigError: for an unknown injected parameter, or as `load_study`.
    """
    known = {"run", "overrides", *RECORD, *SECTIONS}
    for name in _injected_names(namespace.get("In", ())):
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; {nearest(name, known)}")
    sections = {name: namespace.get(name) for name in SECTIONS}
    return load_study(sections, namespace.get("overrides"))


def _injected_names(cells: Iterable[str]) -> list[str]:
    """Names that papermill's injected cell assigns (its first line is ``# Parameters``)."""
    names = []
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            code = compile(cell, "parameters", "exec")
            names += [name for name in code.co_names if name not in names]
    return names
