"""Prune a trained network in one shot with torch-pruning, the usual way to get a small network.

This is the only file that imports torch-pruning (https://github.com/VainF/Torch-Pruning, MIT), an
extra: ``pip install 'gaitlib[torch-pruning]'``. Its dependency graph and its pruning by groups are
DepGraph (Fang et al., CVPR 2023, https://arxiv.org/abs/2301.12900).
"""

import copy
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from gaitlib.model import GaitBase
from gaitlib.model.backbones import FocalConv2d
from gaitlib.model.float_state import quantization_of
from gaitlib.model.heads import SeparateFCs
from gaitlib.model.network_cost import backbone_macs, macs_per_frame
from gaitlib.prune.channel_cost import product_cost
from gaitlib.prune.channel_groups import Segment
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

#: The largest share of its channels that a group loses in isomorphic pruning. It leaves each group
#: what the default ``min_channels_share`` of a budget does.
MAX_PRUNING_RATIO = 0.9
#: Isomorphic pruning ends within this share of the MACs asked for, where single channels allow it.
TOLERANCE = 0.01
#: The most groups in which it keeps one channel more or less for that.
MOST_CHANGES = 3


def prune_to_macs(model: GaitBase, macs: int, *, isomorphic: bool = False) -> GaitBase:
    """Return a copy of ``model`` without its least important channels, near ``macs`` in cost.

    Channels leave by the groups of torch-pruning's graph. A group holds the outputs of a
    convolution, their batch norm, whatever is added to them, and the weights that read them, up to
    the rows of SeparateFCs. One ranking compares the channels of all groups (``global_pruning``).
    As many channels leave as bring the backbone nearest to ``macs``. Every group keeps its best
    channel; embeddings and classes do not change.

    ``isomorphic`` is the package's fairest setting (Isomorphic Pruning, Fang et al., ECCV 2024,
    https://arxiv.org/abs/2407.04616): a ranking compares only groups of the same structure, such as
    the first convolutions of all blocks, and every ranking loses the same share. That share decides
    over several channels at once, so its result can be some percent off ``macs``. Then the fewest
    possible changes, of one channel more or less in a group, bring it within `TOLERANCE`. No group
    loses more than `MAX_PRUNING_RATIO`. The package checks that between the steps of iterative
    pruning; here, in one step, the best channels of each group have infinite importance.

    The importance is the package's ``GroupMagnitudeImportance`` with p = 2, which its README
    recommends: the sum of ``|w|^p`` over all numbers that a channel owns, without the biases of
    batch norms, divided by the mean over the group. The package does not know SeparateFCs; their
    rows count as the columns of a linear layer do.

    All of it runs on the CPU, so that equal weights give an equal result on any device.

    Args:
        model: a float network; not changed.
        macs: MACs per frame, as `gaitlib.model.network_cost.macs_per_frame` counts them. If the
            network needs no more than that, the copy is whole.
        isomorphic: rank groups of the same structure only.

    Returns:
        The small network in train mode, on the device of ``model``. The remaining weights are
        unchanged. `gaitlib.deploy.network_file.write_network` writes it.

    Raises:
        UserError: for a quantized network, fewer MACs than the network has with the fewest channels
            allowed per group, or a weight that is not finite.
    """
    if quantization_of(model) is not None:
        raise UserError(
            "the network is quantized, and torch-pruning cannot cut quantizers: prune it first, "
            "then quantize the result"
        )
    with torch.inference_mode(False):
        small, cost = _nearest(copy.deepcopy(model).cpu(), macs, isomorphic)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    log.info("torch-pruning: %d MACs per frame, the target was %d", cost, macs)
    return small.train().to(next(model.parameters()).device)


def _nearest(dense: GaitBase, macs: int, isomorphic: bool) -> tuple[GaitBase, int]:
    """Return the pruned network whose MACs are nearest to ``macs``, and its MACs."""
    above = dense, macs_per_frame(dense)
    if above[1] <= macs:
        return above
    pruner = _pruner(copy.deepcopy(dense), 0.0, isomorphic)
    sizes = [len(group[0].idxs) for group in _groups(pruner)]

    def ratio(channels: int) -> float:
        # the package keeps int(sum * (1 - ratio)) channels; half a channel less avoids rounding
        return max(0.0, (channels - 0.5) / sum(sizes))

    def without(channels: int) -> tuple[GaitBase, int]:
        twin = copy.deepcopy(dense)
        _pruner(twin, ratio(channels), isomorphic).step()
        return twin, macs_per_frame(twin)

    least = [_least(size, isomorphic) for size in sizes]
    low, high = 0, sum(sizes) - sum(least)  # bounds of the channels to remove
    if isomorphic:  # every ranking loses the same share
        shares = [1 - n / size for n, size in zip(least, sizes, strict=True)]
        high = int(min(shares) * sum(sizes))
    below = without(high)
    if below[1] > macs:
        fewest = "one channel" if max(least) == 1 else f"{min(least)} to {max(least)} channels"
        raise UserError(
            f"macs {macs} cannot be reached: with {fewest} in each of {len(sizes)} groups, "
            f"it needs {below[1]} of {above[1]}"
        )
    while high - low > 1:  # a larger number removes the same channels and more, so MACs only fall
        middle = (low + high) // 2
        found = without(middle)
        if found[1] > macs:
            low, above = middle, found
        else:
            high, below = middle, found
    nearest = min(below, above, key=lambda found: abs(found[1] - macs))
    if isomorphic and abs(nearest[1] - macs) > TOLERANCE * macs:
        small = _adjusted(dense, ratio(high if nearest is below else low), macs)
        return small, macs_per_frame(small)
    return nearest


def _least(channels: int, isomorphic: bool) -> int:
    """Return how many channels a group of ``channels`` keeps at least."""
    return max(1, math.ceil((1 - MAX_PRUNING_RATIO) * channels - 1e-9)) if isomorphic else 1


def _groups(pruner: Any) -> list[Any]:
    return list(pruner.DG.get_all_groups(root_module_types=pruner.root_module_types))


def _adjusted(dense: GaitBase, ratio: float, macs: int) -> GaitBase:
    """Return a copy pruned by ``ratio``, with a channel more or less in the fewest groups possible.

    Of equally few changes that end within `TOLERANCE` of ``macs``, those that end nearest are made.
    If `MOST_CHANGES` are too few for that, it is the nearest of all.
    """
    twin = copy.deepcopy(dense)
    pruner = _pruner(twin, ratio, isomorphic=True)
    removed = {group[0].dep.target.name: len(group[0].idxs) for group in pruner.step(True)}
    groups = {group[0].dep.target.name: group for group in _groups(pruner)}
    scores = {name: pruner.estimate_importance(group).tolist() for name, group in groups.items()}
    full = {name: len(scored) for name, scored in scores.items()}
    shrinks: dict[str, list[tuple[Segment, ...]]] = {}
    for name, group in groups.items():
        for item in group.items:
            if isinstance(item.dep.layer, nn.Conv2d):
                layer = pruner.DG._module2name[item.dep.layer]
                shrinks.setdefault(layer, []).append((Segment(name, full[name]),))
    cost = product_cost("MACs per frame", full, backbone_macs(dense), shrinks)
    widths = {name: channels - removed.get(name, 0) for name, channels in full.items()}

    def distance(candidate: dict[str, int]) -> float:
        return abs(cost.total(candidate) - macs)

    best = widths
    for changes in range(1, 1 + MOST_CHANGES):
        if distance(best) <= TOLERANCE * macs:
            break
        for chosen in itertools.combinations(groups, changes):
            for signs in itertools.product((-1, 1), repeat=changes):
                changed = {n: widths[n] + sign for n, sign in zip(chosen, signs, strict=True)}
                if all(_least(full[n], True) <= width <= full[n] for n, width in changed.items()):
                    best = min(best, widths | changed, key=distance)
    for name, group in groups.items():
        if count := full[name] - best[name]:
            lowest = torch.tensor(scores[name]).argsort(stable=True)[:count].tolist()
            dep = group[0].dep
            pruner.DG.get_pruning_group(dep.target.module, dep.handler, lowest).prune()
    return twin


def _pruner(twin: GaitBase, ratio: float, isomorphic: bool) -> Any:
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
    with torch.enable_grad():
        pruner = torch_pruning.pruner.BasePruner(
            twin,
            torch.zeros(1, 1, *twin.frame_size, dtype=twin.FCs.fc_bin.dtype),
            _GroupNorm(isomorphic),
            global_pruning=True,
            isomorphic=isomorphic,
            pruning_ratio=ratio,
            customized_pruners={SeparateFCs: _FCsPruner()},
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


class _GroupNorm(torch_pruning.importance.GroupMagnitudeImportance):
    """Sums ``|w|^p`` over a group's tensors: one score per channel, infinite for the best."""

    def __init__(self, isomorphic: bool) -> None:
        super().__init__(p=2, group_reduction="sum", normalizer=None)
        self.isomorphic = isomorphic

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        scores = super().__call__(group)  # (G,)
        for item in group.items:
            if isinstance(item.dep.layer, SeparateFCs):
                rows = item.dep.layer.fc_bin[:, item.idxs]  # (P, G, C)
                scores[item.root_idxs] += rows.abs().pow(self.p).sum((0, 2))
        if not scores.isfinite().all():
            raise UserError(f"not all weights of {group[0].dep.target.name} are finite")
        scores = scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
        # the package prunes no channel of a group that would lose all
        scores[scores.topk(_least(len(scores), self.isomorphic)).indices] = torch.inf
        return scores


class _FCsPruner(torch_pruning.pruner.BasePruningFunc):
    """Cuts rows of ``fc_bin`` (P, in, out); embeddings keep their channels."""

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
