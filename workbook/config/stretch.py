"""An experiment that trains for more or fewer steps, and whose learning rate stretches with it.

So a run whose steps get cheaper as channels leave can take more of them, until it costs what the
dense network's training costs: ``steps: equal_compute``.
"""

import bisect
from typing import Any

from workbook.config.experiment import Experiment
from workbook.config.load import load_experiment

#: Arguments of a learning-rate scheduler that are steps, or lists of them.
SCHEDULER_STEPS = ("milestones", "step_size")


def stretch(experiment: Experiment, total: int) -> Experiment:
    """Return the experiment with another number of iterations; its learning rate keeps its shape.

    The steps of the learning rate are scaled by the same factor, and so is the iteration that is
    tested if it is the last. Channels leave, and bits shrink, at the same steps as before; with
    ``order: float_first`` bits come later by the same factor, so that they take the same share.

    Args:
        experiment: any.
        total: its new ``trainer_cfg.total_iter``.
    """
    before = experiment.trainer_cfg.total_iter
    if total == before:
        return experiment

    def scaled(steps: Any) -> Any:
        return [scaled(s) for s in steps] if isinstance(steps, tuple) else steps * total // before

    changed: dict[str, Any] = {"trainer_cfg.total_iter": total}
    extra = experiment.scheduler_cfg.arguments()
    for key in SCHEDULER_STEPS:
        if key in extra:
            changed[f"scheduler_cfg.{key}"] = scaled(extra[key])
    if experiment.scheduler_cfg.scheduler == "ExponentialLR" and "gamma" in extra:
        changed["scheduler_cfg.gamma"] = extra["gamma"] ** (before / total)
    if experiment.evaluator_cfg.restore_hint == before:
        changed["evaluator_cfg.restore_hint"] = total
    if (bits := experiment.float_first) is not None:
        start = max(scaled(bits.start), bits.pruning.end)
        changed["geta_optimizer_cfg.start_bits_step"] = start
        if bits.learn_ranges_step is not None:
            learned = max(scaled(bits.learn_ranges_step), start)
            changed["geta_optimizer_cfg.learn_ranges_step"] = learned
    return load_experiment(experiment.sections(), changed)


def at_equal_compute(experiment: Experiment) -> Experiment:
    """Return the experiment with the steps that ``steps: equal_compute`` means, spelled out.

    An experiment without that key is returned unchanged.
    """
    cfg = experiment.compression
    if cfg is None or cfg.steps is None:
        return experiment
    total, target = experiment.trainer_cfg.total_iter, cfg.target_macs

    def cost(steps: int) -> float:
        return steps * cfg.settings.schedule.compute_share(steps, target)

    most = int(total / target) + 1
    longer = total + bisect.bisect_right(range(total, most), total + 1e-6, key=cost) - 1
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    spelled_out = load_experiment(experiment.sections(), {f"{section}.steps": None})
    return stretch(spelled_out, longer)
