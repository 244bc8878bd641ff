"""Prune a trained network in one shot with torch-pruning: the usual way to a small network.

This is the only file that imports torch-pruning (https://github.com/VainF/Torch-Pruning, MIT), an
extra: ``pip install 'gaitlib[torch-pruning]'``. Its dependency graph and its pruning by groups are
DepGraph (Fang et al., CVPR 2023, https://arxiv.org/abs/2301.12900).
"""

import copy
import functools
import importlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gaitlib.model import GaitBase
from gaitlib.model.backbones import FocalConv2d
from gaitlib.model.float_state import quantization_of
from gaitlib.model.heads import SeparateFCs
from gaitlib.model.network_cost import FRAME, macs_per_frame

log = logging.getLogger(__name__)

#: The degree p of the norm that channels are compared by, by name.
IMPORTANCE = {"group_l2": 2, "group_l1": 1}


def prune_to_macs(model: GaitBase, macs: int, *, importance: str = "group_l2") -> GaitBase:
    """Return a copy without the least important channels, as small as asked for.

    Channels leave in the groups of torch-pruning's graph: outputs of a convolution with their batch
    norm, with what is added to them and with all that reads them, up to the rows of SeparateFCs.
    All groups compete in one ranking (``global_pruning``), and as many channels leave as bring the
    backbone nearest to ``macs``. Every group keeps its best one; embeddings and classes stay.

    The importance is the package's ``GroupMagnitudeImportance``: the sum of ``|w|^p`` over all that
    a channel owns, biases of batch norms left out, divided by its mean over the group. The package
    knows no SeparateFCs; their rows are added as it adds the columns of a linear layer.

    It all happens on the CPU, so that equal weights give an equal result on any device.

    Args:
        model: a float network; not changed.
        macs: of one frame, as `gaitlib.model.network_cost.macs_per_frame` counts them. The network's own, or
            more, give a whole copy.
        importance: ``group_l2``, which is p = 2 and what the package's README recommends, or
            ``group_l1``.

    Returns:
        The small network in train mode, on the device of ``model``. What is left of the weights is
        as it was. `gaitlib.deploy.network_file.write_network` writes it.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        ValueError: for another importance, a quantized network, or fewer MACs than one channel a
            group costs.
        FloatingPointError: if a weight is not finite.
    """
    if importance not in IMPORTANCE:
        raise ValueError(f"unknown importance {importance!r}; choose from {sorted(IMPORTANCE)}")
    if quantization_of(model) is not None:
        raise ValueError(
            "the network is quantized, and torch-pruning cuts no quantizers: prune it first, then "
            "quantize what is left"
        )
    _package()
    with torch.inference_mode(False):
        small, cost = _nearest(copy.deepcopy(model).cpu(), macs, IMPORTANCE[importance])
    log.info("torch-pruning: %d MACs a frame, %d were asked for", cost, macs)
    return small.train().to(next(model.parameters()).device)


def _nearest(dense: GaitBase, macs: int, degree: int) -> tuple[GaitBase, int]:
    """Return the pruned network whose MACs are nearest to ``macs``, and its MACs."""
    above = dense, macs_per_frame(dense)
    if above[1] <= macs:
        return above
    pruner = _pruner(copy.deepcopy(dense), 0.0, degree)
    groups = pruner.DG.get_all_groups(root_module_types=pruner.root_module_types)
    sizes = [len(group[0].idxs) for group in groups]

    def without(channels: int) -> tuple[GaitBase, int]:
        # the package keeps int(sum * (1 - ratio)) channels; half a one is safe from rounding
        small = _pruned(dense, (channels - 0.5) / sum(sizes), degree)
        return small, macs_per_frame(small)

    few, many = 0, sum(sizes) - len(sizes)
    below = without(many)
    if below[1] > macs:
        raise ValueError(
            f"macs {macs} cannot be reached: with one channel in each of {len(sizes)} groups, "
            f"{below[1]} of {above[1]} are left"
        )
    while many - few > 1:  # what leaves among few leaves among many: the MACs only fall
        middle = (few + many) // 2
        found = without(middle)
        if found[1] > macs:
            few, above = middle, found
        else:
            many, below = middle, found
    return min(below, above, key=lambda found: abs(found[1] - macs))


def _pruned(dense: GaitBase, ratio: float, degree: int) -> GaitBase:
    """Return a copy without the share ``ratio`` of its channels."""
    twin = copy.deepcopy(dense)
    _pruner(twin, ratio, degree).step()
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(dense.get_parameter(name).requires_grad)
    return twin


def _pruner(twin: GaitBase, ratio: float, degree: int) -> Any:
    """Trace ``twin`` and return the package's pruner of it; all its parameters require gradients.

    The forward pass that is traced ties channels together as the network's own does. It leaves out
    what the package would take for joined channels: the strips of the pyramid and of focal
    convolutions.
    """
    twin.requires_grad_(True)
    necks, twin.BNNecks = twin.BNNecks, None  # they read embeddings alone
    strips = {layer: layer.strips for layer in twin.modules() if isinstance(layer, FocalConv2d)}
    for layer in strips:
        layer.strips = 1
    importance, fcs = _extensions()
    with torch.enable_grad():
        pruner = _package().pruner.BasePruner(
            twin,
            torch.zeros(1, 1, *FRAME, dtype=twin.FCs.fc_bin.dtype),
            importance(degree),
            global_pruning=True,
            pruning_ratio=ratio,
            customized_pruners={SeparateFCs: fcs()},
            forward_fn=_one_strip,
        )
    for layer, number in strips.items():
        layer.strips = number
    twin.BNNecks = necks
    return pruner


def _one_strip(model: GaitBase, frames: Tensor) -> Tensor:
    """Embed frames ``(N, 1, H, W)`` as if every part saw the mean of the whole map."""
    maps = model.Backbone.forward_block(frames)  # (N, C', H', W')
    return model.FCs(maps.mean((2, 3)).unsqueeze(2))  # (N, C, P)


@functools.cache
def _package() -> ModuleType:
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pruning with torch-pruning needs the package torch_pruning; install it with: "
            "pip install 'gaitlib[torch-pruning]'",
            name="torch_pruning",
        ) from error


@functools.cache
def _extensions() -> tuple[type, type]:
    """Return what the package lacks for SeparateFCs: an importance that counts them, a pruner."""
    package = _package()

    class GroupNorm(package.importance.GroupMagnitudeImportance):
        """``|w|^p`` summed over a group's tensors: one score a channel, infinite for the best."""

        def __init__(self, p: int) -> None:
            super().__init__(p=p, group_reduction="sum", normalizer=None)

        @torch.no_grad()
        def __call__(self, group: Any) -> Tensor:
            scores = super().__call__(group)  # (G,)
            for item in group.items:
                if isinstance(item.dep.layer, SeparateFCs):
                    rows = item.dep.layer.fc_bin[:, item.idxs]  # (P, G, C)
                    scores[item.root_idxs] += rows.abs().pow(self.p).sum((0, 2))
            if not scores.isfinite().all():
                raise FloatingPointError(
                    f"not all weights of {group[0].dep.target.name} are finite"
                )
            scores = scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
            scores[scores.argmax()] = torch.inf  # the package keeps a group whole that would vanish
            return scores

    class FCsPruner(package.pruner.BasePruningFunc):
        """Cuts rows of ``fc_bin`` (P, in, out)."""

        def prune_in_channels(self, layer: SeparateFCs, idxs: Sequence[int]) -> SeparateFCs:
            kept = sorted(set(range(layer.fc_bin.shape[1])) - set(idxs))
            layer.fc_bin = self._prune_parameter_and_grad(layer.fc_bin, kept, 1)
            return layer

        def prune_out_channels(self, layer: SeparateFCs, idxs: Sequence[int]) -> SeparateFCs:
            raise NotImplementedError("embeddings keep their channels")

        def get_in_channels(self, layer: SeparateFCs) -> int:
            return layer.fc_bin.shape[1]

        def get_out_channels(self, layer: SeparateFCs) -> int:
            return layer.fc_bin.shape[2]

    return GroupNorm, FCsPruner
