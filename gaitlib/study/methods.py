"""The methods that a study compares: what each makes of an experiment, and what it needs.

All are trained and tested on the same data by the same protocol. Those that compress take as many
steps in all as HESSO does with the baseline that it starts from.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gaitlib.config import ConfigError, Experiment, load_experiment
from gaitlib.model import network_cost
from gaitlib.steps import build_network, require_compression

#: Widths that `narrowed` tries, as shares of one.
WIDTHS = 1000


@dataclass(frozen=True)
class Method:
    """One way to a small network.

    Attributes:
        stage: the folder of a point's run that holds its files.
        resolve: turns the experiment of a point of the grid into what this method trains; raises
            ConfigError if it cannot.
        needs: the methods whose points of the same settings and seed have to be there first.
    """

    stage: str
    resolve: Callable[[Experiment], Experiment]
    needs: Callable[[Experiment], tuple[str, ...]]


def dense(experiment: Experiment) -> Experiment:
    """Return the experiment without its compression."""
    sections = ("compression_optimizer", "hesso_optimizer_cfg", "geta_optimizer_cfg")
    return experiment.model_copy(update=dict.fromkeys(sections))


def channels_alone(experiment: Experiment) -> Experiment:
    """Return the experiment that cuts channels alone."""
    require_compression(experiment)
    return experiment.pruned_alone()


def quantized(experiment: Experiment) -> Experiment:
    """Return the experiment itself, if it chooses bits."""
    require_compression(experiment)
    if not experiment.quantizes:
        raise ConfigError(
            "the experiment chooses no bits, so geta and ptq would be pruned alone: write hesso, or "
            "give geta_optimizer_cfg bits (params/quickstart.yaml shows them)"
        )
    return experiment


def packages_own(experiment: Experiment) -> Experiment:
    """Return the experiment that prunes with only_train_once's own HESSO, on its own graph."""
    return _pruned_with(experiment, "implementation", "only_train_once")


def by_magnitude(experiment: Experiment) -> Experiment:
    """Return the experiment that prunes by one of the five saliency scores, the norm of a channel."""
    return _pruned_with(experiment, "importance_score_criteria", {"magnitude": 1.0})


def _pruned_with(experiment: Experiment, key: str, value: Any) -> Experiment:
    experiment = channels_alone(experiment)
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    return load_experiment(experiment.sections(), {f"{section}.{key}": value})


def fine_tuned(experiment: Experiment) -> Experiment:
    """Return the dense experiment of the steps that are left once a trained network has been cut.

    They are all of the experiment's where it starts from a baseline, and otherwise half of them,
    rounded down.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            'torch_pruning needs its package: pip install -e ".[torch-pruning]", or leave it out'
        )
    if _starts_from_baseline(experiment):
        return dense(experiment)
    return _lasting(dense(experiment), experiment.trainer_cfg.total_iter // 2)


def half(experiment: Experiment) -> Experiment:
    """Return the dense experiment with half of the iterations, rounded up: what is to be cut."""
    return _lasting(dense(experiment), -(-experiment.trainer_cfg.total_iter // 2))


def longer(experiment: Experiment) -> Experiment:
    """Return the dense experiment with as many iterations as the pruned network's weights saw."""
    return _lasting(dense(experiment), steps_behind(channels_alone(experiment)))


def _lasting(experiment: Experiment, total: int) -> Experiment:
    """Give a dense experiment another number of iterations.

    Milestones of the learning rate are stretched alike, so that its shape stays.
    """
    before = experiment.trainer_cfg.total_iter
    changed = {"trainer_cfg.total_iter": total}
    extra = experiment.scheduler_cfg.model_extra or {}
    if "milestones" in extra:
        stretched = [step * total // before for step in extra["milestones"]]
        changed["scheduler_cfg.milestones"] = stretched
    return load_experiment(experiment.sections(), changed)


def steps_behind(experiment: Experiment) -> int:
    """Return the steps behind the weights of a compressed network, the baseline's included."""
    return experiment.trainer_cfg.total_iter * (2 if _starts_from_baseline(experiment) else 1)


def _starts_from_baseline(experiment: Experiment) -> bool:
    return experiment.compression is not None and experiment.compression.start_from == "baseline"


def narrowed(experiment: Experiment, macs: int) -> Experiment:
    """Scale all channels of a dense experiment by one factor, to the MACs nearest to ``macs``.

    Args:
        experiment: embeddings and parts stay as they are.
        macs: of the backbone, a frame. More than the experiment's own give the experiment back.
    """
    low, high = 1, WIDTHS  # the MACs grow with the width
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if _macs(_scaled(experiment, middle)) <= macs else (low, middle - 1)
        )
    around = [_scaled(experiment, width) for width in (low, min(low + 1, WIDTHS))]
    return min(around, key=lambda one: abs(_macs(one) - macs))


def _macs(experiment: Experiment) -> int:
    return network_cost.macs_per_frame(build_network(experiment, torch.device("cpu")))


def _scaled(experiment: Experiment, width: int) -> Experiment:
    def scale(channels: int) -> int:
        return max(1, round(channels * width / WIDTHS))

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
    """Return the method, among those that one needs, whose weights it starts from."""
    return next((method for method in needs if method in ("baseline", "dense_half")), None)


def _nothing(experiment: Experiment) -> tuple[str, ...]:
    return ()


def _start(experiment: Experiment) -> tuple[str, ...]:
    return ("baseline",) if require_compression(experiment).start_from == "baseline" else ()


def _cut(experiment: Experiment) -> tuple[str, ...]:
    return (*(_start(experiment) or ("dense_half",)), "hesso")


def _with(*others: str) -> Callable[[Experiment], tuple[str, ...]]:
    return lambda experiment: (*_start(experiment), *others)


#: By the name that a study's file gives, in the order of tables and figures.
METHODS = {
    "baseline": Method("baseline", dense, _nothing),
    "dense_longer": Method("baseline", longer, _nothing),
    "dense_half": Method("baseline", half, _nothing),
    "geta": Method("geta", quantized, _start),
    "hesso": Method("hesso", channels_alone, _start),
    "ptq": Method("ptq", quantized, _with("hesso", "geta")),
    "magnitude": Method("hesso", by_magnitude, _start),
    "only_train_once": Method("hesso", packages_own, _start),
    "uniform": Method("baseline", longer, lambda experiment: ("hesso",)),
    "torch_pruning": Method("torch_pruning", fine_tuned, _cut),
}
