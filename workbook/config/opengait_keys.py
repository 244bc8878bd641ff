"""OpenGait's keys that the sections lack: listed if they have no effect, refused if they would.

A key that asks for something this program cannot do is refused with the reason. A key that neither
OpenGait nor this program knows is a typing mistake, which the sections refuse.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch

from workbook.config.torch_cfg import OPTIMIZERS, SCHEDULERS
from workbook.config.training_cfg import TrainerCfg

_ALL_FRAMES = "'all_ordered' reads every frame"
_CUT = "the cut follows from the width of the frames"
_TORCH_CHOOSES = "torch chooses its own implementation"
_SILHOUETTES = "silhouettes are the only input; leave it out"

#: Keys without effect here, with the reason. The entries of a list share the list's name.
NO_EFFECT = {
    "optimizer_cfg.foreach": _TORCH_CHOOSES,
    "optimizer_cfg.fused": _TORCH_CHOOSES,
    "scheduler_cfg.verbose": "history.csv has the learning rate",
    "trainer_cfg.transform.img_w": _CUT,
    "trainer_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.transform.img_w": _CUT,
    "evaluator_cfg.transform.trf_cfg.img_w": _CUT,
    "evaluator_cfg.save_name": "trainer_cfg.save_name names the checkpoints",
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
    "trainer_cfg.sampler.points_in_use": _SILHOUETTES,
    "evaluator_cfg.sampler.points_in_use": _SILHOUETTES,
}

#: Keys that have one value here. Files may say it.
ONE_VALUE = {
    "trainer_cfg.sampler.type": "TripletSampler",
    "evaluator_cfg.sampler.type": "InferenceSampler",
    "evaluator_cfg.sampler.sample_type": "all_ordered",
}

#: A key of the evaluator that only this evaluation function reads.
RERANK, RERANKS = "evaluator_cfg.rerank", "HID_submission"

#: Arguments of schedulers that follow from another key, which they may only repeat.
COPIED_FROM = {
    "scheduler_cfg.T_max": "trainer_cfg.total_iter",
    "scheduler_cfg.total_steps": "trainer_cfg.total_iter",
    "scheduler_cfg.max_lr": "optimizer_cfg.lr",
}

DEFAULTS = {"trainer_cfg.total_iter": TrainerCfg.model_fields["total_iter"].default}

#: The key that chooses a class of torch's, and the arguments of each.
ARGUMENTS = {
    section: (key, {name: {*signature(getattr(module, name)).parameters} for name in names})
    for section, key, module, names in (
        ("optimizer_cfg", "solver", torch.optim, OPTIMIZERS),
        ("scheduler_cfg", "scheduler", torch.optim.lr_scheduler, SCHEDULERS),
    )
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
            if reason := _why_without_effect(dotted, item, values):
                listed[f"{dotted}: {reason}"] = None
            elif only := ONE_VALUE.get(dotted):
                if item != only:
                    refused.append(f"{dotted} is {item!r}: it is always {only} here")
            elif reason := UNSUPPORTED.get(dotted):
                refused.append(f"{dotted} is {item!r}: {reason}")
            elif source := COPIED_FROM.get(dotted):
                refused.append(f"{dotted} is {item!r}: leave it out; it follows from {source}")
            else:
                kept[key] = keep(item, dotted)
        return kept

    return keep(values, ""), list(listed), refused


def _why_without_effect(dotted: str, item: Any, values: Mapping[str, Any]) -> str | None:
    """Return why a key has no effect; None if it has one, or is refused."""

    def given(other: str) -> Any:
        section, key = other.split(".")
        return values[section].get(key) if isinstance(values.get(section), Mapping) else None

    if dotted in NO_EFFECT:
        return NO_EFFECT[dotted]
    if dotted in UNSUPPORTED and not item:
        return "off, as it always is here"
    if dotted == RERANK and not given("evaluator_cfg.protocol"):
        chosen = given("evaluator_cfg.eval_func")
        return None if chosen == RERANKS else f"only {RERANKS} reads it"
    section, _, key = dotted.partition(".")
    if section in ARGUMENTS:
        chosen_by, arguments = ARGUMENTS[section]
        chosen = str(given(f"{section}.{chosen_by}") or next(iter(arguments)))
        others = set().union(*arguments.values())
        if chosen in arguments and key in others - arguments[chosen]:
            return f"{chosen} has no such argument"
    source = COPIED_FROM.get(dotted)
    if source and item == (given(source) or DEFAULTS.get(source)):
        return f"it follows from {source}"
    return None
