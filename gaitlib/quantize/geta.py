"""GETA: an optimizer that prunes channels and chooses bits in one training run.

This is QASSO, the optimizer of GETA (Qu et al., https://arxiv.org/abs/2502.16638). It uses the
groups, scores and schedule of `gaitlib.prune.hesso.HESSO`, and equals it without quantization.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gaitlib.model import GaitBase
from gaitlib.model.examples import Example
from gaitlib.model.float_state import quantization_of
from gaitlib.prune.channel_cost import ChannelCost
from gaitlib.prune.graph import Graph, require_graph
from gaitlib.prune.hesso import (
    HESSO,
    NetworkBudget,
    build_hesso,
    measured_latency,
    network_budget,
)
from gaitlib.prune.removal import Removal, removal_of
from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_control import BitControl
from gaitlib.quantize.bit_settings import FloatFirst, GetaSettings
from gaitlib.quantize.late_bits import LateBits
from gaitlib.quantize.qasso import choose_rate_and_steps
from gaitlib.quantize.quantization import Quantization, calibrate, quantize_network
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError


class GETA(HESSO):
    """Train, prune and quantize in one run.

    One step on a network with quantizers (steps count from 1; `Qasso` has the phases):

    1. At the first step of a pruning period, channels are chosen as in HESSO.
    2. The base optimizer moves d, q_m and t, with ``lr_quant`` and without weight decay. A schedule
       for the weights' learning rate has no effect on them. None more than halves or doubles.
    3. In a group with redundant channels, `qasso.choose_rate_and_steps` chooses the forget rate
       gamma and the step size of each quantized weight.
    4. The base optimizer moves the weights. Redundant channels also lose gamma x^Q (gamma x in a
       tensor that is not quantized), with x from before the step. Channels whose period ends here
       or ended earlier are set to zero.
    5. Every d is clipped to its interval; in cool-down it is set to its whole bits.

    A group without quantized weights shrinks as in HESSO. This differs on purpose from the
    published code: it lacks the defects that the project's tests name, and

    * a projection period shrinks the interval at its last step, before that step's clipping. So
      ``projection_periods`` shrinks have happened at the end of ``projection_steps``;
    * activations are controlled as weights are, with the same ``bit_reduction`` down to
      ``min_bit_act``;
    * in cool-down the gradient of q_m is the quantizer's own; it has no term for d, which follows
      q_m there.

    With ``order: float_first`` steps are HESSO's until `LateBits` chooses bits. From then on 2, 4
    and 5 remain, as in cool-down.

    In a distributed job all processes use rank 0's gamma, d and whole bits.

    Args:
        groups: parameter groups from `Graph.param_groups` (copied).
        settings: as in `HESSO`.
        control: of the network's quantizers.
        budget, removal: as in `HESSO`.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        settings: GetaSettings,
        control: BitControl,
        budget: NetworkBudget | None = None,
        removal: Removal | None = None,
    ) -> None:
        self.control = control
        super().__init__([*groups, control.param_group()], settings, budget, removal)

    def state_dict(self) -> dict[str, Any]:
        """Return HESSO's entries and ``geta``; the network's has d, q_m and t."""
        return super().state_dict() | {"geta": self.control.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            UserError: as `HESSO.load_state_dict` does; also if the bit plans differ.
        """
        super().load_state_dict(state_dict)
        self.control.load_state_dict(state_dict["geta"])
        self.control.watch(self.num_steps)

    def bits_row(self) -> dict[str, float]:
        """Return a row of ``bits.csv``: the bits after the last step, real-valued.

        Columns:
            weights:<layer>, activations:<layer>: bits of the layer's weight, of its input; NaN
                while nothing is rounded.
            weights_min, weights_max, activations_min, activations_max: the allowed interval; NaN in
                warm-up, which has none, and while nothing is rounded.
            outside: how often a quantizer was outside its interval after a step, over all steps so
                far.
        """
        control, step = self.control, self.num_steps
        table = control.quantization.bits()
        row = dict(zip(table["kind"] + ":" + table["layer"], table["bits"], strict=True))
        bounds = [bound for limits in control.plan.limits(step) for bound in map(float, limits)]
        if control.plan.phase(step) == "warm-up":
            bounds = [math.nan] * 4
        names = ("weights_min", "weights_max", "activations_min", "activations_max")
        row |= dict(zip(names, bounds, strict=True))
        row = row if control.rounds else dict.fromkeys(row, math.nan)
        return row | {"outside": int(control.outside)}

    def _share_groups(self) -> None:
        super()._share_groups()
        *self._base.param_groups, self._scalars = self.param_groups

    def _update(self) -> None:
        control, step = self.control, self.pruner.steps
        if not control.rounds:
            control.observe(step)
            super()._update()
            return
        control.begin_step(step)
        before = self._step_scalars()
        losses = self._choose_losses(step, before[0])
        self._base.step()
        for group in self.pruner.groups:
            if group["id"] in losses:
                self._subtract(group, losses[group["id"]])
                followers = (t for t in self.pruner.tensors(group) if t[0] in group["followers"])
                self._multiply_redundant(group, followers)
                self._zero_pruned(group)
            else:
                self._shrink(group)
        control.follow(step)
        control.project(step)

    def _end_step(self) -> None:
        if not self.control.rounds:
            self.control.end_float_step(self.pruner.steps, self.state)

    def _step_scalars(self) -> tuple[Tensor, ...]:
        """Move d, q_m and t by the base optimizer, with ``lr_quant``; return them from before.

        If ranges follow, it moves their logarithms, whose gradients are ``x dL/dx``.
        """
        before = self.control.quantization.scalars()
        weights, scheduled = self._base.param_groups, self._scalars["lr"]
        self._base.param_groups, self._scalars["lr"] = [self._scalars], self.control.plan.lr_quant
        scalars = [s for s in self._scalars["params"] if s.grad is not None]
        is_log = self.control.plan.follow_until is not None
        self.control.complete_gradients()
        if is_log:
            torch._foreach_mul_([s.grad for s in scalars], scalars)
            torch._foreach_log_(scalars)
        self._base.step()
        if is_log:
            torch._foreach_exp_(scalars)
        self._base.param_groups, self._scalars["lr"] = weights, scheduled
        self.control.limit_moves(before)
        return before

    def _choose_losses(self, step: int, d_before: Tensor) -> dict[str, list[Tensor]]:
        """Set the step sizes of groups that shrink; return what each of their tensors loses.

        Returns:
            Group id -> ``gamma x^Q`` of the redundant channels, one per tensor of the group. Groups
            without redundant channels or without quantized tensors are missing.
        """
        control, losses = self.control, {}
        finest, coarsest = control.bounds(step)
        for group in self.pruner.groups:
            redundant = self.pruner.indices(group).get("redundant")
            places = [control.positions.get(name) for name in group["p_names"]]
            quantized = [place for place in places if place is not None]
            if redundant is None or not quantized:
                continue
            slices = []
            for param, move, dim, place in zip(
                group["params"], self._moves(group), group["p_dims"], places, strict=True
            ):
                content, residual = param.index_select(dim, redundant), None
                if place is not None:
                    content, residual = control.quantizers[place].split(content, d_before[place])
                move = None if move is None else move.index_select(dim, redundant)
                slices.append((content, residual, move))
            bounds = (torch.stack([b[i] for i in quantized]) for b in (finest, coarsest))
            even = 1.0 - self.pruner.factor
            gamma, d = choose_rate_and_steps(slices, group["lr"], even, *bounds)
            gamma, *steps = from_rank_0(torch.cat([gamma.reshape(1), d]))
            for place, d in zip(quantized, steps, strict=True):
                control.quantizers[place].d.copy_(d)
            own = iter(steps)
            losses[group["id"]] = [
                (content if residual is None else content.add_(residual * next(own))).mul_(gamma)
                for content, residual, _ in slices
            ]
        return losses

    def _subtract(self, group: dict[str, Any], losses: Sequence[Tensor]) -> None:
        """Subtract ``losses`` from redundant channels, at the end of a period all that is left."""
        redundant = self.pruner.indices(group)["redundant"]
        for param, dim, loss in zip(group["params"], group["p_dims"], losses, strict=True):
            param.index_add_(dim, redundant, loss, alpha=-1)
            if self.pruner.factor == 0.0:
                param.index_fill_(dim, redundant, 0.0)


def geta(graph: Graph, batches: Iterable[Example], **keys: Any) -> HESSO:
    """Quantize a network of one's own, and build what prunes it and chooses its bits.

    Args:
        graph: what `gaitlib.prune.oto.trace` said of the network, to which quantizers are added.
        batches: inputs like those of training; the ranges of activations start from them.
        keys: those of `GetaSettings.kinds`, as an experiment's file has them.

    Raises:
        UserError: as `build_geta`, or for a network that is already quantized, or does not run on
            a batch; it has no quantizers then.
    """
    require_graph(graph)
    if isinstance(batches, Tensor | dict):
        raise UserError("batches is one input of the network: write a list of them, [batch]")
    settings = GetaSettings.of(**keys)
    bits = settings.bits
    if bits is None:
        return build_geta(graph, settings, latency=measured_latency(graph, settings))
    quantization = quantize_network(
        graph.model,
        bits.quantize,
        weight_bits=bits.max_bit_wt,
        activation_bits=bits.max_bit_act,
        uniform=bits.uniform,
    )
    try:
        calibrate(graph.model, quantization, batches)
        return build_geta(graph, settings, quantization, measured_latency(graph, settings))
    except UserError:
        quantization.detach_from(graph.model)  # so that it can be called again
        raise


def build_geta(
    graph: Graph,
    settings: GetaSettings,
    quantization: Quantization | None = None,
    latency: ChannelCost | None = None,
) -> HESSO:
    """Build a `GETA` for the model of ``graph``; without ``settings.bits`` a `HESSO`.

    Args:
        graph: the result of `gaitlib.prune.oto.trace` for the model.
        settings: what to prune, and how bits are chosen.
        quantization: the result of `quantize_network`, attached to the model of ``graph``. Before
            the first step, calibrate it or load it from a checkpoint.
        latency: needed for ``target_latency_ms``; see `gaitlib.prune.hesso.network_budget`.

    Raises:
        UserError: if settings, quantizers and model do not belong together, or the target cannot be
            reached.
    """
    bits, attached = settings.bits, quantization_of(graph.model)
    if attached is not quantization or (bits is None) != (quantization is None):
        raise UserError(
            "quantizers and keys of bits go together: pass what quantize_network(model) returns "
            "for the model of the graph, and settings with a key such as target_bits; or neither"
        )
    if bits is None:
        return build_hesso(graph, settings, latency)
    if bits.quantize == "weights" and len(quantization.activations):
        raise UserError(
            "quantize is 'weights', but the network has quantizers of activations: call "
            "quantize_network(model, 'weights')"
        )
    if isinstance(bits, FloatFirst):
        budget = None if bits.budget is None else BitBudget(graph, settings)
        example = None if isinstance(graph.model, GaitBase) else graph.example
        control = LateBits(graph.model, bits, budget, example)
    else:
        control = BitControl(graph.model, bits)
    limits = network_budget(graph, settings, latency)
    removal = removal_of(graph, settings)
    optimizer = GETA(graph.param_groups(), settings, control, limits, removal)
    graph.unfinished = optimizer.unfinished
    return optimizer
