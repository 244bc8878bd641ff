"""Read YAML into plain values. Only this file imports a YAML library.

It uses PyYAML, because OpenGait and ``papermill -f`` read the same files with it. ruamel.yaml gives
other values for ``1e-3``, ``y``, ``on`` or ``036``, depending on its YAML version. It would need
PyYAML's patterns, and would save only one check here, the one for repeated keys.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from workbook.config.section import ConfigError

#: The path to a value: keys and list indices, outermost first.
Place = tuple[str | int, ...]

#: The most values that a file may hold, counting what an alias repeats, and the most levels.
MAX_VALUES, MAX_LEVELS = 100_000, 50

INT, FLOAT, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's loader that also refuses repeated keys and numbers in base 8 or 60: 036, 1:30."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping and refuse repeated keys, except those that ``<<`` merges in."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the base class refuses it
            key = "<<" if key_node.tag == MERGE else self.construct_object(key_node)
            if key in seen:
                _refuse(f"key {key!r} appears twice: keep one", key_node)
            seen.add(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a node's value; refuse what only looks like a number or date: 0x_, 2026-13-01."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            _refuse(f"{node.value} is not a valid {kind}: fix it, or quote '{node.value}'", node)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number; refuse one that looks decimal but is in base 8 or 60."""
        text, is_int = node.value, node.tag == INT
        number = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        if ":" in text:
            base, right = "base 60", number
        elif is_int and re.fullmatch(r"[-+]?0[0-7_]+", text):
            base, right = "octal", int(text.replace("_", ""))
        else:
            return number
        _refuse(f"{text} is {number} ({base}) to YAML: write {right}, or quote '{text}'", node)


_StrictLoader.add_constructor(INT, _StrictLoader.construct_number)
_StrictLoader.add_constructor(FLOAT, _StrictLoader.construct_number)


def _refuse(problem: str, node: yaml.Node) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a file's sections as plain values.

    Raises:
        ConfigError: if the file is missing, is not YAML (indented with a tab, for example),
            repeats a key, or holds a number that YAML reads as another one. The message has the
            file and the line.
    """
    return read_with_lines(Path(path))[0]


def read_with_lines(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """Read a file's sections and the line of every key and entry; raises as `read_yaml` does."""
    try:
        values, node = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        problem = error.problem or ""
        if not isinstance(error, yaml.constructor.ConstructorError):
            is_tab = "'\\t'" in problem
            problem = f"not YAML: {'a tab; indent with spaces' if is_tab else problem}"
        raise ConfigError(f"{path}, line {error.problem_mark.line + 1}: {problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {_in_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not sections (trainer_cfg: ...)")
    return values, dict(_lines(node))


def read_value(text: str) -> Any:
    """Read one value as YAML, and also ``1e-3`` as a number.

    Raises:
        ConfigError: as `read_yaml` does.
    """
    try:
        value, _ = _parse(text)
    except (yaml.YAMLError, RecursionError) as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else _in_one_line(error)
        raise ConfigError(f"{text!r:.60} is not a YAML value: {problem}") from error
    return float(text) if isinstance(value, str) and is_number(text) else value


def _parse(text: str) -> tuple[Any, yaml.Node | None]:
    loader = _StrictLoader(text)
    node = loader.get_single_node()
    if node is not None:
        _count(node, {}, 0)
    return (None if node is None else loader.construct_document(node)), node


def _in_one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested in more than {MAX_LEVELS} levels"
    return " ".join(str(error).split())


def _count(node: yaml.Node, known: dict[int, int], level: int) -> int:
    """Return how many values a node holds, those that aliases repeat each time.

    A few aliases of aliases hold exponentially many, and one of itself endlessly many.

    Args:
        node: of a file.
        known: the counts of nodes that are already counted, and 0 for those that are being counted.
        level: how deep the node is.

    Raises:
        ConstructorError: for more than MAX_VALUES or MAX_LEVELS, or a node inside of itself.
    """
    if id(node) in known:
        if not known[id(node)]:
            _refuse("an alias inside of what it stands for: write the values", node)
        return known[id(node)]
    if level > MAX_LEVELS:
        _refuse(f"nested in more than {MAX_LEVELS} levels", node)
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = 1 + sum(_count(part, known, level + 1) for part in inner)
    if known[id(node)] > MAX_VALUES:
        _refuse(f"more than {MAX_VALUES} values, most of them by aliases: write fewer", node)
    return known[id(node)]


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


def is_number(text: Any) -> bool:
    """Return whether a value is a number or the text of one, such as ``1e-3``."""
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def number_as_yaml(text: str) -> str:
    """Write a number so that YAML 1.1 reads it as one: ``1e-10`` becomes ``1.0e-10``."""
    number = float(text)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return yaml.representer.SafeRepresenter().represent_float(number).value
