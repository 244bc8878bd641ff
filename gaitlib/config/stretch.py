"""An experiment that trains for more or fewer steps, whose schedules stretch with it.

So a run whose steps get cheaper as channels leave can take more of them, until it costs what the
dense network's training costs: ``steps: equal_compute``.
"""

import bisect
from dataclasses import replace
from typing import Any

from gaitlib.config.experiment import Experiment
from gaitlib.config.load import load_experiment

#: Arguments of a learning-rate scheduler that are steps, or lists of them.
SCHEDULER_STEPS = ("milestones", "step_size")
#: Keys of a compression section that are steps.
COMPRESSION_STEPS = (
    "start_pruning_step",
    "pruning_steps",
    "start_projection_step",
    "projection_steps",
)


def stretch(experiment: Experiment, total: int) -> Experiment:
    """Return the experiment with another number of iterations; its schedules keep their shape.

    The steps of the learning rate, of pruning and of bits are scaled by the same factor, and so is
    the iteration that is tested if it is the last.

    Args:
        experiment: any.
        total: its new ``trainer_cfg.total_iter``.
    """
    before = experiment.trainer_cfg.total_iter
    if total == before:
        return experiment

    def scaled(steps: Any) -> Any:
        return [scaled(s) for s in steps] if isinstance(steps, list) else steps * total // before

    changed: dict[str, Any] = {"trainer_cfg.total_iter": total}
    extra = experiment.scheduler_cfg.model_extra or {}
    for key in SCHEDULER_STEPS:
        if key in extra:
            changed[f"scheduler_cfg.{key}"] = scaled(extra[key])
    if experiment.scheduler_cfg.scheduler == "ExponentialLR" and "gamma" in extra:
        changed["scheduler_cfg.gamma"] = extra["gamma"] ** (before / total)
    section, cfg = f"{experiment.compression_optimizer}_optimizer_cfg", experiment.compression
    for key in COMPRESSION_STEPS:
        if steps := getattr(cfg, key, None):
            changed[f"{section}.{key}"] = scaled(steps)
    if experiment.evaluator_cfg.restore_hint == before:
        changed["evaluator_cfg.restore_hint"] = total
    return load_experiment(experiment.sections(), changed)


def at_equal_compute(experiment: Experiment) -> Experiment:
    """Return the experiment with the steps that ``steps: equal_compute`` means, spelled out.

    An experiment without that key is returned unchanged.
    """
    cfg = experiment.compression
    if cfg is None or cfg.steps is None:
        return experiment
    total, target, schedule = experiment.trainer_cfg.total_iter, cfg.target_macs, cfg.schedule

    def cost(steps: int) -> float:
        start, pruning = (n * steps // total for n in (schedule.start, schedule.steps))
        longer = replace(schedule, start=start, steps=pruning)
        return steps * longer.compute_share(steps, target)

    most = int(total / target) + 1
    longer = total + bisect.bisect_right(range(total, most), total, key=cost) - 1
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    spelled_out = load_experiment(experiment.sections(), {f"{section}.steps": None})
    return stretch(spelled_out, longer)
