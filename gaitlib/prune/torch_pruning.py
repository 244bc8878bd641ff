"""Prune a trained network in one shot with torch-pruning, the usual way to get a small network.

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

#: The degree p of the norm that ranks the channels, by name.
IMPORTANCE = {"group_l2": 2, "group_l1": 1}


def prune_to_macs(model: GaitBase, macs: int, *, importance: str = "group_l2") -> GaitBase:
    """Return a copy of ``model`` without its least important channels, near ``macs`` in cost.

    Channels leave by the groups of torch-pruning's graph. A group holds the outputs of a
    convolution, their batch norm, whatever is added to them, and the weights that read them, up to
    the rows of SeparateFCs. One ranking compares the channels of all groups (``global_pruning``).
    As many channels leave as bring the backbone nearest to ``macs``. Every group keeps its best
    channel; embeddings and classes do not change.

    The importance is the package's ``GroupMagnitudeImportance``: the sum of ``|w|^p`` over all
    numbers that a channel owns, without the biases of batch norms, divided by the mean over the
    group. The package does not know SeparateFCs; their rows count as the columns of a linear layer
    do.

    All of it runs on the CPU, so that equal weights give an equal result on any device.

    Args:
        model: a float network; not changed.
        macs: MACs per frame, as `gaitlib.model.network_cost.macs_per_frame` counts them. If the
            network needs no more than that, the copy is whole.
        importance: ``group_l2`` (p = 2), which the package's README recommends, or ``group_l1``.

    Returns:
        The small network in train mode, on the device of ``model``. The remaining weights are
        unchanged. `gaitlib.deploy.network_file.write_network` writes it.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        ValueError: for another importance, a quantized network, or fewer MACs than the network has
            with one channel per group.
        FloatingPointError: if a weight is not finite.
    """
    if importance not in IMPORTANCE:
        raise ValueError(f"unknown importance {importance!r}; choose from {sorted(IMPORTANCE)}")
    if quantization_of(model) is not None:
        raise ValueError(
            "the network is quantized, and torch-pruning cannot cut quantizers: prune it first, "
            "then quantize the result"
        )
    _package()
    with torch.inference_mode(False):
        small, cost = _nearest(copy.deepcopy(model).cpu(), macs, IMPORTANCE[importance])
    log.info("torch-pruning: %d MACs per frame, the target was %d", cost, macs)
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
        # the package keeps int(sum * (1 - ratio)) channels; half a channel less avoids rounding
        small = _pruned(dense, (channels - 0.5) / sum(sizes), degree)
        return small, macs_per_frame(small)

    low, high = 0, sum(sizes) - len(sizes)  # bounds of the channels to remove
    below = without(high)
    if below[1] > macs:
        raise ValueError(
            f"macs {macs} cannot be reached: with one channel in each of {len(sizes)} groups, "
            f"it needs {below[1]} of {above[1]}"
        )
    while high - low > 1:  # a larger number removes the same channels and more, so MACs only fall
        middle = (low + high) // 2
        found = without(middle)
        if found[1] > macs:
            low, above = middle, found
        else:
            high, below = middle, found
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

    The traced forward pass ties the same channels together as the network's own. It does not split
    maps into strips (of the pyramid and of focal convolutions), which the package would take for
    joined channels.
    """
    twin.requires_grad_(True)
    necks, twin.BNNecks = twin.BNNecks, None  # they read only embeddings
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
    """Embed frames ``(N, 1, H, W)`` by the mean of the whole map, the same for every part."""
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
    """Return two classes for SeparateFCs: an importance that counts them, and their pruner."""
    package = _package()

    class GroupNorm(package.importance.GroupMagnitudeImportance):
        """Sums ``|w|^p`` over a group's tensors: one score per channel, infinite for the best."""

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
            # keep one channel: the package prunes no channel of a group that would lose all
            scores[scores.argmax()] = torch.inf
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
