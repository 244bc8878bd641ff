"""What a resumed run may change: where it runs and what it reports, but not what it computes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbook.config.training_cfg import DERIVED_ARGUMENTS

#: Keys that change no weight. A name that ends in a dot means all keys below it. The entry ``data``
#: compares the sequences themselves, so their folder may have moved.
HARMLESS = (
    "trainer_cfg.save_iter",
    "trainer_cfg.log_iter",
    "trainer_cfg.with_test",
    "trainer_cfg.keep_checkpoints",
    "trainer_cfg.restore_hint",
    "trainer_cfg.restore_ckpt_strict",
    "trainer_cfg.optimizer_reset",
    "trainer_cfg.scheduler_reset",
    "trainer_cfg.find_unused_parameters",
    "trainer_cfg.process_timeout",
    "evaluator_cfg.",
    "data_cfg.num_workers",
    "data_cfg.cache",
    "data_cfg.dataset_root",
    "data_cfg.dataset_partition",
    "data_cfg.dataset_name",
    "data_cfg.frame_size",
    "data_cfg.test_dataset_name",
    "hesso_optimizer_cfg.start_from",
    "geta_optimizer_cfg.start_from",
    "geta_optimizer_cfg.yardstick",
    "device",
    "processes",
)


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
    fixed_length = {was.get(scheduler), now.get(scheduler)} & DERIVED_ARGUMENTS.keys()
    free = HARMLESS if fixed_length else (*HARMLESS, "trainer_cfg.total_iter")
    return [
        Change(key, was.get(key), now.get(key), _matches(key, free))
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


def _matches(key: str, names: tuple[str, ...]) -> bool:
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)
