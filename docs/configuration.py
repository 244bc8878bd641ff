"""Write configuration.md, the page of all keys: ``make docs``.

Types, ranges and defaults are those of the sections (pydantic models); the words are those of their
docstrings: a key's entry is a line ``- ``key``: words``, or ``key: words`` below ``Args:``.
"""

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticUndefined

from gaitlib.data.transforms import STEPS
from gaitlib.prune.hesso_settings import WITH_BUDGET
from gaitlib.quantize.bit_settings import ORDERS, bit_keys
from workbook.config import Experiment
from workbook.config.compression_cfg import GetaCfg, HessoCfg
from workbook.config.section import Section, default_of, sections_in
from workbook.config.torch_cfg import OPTIMIZERS, SCHEDULERS
from workbook.config.training_cfg import TransformCfg
from workbook.study import StudyPlan

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

Every key of an experiment's file, with its type, range and default. The sections and their keys are
OpenGait's; what is not is marked, or belongs to the compression. A file is merged over these
defaults. With no file at all, [params/quickstart.yaml](../params/quickstart.yaml) is run, where
every value is written out.

```yaml
compression_optimizer: geta
geta_optimizer_cfg:
  target_macs: 0.25
```

Change one value without a file: `-o geta_optimizer_cfg.target_macs=0.5` on the command line,
`overrides = {"geta_optimizer_cfg.target_macs": 0.5}` in a notebook. An unknown key is refused, and
the message gives the nearest known one. YAML 1.1 reads `1e-3` as text: write `1.0e-3`.

[Compression](compression.md) explains the keys of the last two sections by what they are for.

*This page is written by `make docs`; a test compares it with the code.*
"""
STUDIES = """\
## A study's file

Another kind of file, for `gaitlib study`. [Studies](studies.md) explains it.
"""
WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "",  # leave the key out, or write null
}
#: A range that only says that a number is not absurdly large is left out.
TELLING = 1e4


def sections(root: type[Section]) -> Iterator[tuple[str, type]]:
    """Yield every section that a file can have, with its dotted name, in the order of the keys."""
    for name, field in root.model_fields.items():
        for inner in sections_in(field.annotation):
            yield name, inner
            yield from ((f"{name}.{below}", model) for below, model in sections(inner))


def words_of_keys(section: type) -> dict[str, str]:
    """Return each key's words from the docstrings of a section and of those it extends."""
    found = {"type": "chooses this class"}
    for model in reversed(section.__mro__):
        document = (inspect.getdoc(model) if "__doc__" in vars(model) else None) or ""
        items = []
        for entry in re.split(r"\n(?=\s*- )", document):
            if item := re.match(r"\s*- ((?:``\w+``,?\s*)+):(.*)", entry, re.DOTALL):
                items.append((item[1], re.split(r"\n\n|\n(?=\S)", item[2])[0]))
        for block in re.findall(r"^(?:Args|Attributes):\n((?: .*\n?)+)", document, re.MULTILINE):
            items += re.findall(r"^    (\w[\w, ]*):( .*(?:\n {5,}.*)*)", block, re.MULTILINE)
        for keys, text in items:
            found |= dict.fromkeys(re.findall(r"\w+", keys), " ".join(text.split()))
    return {key: said for key, said in found.items() if key in section.model_fields}


def type_words(schema: Mapping[str, Any]) -> str:
    """Return the type and range of a value in words, from its JSON schema."""
    if "$ref" in schema or schema.get("type") == "object" or "discriminator" in schema:
        return "a section" if "additionalProperties" not in schema else "names and values"
    if "anyOf" in schema or "oneOf" in schema:
        parts = [type_words(part) for part in schema.get("anyOf", schema.get("oneOf"))]
        return " or ".join(dict.fromkeys(filter(None, parts)))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"]).replace('"', "")
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`".replace('"', "")
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return f"two of: {type_words(schema['prefixItems'][0])}"
        return f"list of: {type_words(schema['items'])}"
    return WORDS[schema["type"]] + _range_words(schema)


def _range_words(schema: Mapping[str, Any]) -> str:
    if schema["type"] not in ("integer", "number"):
        return ""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum", schema.get("gt"))
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    ends = [f"above {above:g}" if above is not None else "", f"from {low:g}" if low else ""]
    if low == 0 and not (high is not None and high <= TELLING) and below is None:
        ends.append("0 or more")
    elif low == 0:
        ends.append("from 0")
    ends.append(f"to {high:g}" if high is not None and high <= TELLING else "")
    ends.append(f"below {below:g}" if below is not None and below <= TELLING else "")
    said = " ".join(filter(None, ends))
    return f", {said}" if said else ""


def default_words(section: type, key: str) -> str:
    """Return a key's default in words: "required", a value, or which other keys set it."""
    field = section.model_fields[key]
    early, late = ({k: default_of(ORDERS[o], k) for k in bit_keys(o)} for o in ORDERS)
    early["order"] = "qasso"
    if section is GetaCfg and key in early:
        differs = key in late and late[key] != early[key]
        also = f"; with `order: float_first` {_value(late[key])}" if differs else ""
        return _value(early[key]) + also
    if section is GetaCfg and key in late:
        return f"{_value(late[key])}, with `order: float_first`"
    if key in WITH_BUDGET:
        return f"{_value(WITH_BUDGET[key])} with a budget"
    return "" if isinstance(_plain(field.default), dict) else _value(field.default)


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return "none" if value in (None, "") else f"`{json.dumps(_plain(value))}`".replace('"', "")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def table(section: type) -> str:
    """Return the Markdown table of a section's keys.

    Raises:
        KeyError: if the docstring has no entry for a key.
    """
    schema = section.model_json_schema()["properties"]
    said = words_of_keys(section)
    rows = ["| key | value | default | what it does |", "|---|---|---|---|"]
    extended = HessoCfg.model_fields if section is GetaCfg else {}
    for key in section.model_fields:
        if key not in extended:
            words = _as_markdown(said[key]).removesuffix(".")
            cells = f"`{key}`", type_words(schema[key]), default_words(section, key), words
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _as_markdown(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|")


def _heading(section: type) -> str:
    first = _as_markdown(" ".join(inspect.getdoc(section).partition("\n\n")[0].split()))
    return f"{first} (The keys above, and these.)" if section is GetaCfg else first


def table_of_classes(key: str, classes: Mapping[type, Mapping[str, Any]]) -> str:
    """Return the Markdown table of the classes that a key chooses from.

    Args:
        key: holds the name of one.
        classes: the arguments of each, by name, and their defaults.
    """
    rows = [f"| `{key}` | arguments and defaults | what it does |", "|---|---|---|"]
    for of, arguments in classes.items():
        said = [f"`{name}`: {_value(default)}" for name, default in arguments.items()]
        rows.append(f"| `{of.__name__}` | {', '.join(said) or 'none'} | {_heading(of)} |")
    return "\n".join(rows)


def _defaults(of: type) -> dict[str, Any]:
    return {name: argument.default for name, argument in inspect.signature(of).parameters.items()}


def torch_classes(
    module: types.ModuleType, cfgs: Mapping[str, type[Section]]
) -> dict[type, dict[str, Any]]:
    """Return the classes that sections are named after, with the arguments that a file may give."""
    found: dict[type, dict[str, Any]] = {}
    for name, cfg in cfgs.items():
        of = getattr(module, name)
        given = {key: field.default for key, field in cfg.model_fields.items()}
        found[of] = {
            key: given[key] if given[key] is not None else default
            for key, default in _defaults(of).items()
            if key in given
        }
    return found


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, f"## The sections\n\n{table(Experiment)}\n"]
    optimizers = torch_classes(torch.optim, OPTIMIZERS)
    schedulers = torch_classes(torch.optim.lr_scheduler, SCHEDULERS)
    tables = {
        "optimizer_cfg": lambda cfg: table_of_classes("solver", optimizers),
        "scheduler_cfg": lambda cfg: table_of_classes("scheduler", schedulers),
    }
    named: set[type | str] = set()
    for name, section in sections(Experiment):
        if section in named or name in named & tables.keys():
            continue
        named |= {name, section}
        kind = section.model_fields.get("type")
        title = f"{name}, {kind.default}" if kind and section is not TransformCfg else name
        level = "##" if "." not in name else "###"
        body = tables.get(name, table)(section)
        parts.append(f"{level} {title}\n\n{_heading(section)}\n\n{body}\n")
        if section is TransformCfg:
            steps = {step: _defaults(step) for step in STEPS.values()}
            parts.append(table_of_classes("type", steps) + "\n")
    parts.append(f"{STUDIES}\n{table(StudyPlan)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
