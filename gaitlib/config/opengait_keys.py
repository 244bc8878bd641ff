"""What OpenGait's files say beyond the sections' own keys: listed where it changes nothing here.

A key of OpenGait's that asks for something else than this program does is refused with the reason;
a key that neither knows is a typing mistake, which the sections refuse.
"""

from collections.abc import Mapping
from typing import Any

from gaitlib.config.training_cfg import SCHEDULERS, TrainerCfg, scheduler_arguments

_ALL_FRAMES = "'all_ordered' reads every frame"
_CUT = "the cut follows from the width of the frames"
_TORCH_CHOOSES = "torch chooses its own implementation"

#: Keys that change nothing here, with the reason; entries of lists share their list's name.
NO_EFFECT = {
    "data_cfg.test_dataset_name": "one data set is trained on and tested",
    "optimizer_cfg.foreach": _TORCH_CHOOSES,
    "optimizer_cfg.fused": _TORCH_CHOOSES,
    "scheduler_cfg.verbose": "the learning rate stands in history.csv",
    "trainer_cfg.transform.img_w": _CUT,
    "trainer_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.transform.img_w": _CUT,
    "evaluator_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.rerank": "evaluate_indoor_dataset ranks once",
    "evaluator_cfg.sampler.batch_shuffle": "accuracy does not depend on the order of sequences",
    "evaluator_cfg.sampler.frames_num_fixed": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_num_min": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_num_max": _ALL_FRAMES,
    "evaluator_cfg.sampler.frames_skip_num": _ALL_FRAMES,
}

#: Keys that are listed while they are off, and refused with the reason when they are on.
UNSUPPORTED = {
    "data_cfg.self_supervised": "a class is a subject here; leave it out",
    "optimizer_cfg.maximize": "training minimises the loss; leave it out",
    "trainer_cfg.fix_layers": "BatchNorm alone can be kept as it is; write fix_BN: true",
    "trainer_cfg.sampler.points_in_use": "silhouettes are the one input; leave it out",
    "evaluator_cfg.sampler.points_in_use": "silhouettes are the one input; leave it out",
}

#: Arguments of schedulers that follow from another key, and change nothing if they say the same.
FOLLOWS = {
    "scheduler_cfg.T_max": "trainer_cfg.total_iter",
    "scheduler_cfg.total_steps": "trainer_cfg.total_iter",
    "scheduler_cfg.max_lr": "optimizer_cfg.lr",
}


def set_apart(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Part the sections from what OpenGait's files say beyond them.

    Args:
        values: the sections as a file gives them.

    Returns:
        The sections that are left, a line for each key that changes nothing here, and a line for
        each key that asks for something that cannot be done.
    """
    listed: dict[str, None] = {}  # in order, each once
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
    if dotted in UNSUPPORTED:
        return "off, as it always is here"
    section, _, key = dotted.partition(".")
    if dotted in FOLLOWS and item == _value(values, FOLLOWS[dotted]):
        return f"it follows from {FOLLOWS[dotted]}"
    if section == "scheduler_cfg" and key != "scheduler":
        chosen = _value(values, "scheduler_cfg.scheduler") or "MultiStepLR"
        others = {name for scheduler in SCHEDULERS for name in scheduler_arguments(scheduler)}
        if chosen in SCHEDULERS and key in others - scheduler_arguments(chosen):
            return f"{chosen} has no such argument"
    return None


def _value(values: Mapping[str, Any], dotted: str) -> Any:
    """Return what the sections, or else the defaults, say."""
    section, key = dotted.split(".")
    given = values.get(section)
    if isinstance(given, Mapping) and key in given:
        return given[key]
    return TrainerCfg().total_iter if dotted == "trainer_cfg.total_iter" else None
