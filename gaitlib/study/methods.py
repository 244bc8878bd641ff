"""The methods that a study compares: what each makes of a study's sections, and what it needs.

All are trained and tested on the same data by the same protocol. Those that compress take as many
steps in all as HESSO does with the baseline that it starts from.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gaitlib import profile
from gaitlib.config import ConfigError, Study, load_study
from gaitlib.stages import build_network, require_compression

#: Widths that `narrowed` tries, as shares of one.
WIDTHS = 1000


@dataclass(frozen=True)
class Method:
    """One way to a small network.

    Attributes:
        words: what tables and figures call it.
        stage: the folder of a point's run that holds its files.
        resolve: turns the study of a point of the grid into what this method trains; raises
            ConfigError if it cannot.
        needs: the methods whose points of the same settings and seed have to be there first.
    """

    words: str
    stage: str
    resolve: Callable[[Study], Study]
    needs: Callable[[Study], tuple[str, ...]]


def dense(study: Study) -> Study:
    """Return the study without its compression."""
    sections = ("compression_optimizer", "hesso_optimizer_cfg", "geta_optimizer_cfg")
    return study.model_copy(update=dict.fromkeys(sections))


def pruned(study: Study) -> Study:
    """Return the study that cuts channels alone."""
    require_compression(study)
    return study.pruned_alone()


def quantized(study: Study) -> Study:
    """Return the study itself, if it chooses bits."""
    require_compression(study)
    if not study.quantizes:
        raise ConfigError(
            "the study chooses no bits, so geta and ptq would be pruned alone: write pruned, or "
            "give geta_optimizer_cfg bits (params/quickstart.yaml shows them)"
        )
    return study


def packages_own(study: Study) -> Study:
    """Return the study that prunes with only_train_once's own HESSO, on its own graph."""
    return _pruned_with(study, "implementation", "only_train_once")


def by_magnitude(study: Study) -> Study:
    """Return the study that prunes by one of the five saliency scores, the norm of a channel."""
    return _pruned_with(study, "importance_score_criteria", {"magnitude": 1.0})


def _pruned_with(study: Study, key: str, value: Any) -> Study:
    study = pruned(study)
    section = f"{study.compression_optimizer}_optimizer_cfg"
    return load_study(study.sections(), {f"{section}.{key}": value})


def fine_tuned(study: Study) -> Study:
    """Return the dense study of the steps that are left once a trained network has been cut.

    They are all of the study's where it starts from a baseline, and otherwise half of them,
    rounded down.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            'torch_pruning needs its package: pip install -e ".[torch-pruning]", or leave it out'
        )
    if _starts_from_baseline(study):
        return dense(study)
    return _lasting(dense(study), study.trainer_cfg.total_iter // 2)


def half(study: Study) -> Study:
    """Return the dense study with half of the iterations, rounded up: what is to be cut."""
    return _lasting(dense(study), -(-study.trainer_cfg.total_iter // 2))


def longer(study: Study) -> Study:
    """Return the dense study with as many iterations as the pruned network's weights saw."""
    return _lasting(dense(study), steps_behind(pruned(study)))


def _lasting(study: Study, total: int) -> Study:
    """Give a dense study another number of iterations.

    Milestones of the learning rate are stretched alike, so that its shape stays.
    """
    before = study.trainer_cfg.total_iter
    changed = {"trainer_cfg.total_iter": total}
    extra = study.scheduler_cfg.model_extra or {}
    if "milestones" in extra:
        stretched = [step * total // before for step in extra["milestones"]]
        changed["scheduler_cfg.milestones"] = stretched
    return load_study(study.sections(), changed)


def steps_behind(study: Study) -> int:
    """Return the steps behind the weights of a compressed network, the baseline's included."""
    return study.trainer_cfg.total_iter * (2 if _starts_from_baseline(study) else 1)


def _starts_from_baseline(study: Study) -> bool:
    return study.compression is not None and study.compression.start_from == "baseline"


def narrowed(study: Study, macs: int) -> Study:
    """Scale all channels of a dense study by one factor, to the MACs nearest to ``macs``.

    Args:
        study: embeddings and parts stay as they are.
        macs: of the backbone, a frame. More than the study's own give the study back.
    """
    low, high = 1, WIDTHS  # the MACs grow with the width
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _macs(_scaled(study, middle)) <= macs else (low, middle - 1)
    around = [_scaled(study, width) for width in (low, min(low + 1, WIDTHS))]
    return min(around, key=lambda one: abs(_macs(one) - macs))


def _macs(study: Study) -> int:
    return profile.macs_per_frame(build_network(study, torch.device("cpu")))


def _scaled(study: Study, width: int) -> Study:
    def scale(channels: int) -> int:
        return max(1, round(channels * width / WIDTHS))

    before = study.model_cfg.backbone_cfg
    if before.type == "ResNet9":
        changed = {"channels": tuple(map(scale, before.channels))}
    else:
        tokens = [token.split("-") for token in before.layers_cfg]
        layers = ["-".join([t[0], *(str(scale(int(c))) for c in t[1:2]), *t[2:]]) for t in tokens]
        changed = {"layers_cfg": tuple(layers)}
    backbone = before.model_copy(update=changed)
    heads = study.model_cfg.SeparateFCs.model_copy(update={"in_channels": backbone.out_channels})
    model = study.model_cfg.model_copy(update={"backbone_cfg": backbone, "SeparateFCs": heads})
    return study.model_copy(update={"model_cfg": model})


def starts_from(needs: Iterable[str]) -> str | None:
    """Return the method, among those that one needs, whose weights it starts from."""
    return next((method for method in needs if method in ("baseline", "dense_half")), None)


def _nothing(study: Study) -> tuple[str, ...]:
    return ()


def _start(study: Study) -> tuple[str, ...]:
    return ("baseline",) if require_compression(study).start_from == "baseline" else ()


def _cut(study: Study) -> tuple[str, ...]:
    return (*(_start(study) or ("dense_half",)), "pruned")


def _with(*others: str) -> Callable[[Study], tuple[str, ...]]:
    return lambda study: (*_start(study), *others)


#: By the name that a study's file gives, in the order of tables and figures.
METHODS = {
    "baseline": Method("dense", "baseline", dense, _nothing),
    "dense_longer": Method("dense, as many steps", "baseline", longer, _nothing),
    "dense_half": Method("dense, half as many steps", "baseline", half, _nothing),
    "geta": Method("GETA", "geta", quantized, _start),
    "pruned": Method("HESSO", "geta", pruned, _start),
    "ptq": Method("HESSO, then rounded", "ptq", quantized, _with("pruned", "geta")),
    "magnitude": Method("HESSO, magnitude alone", "geta", by_magnitude, _start),
    "only_train_once": Method("only_train_once as shipped", "geta", packages_own, _start),
    "uniform": Method("uniformly slim", "baseline", longer, lambda study: ("pruned",)),
    "torch_pruning": Method("torch-pruning", "geta", fine_tuned, _cut),
}
