"""The methods that a study compares: what each trains, and which points it needs first.

All methods use the same data and the same test protocol. Every compressing method takes as many
steps in total as HESSO does, including the baseline that HESSO starts from.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gaitlib.config import ConfigError, Experiment, load_experiment
from gaitlib.model import network_cost
from gaitlib.steps import build_network, require_compression

#: `narrowed` scales channels by k / WIDTH_STEPS, with k from 1 to WIDTH_STEPS.
WIDTH_STEPS = 1000


@dataclass(frozen=True)
class Method:
    """One way to a small network.

    Attributes:
        stage: the folder of a point's run that holds its files.
        resolve: turns a grid point's experiment into the one that this method trains; raises
            ConfigError if it cannot.
        needs: the methods whose points with the same settings and seed must be done first.
    """

    stage: str
    resolve: Callable[[Experiment], Experiment]
    needs: Callable[[Experiment], tuple[str, ...]]


def dense(experiment: Experiment) -> Experiment:
    """Return the experiment without its compression."""
    sections = ("compression_optimizer", "hesso_optimizer_cfg", "geta_optimizer_cfg")
    return experiment.model_copy(update=dict.fromkeys(sections))


def channels_only(experiment: Experiment) -> Experiment:
    """Return the experiment that cuts channels and chooses no bits."""
    require_compression(experiment)
    return experiment.without_bits()


def quantized(experiment: Experiment) -> Experiment:
    """Return the experiment itself.

    Raises:
        ConfigError: if it chooses no bits.
    """
    require_compression(experiment)
    if not experiment.quantizes:
        raise ConfigError(
            "the experiment chooses no bits, so geta and ptq would only prune: write hesso, or "
            "give geta_optimizer_cfg bits (params/quickstart.yaml shows them)"
        )
    return experiment


def pruned_by_only_train_once(experiment: Experiment) -> Experiment:
    """Return the experiment that prunes with only_train_once's own HESSO, on its own graph."""
    return _pruned_with(experiment, "implementation", "only_train_once")


def pruned_by_magnitude(experiment: Experiment) -> Experiment:
    """Return the experiment whose only saliency score, of the five, is a channel's norm."""
    return _pruned_with(experiment, "importance_score_criteria", {"magnitude": 1.0})


def _pruned_with(experiment: Experiment, key: str, value: Any) -> Experiment:
    """Return the experiment that only cuts channels, with one key of its section changed."""
    experiment = channels_only(experiment)
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    return load_experiment(experiment.sections(), {f"{section}.{key}": value})


def fine_tuned(experiment: Experiment) -> Experiment:
    """Return the dense experiment that fine-tunes a network after it was cut.

    It has all of the experiment's steps if that starts from a baseline, else half of them, rounded
    down.

    Raises:
        ConfigError: if torch_pruning is not installed.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            'torch_pruning needs its package: pip install -e ".[torch-pruning]", or leave it out'
        )
    if _starts_from_baseline(experiment):
        return dense(experiment)
    return _with_iterations(dense(experiment), experiment.trainer_cfg.total_iter // 2)


def half_as_long(experiment: Experiment) -> Experiment:
    """Return the dense experiment with half of the iterations, rounded up, for torch_pruning."""
    return _with_iterations(dense(experiment), -(-experiment.trainer_cfg.total_iter // 2))


def as_long_as_pruned(experiment: Experiment) -> Experiment:
    """Return the dense experiment with as many steps as the pruned network had in total."""
    return _with_iterations(dense(experiment), total_steps(channels_only(experiment)))


def _with_iterations(experiment: Experiment, total: int) -> Experiment:
    """Return a dense experiment with another number of iterations.

    The learning rate's milestones are scaled by the same factor, so the schedule keeps its shape.
    """
    before = experiment.trainer_cfg.total_iter
    changed = {"trainer_cfg.total_iter": total}
    extra = experiment.scheduler_cfg.model_extra or {}
    if "milestones" in extra:
        scaled = [step * total // before for step in extra["milestones"]]
        changed["scheduler_cfg.milestones"] = scaled
    return load_experiment(experiment.sections(), changed)


def total_steps(experiment: Experiment) -> int:
    """Return the steps that trained a compressed network, including those of its baseline."""
    return experiment.trainer_cfg.total_iter * (2 if _starts_from_baseline(experiment) else 1)


def _starts_from_baseline(experiment: Experiment) -> bool:
    return experiment.compression is not None and experiment.compression.start_from == "baseline"


def narrowed(experiment: Experiment, macs: int) -> Experiment:
    """Scale all channels of a dense experiment by one factor so that its MACs are near ``macs``.

    Args:
        experiment: its embeddings and parts do not change.
        macs: the backbone's MACs per frame to come closest to. If the experiment has fewer, it is
            returned unchanged.
    """
    low, high = 1, WIDTH_STEPS  # MACs grow with the width, so a bisection finds it
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if _macs(_scaled(experiment, middle)) <= macs else (low, middle - 1)
        )
    below_and_above = [_scaled(experiment, width) for width in (low, min(low + 1, WIDTH_STEPS))]
    return min(below_and_above, key=lambda candidate: abs(_macs(candidate) - macs))


def _macs(experiment: Experiment) -> int:
    return network_cost.macs_per_frame(build_network(experiment, torch.device("cpu")))


def _scaled(experiment: Experiment, width: int) -> Experiment:
    """Return the experiment with all channels multiplied by ``width / WIDTH_STEPS``, rounded."""

    def scale(channels: int) -> int:
        return max(1, round(channels * width / WIDTH_STEPS))

    before = experiment.model_cfg.backbone_cfg
    if before.type == "ResNet9":
        changed = {"channels": tuple(map(scale, before.channels))}
    else:
        tokens = [token.split("-") for token in before.layers_cfg]
        layers = ["-".join([t[0], *(str(scale(int(c))) for c in t[1:2]), *t[2:]]) for t in tokens]
        changed = {"layers_cfg": tuple(layers)}
    backbone = before.model_copy(update=changed)
    heads = experiment.model_cfg.SeparateFCs.model_copy(
        update={"in_channels": backbone.out_channels}
    )
    model = experiment.model_cfg.model_copy(update={"backbone_cfg": backbone, "SeparateFCs": heads})
    return experiment.model_copy(update={"model_cfg": model})


def starts_from(needs: Iterable[str]) -> str | None:
    """Return the needed method whose weights are the start; None if it starts from random."""
    return next((method for method in needs if method in ("baseline", "dense_half")), None)


def _needs_nothing(experiment: Experiment) -> tuple[str, ...]:
    return ()


def _needs_its_start(experiment: Experiment) -> tuple[str, ...]:
    """Return the baseline if the experiment starts from it, else nothing."""
    return ("baseline",) if require_compression(experiment).start_from == "baseline" else ()


def _needs_dense_and_hesso(experiment: Experiment) -> tuple[str, ...]:
    """Return the dense network to cut, and HESSO's, whose MACs it is cut to."""
    return (*(_needs_its_start(experiment) or ("dense_half",)), "hesso")


def _needs_its_start_and(*others: str) -> Callable[[Experiment], tuple[str, ...]]:
    return lambda experiment: (*_needs_its_start(experiment), *others)


#: By the name in a study's file, in the order of tables and figures.
METHODS = {
    "baseline": Method("baseline", dense, _needs_nothing),
    "dense_longer": Method("baseline", as_long_as_pruned, _needs_nothing),
    "dense_half": Method("baseline", half_as_long, _needs_nothing),
    "geta": Method("geta", quantized, _needs_its_start),
    "hesso": Method("hesso", channels_only, _needs_its_start),
    "ptq": Method("ptq", quantized, _needs_its_start_and("hesso", "geta")),
    "magnitude": Method("hesso", pruned_by_magnitude, _needs_its_start),
    "only_train_once": Method("hesso", pruned_by_only_train_once, _needs_its_start),
    "uniform": Method("baseline", as_long_as_pruned, lambda experiment: ("hesso",)),
    "torch_pruning": Method("torch_pruning", fine_tuned, _needs_dense_and_hesso),
}
