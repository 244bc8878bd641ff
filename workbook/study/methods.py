"""The methods that a study compares: what each trains, how long, and which points it needs first.

All methods use the same data and the same test protocol. Every compressing method takes as many
steps in total as HESSO does, including those of the baseline that HESSO starts from. With a budget
HESSO and the methods that differ from it in one key all end at the same cost. The dense rivals end
at the same multiply-adds: those of ``target_macs``, or else those that HESSO ended at.
only_train_once knows no budget and ends at HESSO's sparsity.
"""

import functools
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gaitlib.model import build_model
from gaitlib.model.network_cost import backbone_macs, macs_per_frame
from gaitlib.prune.hesso_settings import BUDGETS, TARGETS, WITH_BUDGET
from workbook.config import ConfigError, Experiment, at_equal_compute, load_experiment, stretch
from workbook.config.model_cfg import ModelCfg
from workbook.steps import require_compression
from workbook.steps.dataset import input_size

#: `narrowed` scales channels by k / WIDTH_STEPS, with k from 1 to WIDTH_STEPS.
WIDTH_STEPS = 1000
#: A factor that makes no stage as wide as another one.
PROBE = 1009


@dataclass(frozen=True)
class Method:
    """One way to a small network.

    Attributes:
        stage: the folder of a point's run that holds its files.
        is_cut_to_macs: whether a dense network is made to have the MACs that ``target_macs`` asks
            for, or without that key those of the needed ``hesso`` point.
        is_taught: whether it learns from ``trainer_cfg.teacher``, if there is one. The dense
            networks do not, except for the one that torch-pruning cuts; ptq trains nothing.
    """

    stage: str
    is_cut_to_macs: bool = False
    is_taught: bool = True


#: By the name in a study's file, in the order of tables and figures.
METHODS = {
    "baseline": Method("baseline", is_taught=False),
    "dense_longer": Method("baseline", is_taught=False),
    "dense_half": Method("baseline"),
    "budget": Method("hesso"),
    "budget_longer": Method("hesso"),
    "geta": Method("geta"),
    "hesso": Method("hesso"),
    "ptq": Method("ptq", is_taught=False),
    "magnitude": Method("hesso"),
    "only_train_once": Method("hesso"),
    "uniform": Method("baseline", is_cut_to_macs=True),
    "uniform_longer": Method("baseline", is_cut_to_macs=True),
    "uniform_extra": Method("baseline", is_cut_to_macs=True),
    "torch_pruning": Method("torch_pruning", is_cut_to_macs=True),
}


def resolve(method: str, given: Experiment, baseline_steps: int | None = None) -> Experiment:
    """Return the experiment that a method trains, with its own number of steps.

    Args:
        method: a name of METHODS.
        given: a grid point's experiment.
        baseline_steps: of the network that it starts from; None means as many as its own.

    Raises:
        ConfigError: if the method cannot run with it.
    """
    if given.compression is not None and given.compression.steps is not None:
        raise ConfigError(
            f"steps {given.compression.steps}: a study compares methods of as many steps, and "
            "budget_longer is the one with more: leave the key out"
        )
    if method not in ("baseline", "dense_half"):
        require_compression(given)
    if not METHODS[method].is_taught:
        given = with_trainer(given, teacher=None)
    resolved = _resolved(method, given)
    start = steps_of_start(given, baseline_steps)
    return stretch(resolved, _steps(method, given, resolved.trainer_cfg.total_iter, start))


def _resolved(method: str, given: Experiment) -> Experiment:
    """Return what a method trains, before its steps are set.

    With a budget ``hesso`` ranks channels by its five scores until the budget is met, so that it
    ends at the same cost as ``budget``; they stay as zeros, as published. only_train_once does not
    know budgets: its ``target_group_sparsity`` is known when the needed ``hesso`` point is done
    (`workbook.study.train_point`).
    """
    has_budget = budget_of(given) is not None
    match method:
        case "geta" | "ptq":
            if not given.quantizes:
                raise ConfigError(
                    "the experiment chooses no bits, so geta and ptq would only prune: write "
                    "hesso, or give geta_optimizer_cfg bits (params/quickstart.yaml shows them)"
                )
            return given
        case "budget" | "budget_longer":
            if not has_budget:
                why = "the method budget ends at a budget, and the experiment has none"
                raise _needs_target_macs(given, why)
            if method == "budget":
                return pruned_with(given, importance="taylor")
            return at_equal_compute(pruned_with(given, importance="taylor", steps="equal_compute"))
        case "hesso" | "magnitude":
            changed = {"importance": "hesso", "shrink": False} if has_budget else {}
            if method == "magnitude":  # the only saliency score, of the five
                changed["importance_score_criteria"] = {"magnitude": 1.0}
            return pruned_with(given, **changed)
        case "only_train_once":
            budget = (*TARGETS, *WITH_BUDGET, "latency", "shrink") if has_budget else ()
            return pruned_with(given, implementation="only_train_once", **dict.fromkeys(budget))
        case "torch_pruning" if importlib.util.find_spec("torch_pruning") is None:
            raise ConfigError('torch_pruning needs its package: pip install -e ".[torch-pruning]"')
    sections = ("compression_optimizer", "hesso_optimizer_cfg", "geta_optimizer_cfg")
    return given.model_copy(update=dict.fromkeys(sections))  # dense


def _steps(method: str, given: Experiment, own: int, start: int) -> int:
    """Return how many steps a method trains.

    Args:
        method: a name of METHODS.
        given: the experiment that it compares with.
        own: steps of the method's experiment.
        start: steps of the baseline that the compressing methods start from; 0 without one.
    """
    match method:
        case "baseline":
            return start or own
        case "dense_longer" | "uniform":
            return own + start
        case "dense_half":  # torch-pruning cuts it after these
            return -(-own // 2)
        case "torch_pruning":
            return own if start else own // 2
        case "uniform_longer":  # as many multiply-adds as the dense network
            return round((own + start) / _share_of_macs(given))
        case _:
            return own


def _share_of_macs(experiment: Experiment) -> float:
    """Return the MACs of the uniform network as a share of the dense one's.

    Raises:
        ConfigError: without ``target_macs``: the slim network's cost is not known beforehand; with
            a teacher.
    """
    if (budget := macs_budget(experiment)) is None:
        raise _needs_target_macs(experiment, "uniform_longer needs its MACs before it trains")
    if experiment.trainer_cfg.teacher is not None:
        raise ConfigError(
            "uniform_longer does not count what a teacher costs: leave trainer_cfg.teacher "
            f"{experiment.trainer_cfg.teacher} or the method out"
        )
    slim, size = narrowed(experiment, absolute_macs(experiment, budget)), input_size(experiment)
    return _macs(slim.model_cfg, size) / _macs(experiment.model_cfg, size)


def needs_of(method: str, experiment: Experiment) -> tuple[str, ...]:
    """Return the methods whose points with the same settings and seed must be done first.

    Args:
        method: a name of METHODS.
        experiment: a grid point's.
    """
    start = ("baseline",) if steps_of_start(experiment) else ()
    macs = () if macs_budget(experiment) is not None else ("hesso",)
    match method:
        case "baseline" | "dense_longer" | "dense_half":
            return ()
        case "uniform" | "uniform_longer" | "uniform_extra":
            return macs
        case "torch_pruning":
            return (*(start or ("dense_half",)), *macs)
        case "only_train_once" if budget_of(experiment) is not None:
            return (*start, "hesso")
        case "ptq":
            return (*start, rounded_method(experiment), "geta")
        case _:
            return start


def rounded_method(experiment: Experiment) -> str:
    """Return the method whose network ptq rounds: it chooses channels as geta does, but no bits."""
    return "budget" if experiment.compression.importance == "taylor" else "hesso"


def starts_from(needs: Iterable[str]) -> str | None:
    """Return the needed method whose weights are the start; None if it starts from random."""
    return next((method for method in needs if method in ("baseline", "dense_half")), None)


def steps_of_start(experiment: Experiment, baseline_steps: int | None = None) -> int:
    """Return the steps of the baseline that a compressing run starts from; 0 without one."""
    if experiment.compression is None or experiment.compression.start_from != "baseline":
        return 0
    return baseline_steps or experiment.trainer_cfg.total_iter


def budget_of(experiment: Experiment) -> float | None:
    """Return what a budget asks for (see `BUDGETS`); None without one."""
    if experiment.compression is None:
        return None
    key, value = experiment.compression.target
    return value if key in BUDGETS else None


def macs_budget(experiment: Experiment) -> float | None:
    """Return what ``target_macs`` asks for; None without that key."""
    return None if experiment.compression is None else experiment.compression.target_macs


def absolute_macs(experiment: Experiment, budget: float) -> int:
    """Return the MACs per frame that a ``target_macs`` means for a dense experiment's network.

    Raises:
        ConfigError: if the network needs more with one channel in each stage, or less as it is.
    """
    network, size = experiment.model_cfg, input_size(experiment)
    whole = _macs(network, size)
    macs = round(budget * whole if budget < 1 else budget)
    least = _macs(_with_channels(network, dict.fromkeys(_stages(network), 1)), size)
    if not least <= macs < whole:
        raise ConfigError(
            f"target_macs {budget:g} means {macs:,} MACs per frame (a number below 1 is a share of "
            f"the dense network's): write a budget from {least:,} ({least / whole:.2g}) to below "
            f"{whole:,}"
        )
    return macs


def with_trainer(experiment: Experiment, **changed: Any) -> Experiment:
    """Return the experiment with some keys of ``trainer_cfg`` changed."""
    cfg = experiment.trainer_cfg.model_copy(update=changed)
    return experiment.model_copy(update={"trainer_cfg": cfg})


def pruned_with(experiment: Experiment, **changed: Any) -> Experiment:
    """Return the experiment that only cuts channels, with some keys of its section changed."""
    experiment = experiment.without_bits()
    if not changed:
        return experiment
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    keys = {f"{section}.{key}": value for key, value in changed.items()}
    return load_experiment(experiment.sections(), keys)


def _needs_target_macs(experiment: Experiment, why: str) -> ConfigError:
    section = f"{experiment.compression_optimizer}_optimizer_cfg"
    return ConfigError(
        f"{why}: give {section}.target_macs (for example 0.25) and write "
        f"{section}.target_group_sparsity: null, or leave the method out"
    )


def narrowed(experiment: Experiment, macs: int) -> Experiment:
    """Scale all channels of a dense experiment by one factor so that its MACs are near ``macs``.

    Rounding to whole channels leaves MACs some percent off. So every stage (channels that are equal
    in the dense network) is also tried with one channel more and one less, in all combinations. The
    nearest to ``macs`` is taken; of equals, the one whose stages keep the most similar shares.

    Args:
        experiment: its embeddings and parts do not change.
        macs: the backbone's MACs per frame to come closest to. If the experiment has no more, it is
            returned unchanged.
    """
    network, size = experiment.model_cfg, input_size(experiment)
    if _macs(network, size) <= macs:
        return experiment
    return experiment.model_copy(update={"model_cfg": _narrowed(network, macs, size)})


@functools.lru_cache
def _narrowed(network: ModelCfg, macs: int, size: tuple[int, int]) -> ModelCfg:
    stages = _stages(network)
    cost = _macs_by_stage(network, stages, size)

    def scaled(width: int) -> tuple[int, ...]:
        return tuple(max(1, round(channels * width / WIDTH_STEPS)) for channels in stages)

    low, high = 1, WIDTH_STEPS  # MACs grow with the width, so a bisection finds it
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(scaled(middle)) <= macs else (low, middle - 1)
    tried = {
        widths
        for near in (scaled(low), scaled(min(low + 1, WIDTH_STEPS)))
        for widths in itertools.product(*((n - 1, n, n + 1) for n in near))
        if all(1 <= n <= channels for n, channels in zip(widths, stages, strict=True))
    }

    def badness(widths: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
        shares = [math.log(n / channels) for n, channels in zip(widths, stages, strict=True)]
        return abs(cost(widths) - macs), max(shares) - min(shares), widths

    return _with_channels(network, dict(zip(stages, min(tried, key=badness), strict=True)))


@functools.lru_cache
def _macs(network: ModelCfg, size: tuple[int, int]) -> int:
    return macs_per_frame(build_model(**network.build_arguments(), frame_size=size))


def _macs_by_stage(
    network: ModelCfg, stages: tuple[int, ...], size: tuple[int, int]
) -> Callable[[tuple[int, ...]], float]:
    """Return a network's MACs per frame of some size as a function of its stages' channels.

    A convolution's MACs are in proportion to its inputs and to its outputs. So a network with one
    stage `PROBE` times as wide shows which convolutions depend on it, and how often.
    """
    macs = backbone_macs(build_model(**network.build_arguments(), frame_size=size))

    def numbers(widths: Mapping[int, int]) -> list[int]:
        with torch.device("meta"):  # takes no memory and no random numbers
            model = build_model(**_with_channels(network, widths).build_arguments())
        layers = dict(model.named_modules())
        return [layers[name].weight.numel() for name in macs]

    same = {channels: channels for channels in stages}
    grown = [numbers(same | {channels: PROBE * channels}) for channels in stages]
    powers = np.rint(np.log(np.divide(grown, numbers(same))) / np.log(PROBE))  # (stages, layers)

    def cost(widths: tuple[int, ...]) -> float:
        shares = np.divide(widths, stages)[:, None] ** powers
        return float(np.array(list(macs.values())) @ shares.prod(axis=0))

    return cost


def _stages(network: ModelCfg) -> tuple[int, ...]:
    """Return the different numbers of channels of a backbone, in its order."""
    backbone = network.backbone_cfg
    if ":" in backbone.type:
        raise ConfigError(
            f"{backbone.type} has widths of its own: narrower networks are made of a ResNet9 or a "
            "Plain alone"
        )
    if backbone.type == "ResNet9":
        return tuple(dict.fromkeys(backbone.channels))
    return tuple(dict.fromkeys(int(t.split("-")[1]) for t in backbone.layers_cfg if t != "M"))


def _with_channels(network: ModelCfg, widths: Mapping[int, int]) -> ModelCfg:
    """Return the network with ``widths[c]`` channels wherever its backbone has c."""
    before = network.backbone_cfg
    if before.type == "ResNet9":
        changed = {"channels": tuple(widths[c] for c in before.channels)}
    else:
        tokens = [token.split("-") for token in before.layers_cfg]
        layers = ["-".join([t[0], *(str(widths[int(c)]) for c in t[1:2]), *t[2:]]) for t in tokens]
        changed = {"layers_cfg": tuple(layers)}
    backbone = before.model_copy(update=changed)
    with torch.device("meta"):  # takes no memory and no random numbers
        width = backbone.build().out_channels
    heads = network.SeparateFCs.model_copy(update={"in_channels": width})
    return network.model_copy(update={"backbone_cfg": backbone, "SeparateFCs": heads})
