"""From YAML, a mapping or a notebook's parameters cell to a checked `Experiment`."""

import logging
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gaitlib.config.experiment import SECTIONS, Experiment
from gaitlib.config.opengait_keys import set_apart
from gaitlib.config.section import ConfigError, is_number, nearest, number_as_yaml
from gaitlib.system.files import PARAMS

log = logging.getLogger(__name__)

QUICKSTART = PARAMS / "quickstart.yaml"

#: What a run's config.yaml records beside the sections; ignored when it is read back.
RECORD = ("seed", "device", "processes", "data", "versions")

#: Where a value stands: keys, and numbers of entries, from the outermost in.
Place = tuple[str | int, ...]


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 that refuses what means something else than it looks: repeated keys, 036, 1:30."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # the base class refuses it
            if key in seen:
                _refuse(f"key {key!r} stands twice: keep one", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number, unless its digits are not decimal ones without saying so."""
        text, number = node.value, self.construct_yaml_int(node)
        if ":" in text:
            _refuse(
                f"{text} is {number} (base 60) to YAML: write {number}, or quote '{text}'", node
            )
        if re.fullmatch(r"[-+]?0[0-7_]+", text):
            decimal = int(text)
            _refuse(f"{text} is {number} (octal) to YAML: write {decimal}, or quote '{text}'", node)
        return number

    def construct_plain_float(self, node: yaml.ScalarNode) -> float:
        """Read a number with a point, unless it is in base 60."""
        text, number = node.value, self.construct_yaml_float(node)
        if ":" in text:
            _refuse(
                f"{text} is {number} (base 60) to YAML: write {number}, or quote '{text}'", node
            )
        return number


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_plain_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_plain_float)


def _refuse(problem: str, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read an experiment's sections as plain values.

    Raises:
        ConfigError: if the file is missing, is not YAML (a tab, say), repeats a key, or holds a
            number that YAML reads as another one. The message names the file and the line.
    """
    return _read(Path(path))[0]


def read_value(text: str) -> Any:
    """Read a value as it stands in an experiment's file, or a number such as ``1e-3``.

    Raises:
        ConfigError: as `read_yaml`.
    """
    try:
        value = yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{text!r} is no value: {error.problem}") from error
    return float(text) if isinstance(value, str) and is_number(text) else value


def _read(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """Return the sections, and the line of every key and entry."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            values = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{path}, line {error.problem_mark.line + 1}: {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        is_tab = "'\\t'" in (error.problem or "")
        problem = "a tab; indent with spaces" if is_tab else error.problem
        place = f"{path}, line {error.problem_mark.line + 1}"
        raise ConfigError(f"{place}: not YAML: {problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not sections (trainer_cfg: ...)")
    return values, dict(_lines(node))


def _lines(node: yaml.Node, place: Place = ()) -> Iterable[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(number, value, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, where, value in entries:
        yield (*place, name), where.start_mark.line + 1
        yield from _lines(value, (*place, name))


def load_experiment(
    source: str | Path | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Experiment:
    """Build an experiment from a YAML file or a mapping of sections.

    Args:
        source: a file, or sections; None or sections that are all empty mean the quickstart.
        overrides: dotted keys, each replacing one value: ``{"trainer_cfg.total_iter": 10}``;
            entries of a list are numbered from 0: ``{"loss_cfg.0.margin": 0.3}``.

    Raises:
        ConfigError: naming each section, value and what would be right.

    Keys that are OpenGait's and change nothing here are listed in one warning.
    """
    lines: dict[Place, int | None] = {}
    if isinstance(source, Mapping):
        values = dict(source)
    else:
        values, lines = _read(Path(source or QUICKSTART))
    values = {
        key: value
        for key, value in values.items()
        if key not in RECORD and value not in (None, {}, [], "")
    }
    if not values:
        values = read_yaml(QUICKSTART)
    for key, value in (overrides or {}).items():
        _set_dotted(values := _copied(values), str(key), value)
        changed = _place(str(key))
        lines = {p: None if p[: len(changed)] == changed else line for p, line in lines.items()}
        lines[changed] = None  # not the file's
    values, listed, refused = set_apart(values)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        refused += _explain(error, lines)
    if refused:
        name = f" {source}" if isinstance(source, str | Path) else ""
        raise ConfigError("\n  ".join([f"the experiment{name} cannot run:", *refused]))
    listed += without_effect(experiment)
    if listed:
        log.warning("keys without effect here: %s", "; ".join(listed))
    return experiment


def without_effect(experiment: Experiment) -> list[str]:
    """Return a line for each key of our own that asks for something that changes nothing."""
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
    return tuple(int(step) if step.isdigit() else step for step in dotted.split("."))


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


def _explain(error: ValidationError, lines: Mapping[Place, int | None]) -> list[str]:
    """Turn pydantic's report into one line a problem: section, line of the file, message, value."""
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


def _line_of(loc: Place, message: str, lines: Mapping[Place, int | None]) -> int | None:
    """Return where the file says what a problem is about; None if it says nothing of it."""
    unknown = re.match(r"unknown key '(.+?)'", message)
    place: Place = ()
    for step in (*loc, *(unknown.groups() if unknown else ())):
        if (*place, step) in lines:  # the others are pydantic's: the branch of a union
            place = (*place, step)
    return lines.get(place)


def notebook_experiment(namespace: Mapping[str, Any]) -> Experiment:
    """Build the experiment from a notebook's parameters cell; call it as ``notebook_experiment(globals())``.

    papermill sets a parameter that no notebook knows with only a warning; here it is refused.

    Raises:
        ConfigError: for an unknown injected parameter, or as `load_experiment`.
    """
    refuse_unknown(namespace, {"run", "overrides", *RECORD, *SECTIONS})
    sections = {name: namespace.get(name) for name in SECTIONS}
    return load_experiment(sections, namespace.get("overrides"))


def refuse_unknown(namespace: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a parameter of a notebook that papermill sets and the notebook does not read.

    Raises:
        ConfigError: with the nearest name that it does read.
    """
    for name in _injected_names(namespace.get("In", ())):
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; {nearest(name, known)}")


def _injected_names(cells: Iterable[str]) -> list[str]:
    """Names that papermill's injected cell assigns (its first line is ``# Parameters``)."""
    names = []
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            code = compile(cell, "parameters", "exec")
            names += [name for name in code.co_names if name not in names]
    return names
