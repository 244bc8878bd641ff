"""OpenGait's keys that the sections lack: listed if they have no effect, refused if they would.

A key that asks for something this program cannot do is refused with the reason. A key that neither
OpenGait nor this program knows is a typing mistake, which the sections refuse.
"""

from collections.abc import Mapping
from typing import Any

from workbook.config.training_cfg import SCHEDULERS, TrainerCfg, scheduler_arguments

_ALL_FRAMES = "'all_ordered' reads every frame"
_CUT = "the cut follows from the width of the frames"
_TORCH_CHOOSES = "torch chooses its own implementation"

#: Keys without effect here, with the reason. The entries of a list share the list's name.
NO_EFFECT = {
    "optimizer_cfg.foreach": _TORCH_CHOOSES,
    "optimizer_cfg.fused": _TORCH_CHOOSES,
    "scheduler_cfg.verbose": "history.csv has the learning rate",
    "trainer_cfg.transform.img_w": _CUT,
    "trainer_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.transform.img_w": _CUT,
    "evaluator_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.sampler.batch_shuffle": "accuracy does not depend on the order of sequences",
    "evaluator_cfg.sampler.frames_num_fixed": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_num_min": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_num_max": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_skip_num": _ALL_FRAMES,
}

#: Keys that are listed when off, and refused with the reason when on.
UNSUPPORTED = {
    "data_cfg.self_supervised": "a class is a subject here; leave it out",
    "optimizer_cfg.maximize": "training minimises the loss; leave it out",
    "trainer_cfg.fix_layers": "only BatchNorm can be frozen; write fix_BN: true",
    "trainer_cfg.sampler.points_in_use": "silhouettes are the only input; leave it out",
    "evaluator_cfg.sampler.points_in_use": "silhouettes are the only input; leave it out",
}

#: A key of the evaluator that only this evaluation function reads.
RERANK, RERANKS = "evaluator_cfg.rerank", "HID_submission"

#: Arguments of schedulers that are copied from another key. Giving the same value has no effect.
COPIED_FROM = {
    "scheduler_cfg.T_max": "trainer_cfg.total_iter",
    "scheduler_cfg.total_steps": "trainer_cfg.total_iter",
    "scheduler_cfg.max_lr": "optimizer_cfg.lr",
}


def split_off_unused(
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Split off OpenGait's keys that this program does not read.

    Args:
        values: the sections as a file gives them.

    Returns:
        The sections without those keys, one line per key without effect, and one line per key
        that asks for something this program cannot do.
    """
    listed: dict[str, None] = {}  # an ordered set
    refused: list[str] = []

    def keep(value: Any, place: str) -> Any:
        if isinstance(value, list | tuple):
            return [keep(item, place) for item in value]
        if not isinstance(value, Mapping):
            return value
        kept = {}
        for key, item in value.items():
            dotted = f"{place}.{key}" if place else str(key)
            if dotted in UNSUPPORTED and item:
                refused.append(f"{dotted} is {item!r}: {UNSUPPORTED[dotted]}")
            elif reason := _why_without_effect(dotted, item, values):
                listed[f"{dotted}: {reason}"] = None
            else:
                kept[key] = keep(item, dotted)
        return kept

    return keep(values, ""), list(listed), refused


def _why_without_effect(dotted: str, item: Any, values: Mapping[str, Any]) -> str | None:
    if dotted in NO_EFFECT:
        return NO_EFFECT[dotted]
    if dotted == RERANK and not _value(values, "evaluator_cfg.protocol"):
        chosen = _value(values, "evaluator_cfg.eval_func")
        return None if chosen == RERANKS else f"only {RERANKS} reads it"
    if dotted in UNSUPPORTED:
        return "off, as it always is here"
    section, _, key = dotted.partition(".")
    if dotted in COPIED_FROM and item == _value(values, COPIED_FROM[dotted]):
        return f"it follows from {COPIED_FROM[dotted]}"
    if section == "scheduler_cfg" and key != "scheduler":
        chosen = _value(values, "scheduler_cfg.scheduler") or "MultiStepLR"
        others = {name for scheduler in SCHEDULERS for name in scheduler_arguments(scheduler)}
        if chosen in SCHEDULERS and key in others - scheduler_arguments(chosen):
            return f"{chosen} has no such argument"
    return None


def _value(values: Mapping[str, Any], dotted: str) -> Any:
    """Return a key's value in the sections, or else its default."""
    section, key = dotted.split(".")
    given = values.get(section)
    if isinstance(given, Mapping) and key in given:
        return given[key]
    return TrainerCfg().total_iter if dotted == "trainer_cfg.total_iter" else None
