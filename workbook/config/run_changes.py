"""What a resumed run may change: where it runs and what it reports, but not what it computes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from workbook.config.experiment import Experiment
from workbook.config.section import Harmless, sections_in
from workbook.config.torch_cfg import FIXED_LENGTH

#: Further entries of a run's config.yaml, ignored when it is read back.
RECORD_KEYS = ("seed", "device", "processes", "data", "versions")


def harmless_keys(to: str, section: type[BaseModel] = Experiment) -> Iterator[str]:
    """Yield the dotted keys of a section that are marked `Harmless`.

    A key stands for all below it. The entry ``data`` of a record compares the sequences themselves,
    so that their folder may move.

    Args:
        to: ``weights`` or ``results``.
        section: that holds them.
    """
    for key, field in section.model_fields.items():
        marks = [mark.to for mark in field.metadata if isinstance(mark, Harmless)]
        if {to, "results"} & {*marks}:
            yield key
        else:
            for inner in sections_in(field.annotation):
                yield from (f"{key}.{below}" for below in harmless_keys(to, inner))


@dataclass(frozen=True)
class Change:
    """One key whose value differs between a checkpoint's run and this one.

    Attributes:
        key: dotted; list entries count from 0.
        saved: the value in the checkpoint; None if it lacks the key.
        present: the value in this run; None if it lacks the key.
        harmless: whether the key changes no weight.
    """

    key: str
    saved: Any
    present: Any
    harmless: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.saved!r} in the checkpoint, {self.present!r} here"


def compare_records(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[Change]:
    """Compare the settings of a checkpoint's run with this run's, key by key.

    ``trainer_cfg.total_iter`` is harmless unless the scheduler is computed from it.

    Args:
        saved: the checkpoint's `Experiment.sections()` and further entries, plain values.
        present: the same of this run. A key that one of the two lacks counts as None.

    Returns:
        The differences, sorted by key.
    """
    was, now = dict(_flatten(saved)), dict(_flatten(present))
    scheduler = "scheduler_cfg.scheduler"
    fixed_length = {was.get(scheduler), now.get(scheduler)} & {*FIXED_LENGTH}
    free = {*harmless_keys("weights"), "device", "processes"}
    if not fixed_length:
        free.add("trainer_cfg.total_iter")
    return [
        Change(key, was.get(key), now.get(key), any(f"{key}.".startswith(f"{k}.") for k in free))
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a record; the order of its keys does not matter."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flatten(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of nested mappings and its value; a list of numbers is one value."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        items = enumerate(value)
    else:
        yield place, list(value) if isinstance(value, tuple) else value
        return
    for key, item in items:
        yield from _flatten(item, f"{place}.{key}" if place else str(key))
