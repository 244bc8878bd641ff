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


def own_steps(experiment: Experiment, start: int) -> int:
    """Return the experiment's own number of steps."""
    return experiment.trainer_cfg.total_iter


def total_steps(experiment: Experiment, start: int) -> int:
    """Return the steps that train a compressed network, including those of its baseline."""
    return experiment.trainer_cfg.total_iter + start


@dataclass(frozen=True)
class Method:
    """One way to a small network.

    Attributes:
        stage: the folder of a point's run that holds its files.
        resolve: turns a grid point's experiment into the one that this method trains; raises
            ConfigError if it cannot.
        needs: the methods whose points with the same settings and seed must be done first.
        steps: how long it trains, from the grid point's experiment and the steps of the baseline
            that this starts from (0 if it starts from random weights). Another number than the
            experiment's own stretches its schedules.
        is_cut_to_macs: whether a dense network is made to have the MACs that ``target_macs`` asks
            for, or without that key those of the needed ``hesso`` point.
        is_taught: whether it learns from ``trainer_cfg.teacher``, if there is one. The dense
            networks do not, except for the one that torch-pruning cuts; ptq trains nothing.
    """

    stage: str
    resolve: Callable[[Experiment], Experiment]
    needs: Callable[[Experiment], tuple[str, ...]]
    steps: Callable[[Experiment, int], int] = own_steps
    is_cut_to_macs: bool = False
    is_taught: bool = False

    def experiment(self, given: Experiment, baseline_steps: int | None = None) -> Experiment:
        """Return what this method trains.

        Args:
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
        if not self.is_taught:
            given = without_teacher(given)
        resolved = self.resolve(given)
        steps = self.steps(given, steps_of_start(given, baseline_steps))
        return stretch(resolved, steps)


def without_teacher(experiment: Experiment) -> Experiment:
    """Return the experiment whose stages learn from labels alone."""
    untaught = experiment.trainer_cfg.model_copy(update={"teacher": None})
    return experiment.model_copy(update={"trainer_cfg": untaught})


def steps_of_start(experiment: Experiment, baseline_steps: int | None = None) -> int:
    """Return the steps of the baseline that a compressing run starts from; 0 without one."""
    if not _starts_from_baseline(experiment):
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


def dense(experiment: Experiment) -> Experiment:
    """Return the experiment without its compression."""
    sections = ("compression_optimizer", "hesso_optimizer_cfg", "geta_optimizer_cfg")
    return experiment.model_copy(update=dict.fromkeys(sections))


def dense_rival(experiment: Experiment) -> Experiment:
    """Return the dense experiment that a compressing one is compared with."""
    require_compression(experiment)
    return dense(experiment)


def channels_only(experiment: Experiment) -> Experiment:
    """Return the experiment that cuts channels and chooses no bits."""
    require_compression(experiment)
    return experiment.without_bits()


def cut_to_budget(experiment: Experiment) -> Experiment:
    """Return the experiment that only cuts channels, by their Taylor importance per cost.

    Raises:
        ConfigError: if it has no budget.
    """
    require_compression(experiment)
    if budget_of(experiment) is None:
        section = _section(experiment)
        raise ConfigError(
            f"the method budget ends at a budget, and the experiment has none: give {section}."
            f"target_macs (for example 0.25) and write {section}.target_group_sparsity: null, or "
            "leave the method out"
        )
    return _pruned_with(experiment, {"importance": "taylor"})


def pruned_by_hesso(experiment: Experiment) -> Experiment:
    """Return the experiment that only cuts channels, by HESSO's five scores.

    With a budget the channels of lowest score leave until the period's budget is met, so that it
    ends at the same cost as `cut_to_budget`. They stay as zeros, as published.
    """
    if budget_of(experiment) is None:
        return channels_only(experiment)
    return _pruned_with(experiment, {"importance": "hesso", "shrink": False})


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
    """Return the experiment that prunes with only_train_once's own HESSO, on its own graph.

    With a budget, which the package does not know, its ``target_group_sparsity`` is only known when
    the needed ``hesso`` point is done: see `with_group_sparsity`.
    """
    changed: dict[str, Any] = {"implementation": "only_train_once"}
    if budget_of(experiment) is not None:
        changed |= dict.fromkeys((*TARGETS, *WITH_BUDGET, "latency", "shrink"))
    return _pruned_with(experiment, changed)


def with_group_sparsity(experiment: Experiment, sparsity: float) -> Experiment:
    """Return the experiment of only_train_once with another share of channels to remove."""
    return _pruned_with(experiment, {"target_group_sparsity": sparsity})


def pruned_by_magnitude(experiment: Experiment) -> Experiment:
    """Return the experiment whose only saliency score, of the five, is a channel's norm."""
    return _pruned_with(pruned_by_hesso(experiment), {"importance_score_criteria": MAGNITUDE})


#: ``importance_score_criteria`` of the method ``magnitude``.
MAGNITUDE = {"magnitude": 1.0}


def _pruned_with(experiment: Experiment, changed: Mapping[str, Any]) -> Experiment:
    """Return the experiment that only cuts channels, with some keys of its section changed."""
    experiment = channels_only(experiment)
    keys = {f"{_section(experiment)}.{key}": value for key, value in changed.items()}
    return load_experiment(experiment.sections(), keys)


def _section(experiment: Experiment) -> str:
    return f"{experiment.compression_optimizer}_optimizer_cfg"


def fine_tuned(experiment: Experiment) -> Experiment:
    """Return the dense experiment that fine-tunes a network after torch-pruning has cut it.

    Raises:
        ConfigError: if torch_pruning is not installed.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            'torch_pruning needs its package: pip install -e ".[torch-pruning]", or leave it out'
        )
    return dense(experiment)


def steps_of_fine_tuning(experiment: Experiment, start: int) -> int:
    """Return all of the experiment's steps if that starts from a baseline, else half of them."""
    own = experiment.trainer_cfg.total_iter
    return own if start else own // 2


def cut_at_equal_compute(experiment: Experiment) -> Experiment:
    """Return the experiment of `cut_to_budget` with the steps of ``steps: equal_compute``.

    Raises:
        ConfigError: if its steps do not get cheaper by a known share.
    """
    longer = _pruned_with(cut_to_budget(experiment), {"steps": "equal_compute"})
    return at_equal_compute(longer)


def steps_at_equal_compute(experiment: Experiment, start: int) -> int:
    """Return the steps that make the pruned network's run cost what the experiment's dense does."""
    return cut_at_equal_compute(experiment).trainer_cfg.total_iter


def half_of_the_steps(experiment: Experiment, start: int) -> int:
    """Return half of the experiment's steps, rounded up, for the network that is cut then."""
    return -(-experiment.trainer_cfg.total_iter // 2)


def steps_of_baseline(experiment: Experiment, start: int) -> int:
    """Return the steps of the dense network that others start from, or else the experiment's."""
    return start or experiment.trainer_cfg.total_iter


def steps_at_equal_training_macs(experiment: Experiment, start: int) -> int:
    """Return the steps for which training the uniform network costs what the dense one's costs.

    Raises:
        ConfigError: without ``target_macs``: the slim network's cost is not known beforehand; with
            a teacher.
    """
    require_compression(experiment)
    if macs_budget(experiment) is None:
        raise ConfigError(
            f"uniform_longer needs to know its MACs before it trains: give {_section(experiment)}."
            "target_macs, or leave the method out"
        )
    if experiment.trainer_cfg.teacher is not None:
        raise ConfigError(
            "uniform_longer does not count what a teacher costs: leave trainer_cfg.teacher "
            f"{experiment.trainer_cfg.teacher} or the method out"
        )
    slim = narrowed(experiment, absolute_macs(experiment, macs_budget(experiment)))
    size = input_size(experiment)
    share = _macs(slim.model_cfg, size) / _macs(experiment.model_cfg, size)
    return round(total_steps(experiment, start) / share)


def _starts_from_baseline(experiment: Experiment) -> bool:
    return experiment.compression is not None and experiment.compression.start_from == "baseline"


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


def starts_from(needs: Iterable[str]) -> str | None:
    """Return the needed method whose weights are the start; None if it starts from random."""
    return next((method for method in needs if method in ("baseline", "dense_half")), None)


def _needs_nothing(experiment: Experiment) -> tuple[str, ...]:
    return ()


def _needs_its_start(experiment: Experiment) -> tuple[str, ...]:
    """Return the baseline if the experiment starts from it, else nothing."""
    return ("baseline",) if require_compression(experiment).start_from == "baseline" else ()


def _needs_macs(experiment: Experiment) -> tuple[str, ...]:
    """Return the method whose MACs are the aim; none if the experiment gives them."""
    return () if macs_budget(experiment) is not None else ("hesso",)


def _needs_dense_and_macs(experiment: Experiment) -> tuple[str, ...]:
    """Return the dense network to cut, and the method whose MACs it is cut to."""
    return (*(_needs_its_start(experiment) or ("dense_half",)), *_needs_macs(experiment))


def _needs_its_start_and_sparsity(experiment: Experiment) -> tuple[str, ...]:
    """Return the baseline, and the method whose group sparsity is the aim, as far as needed."""
    needs_hesso = budget_of(experiment) is not None
    return (*_needs_its_start(experiment), *(("hesso",) if needs_hesso else ()))


def _needs_what_is_rounded(experiment: Experiment) -> tuple[str, ...]:
    """Return the start, the pruned network to round, and the network that chose the bits."""
    return (*_needs_its_start(experiment), rounded_method(experiment), "geta")


def rounded_method(experiment: Experiment) -> str:
    """Return the method whose network ptq rounds: it chooses channels as geta does, but no bits."""
    return "budget" if require_compression(experiment).importance == "taylor" else "hesso"


#: By the name in a study's file, in the order of tables and figures.
METHODS = {
    "baseline": Method("baseline", dense, _needs_nothing, steps_of_baseline),
    "dense_longer": Method("baseline", dense_rival, _needs_nothing, total_steps),
    "dense_half": Method("baseline", dense, _needs_nothing, half_of_the_steps, is_taught=True),
    "budget": Method("hesso", cut_to_budget, _needs_its_start, is_taught=True),
    "budget_longer": Method(
        "hesso", cut_at_equal_compute, _needs_its_start, steps_at_equal_compute, is_taught=True
    ),
    "geta": Method("geta", quantized, _needs_its_start, is_taught=True),
    "hesso": Method("hesso", pruned_by_hesso, _needs_its_start, is_taught=True),
    "ptq": Method("ptq", quantized, _needs_what_is_rounded),
    "magnitude": Method("hesso", pruned_by_magnitude, _needs_its_start, is_taught=True),
    "only_train_once": Method(
        "hesso", pruned_by_only_train_once, _needs_its_start_and_sparsity, is_taught=True
    ),
    "uniform": Method(
        "baseline", dense_rival, _needs_macs, total_steps, is_cut_to_macs=True, is_taught=True
    ),
    "uniform_longer": Method(
        "baseline",
        dense_rival,
        _needs_macs,
        steps_at_equal_training_macs,
        is_cut_to_macs=True,
        is_taught=True,
    ),
    "uniform_extra": Method(
        "baseline", dense_rival, _needs_macs, own_steps, is_cut_to_macs=True, is_taught=True
    ),
    "torch_pruning": Method(
        "torch_pruning",
        fine_tuned,
        _needs_dense_and_macs,
        steps_of_fine_tuning,
        is_cut_to_macs=True,
        is_taught=True,
    ),
}
