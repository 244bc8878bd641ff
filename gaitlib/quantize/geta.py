"""GETA: an optimizer that prunes channels and chooses bits in one training run.

This is QASSO, the optimizer of GETA (Qu et al., https://arxiv.org/abs/2502.16638). It uses the
groups, scores and schedule of `gaitlib.prune.hesso.HESSO`, and equals it without quantization.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.model.float_state import quantization_of
from gaitlib.prune.channel_cost import ChannelCost
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso import HESSO, NetworkBudget, network_budget
from gaitlib.prune.removal import Removal, removal_of
from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_control import BitControl
from gaitlib.quantize.bit_settings import FloatFirst, GetaSettings
from gaitlib.quantize.late_bits import LateBits
from gaitlib.quantize.qasso import choose_rate_and_steps
from gaitlib.quantize.quantization import Quantization
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)


class GETA(HESSO):
    """Train, prune and quantize in one run.

    One step on a network with quantizers (steps count from 1; `BitPlan` has the phases):

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
        settings: those of `HESSO`, and of bits.
        quantization: the quantizers of the network; None without a plan.
        budget, removal: as in `HESSO`.
        bit_budget: what the bits may cost; needed if ``settings`` have a budget for them.
        model: the network; needed with ``clipping: channel``.

    Raises:
        UserError: as `HESSO` does; also if there is a plan without quantizers, or the reverse.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        settings: GetaSettings,
        quantization: Quantization | None = None,
        budget: NetworkBudget | None = None,
        removal: Removal | None = None,
        bit_budget: BitBudget | None = None,
        model: nn.Module | None = None,
    ) -> None:
        plan = settings.bit_plan
        if plan is not None and quantization is None:
            raise UserError(
                "keys such as min_bit_wt switch quantization on: pass the result of "
                "quantize_network(model)"
            )
        if plan is None and quantization is not None:
            raise UserError(
                "the network has quantizers, but no key switches quantization on: give target_bits"
            )
        self.control = None
        if plan is not None and plan.bits_start is not None:
            by_channel = settings.bits.clipping == "channel"
            self.control = LateBits(quantization, plan, bit_budget, model if by_channel else None)
        elif plan is not None:
            self.control = BitControl(quantization, plan)
        groups = [*groups, self.control.param_group()] if self.control else list(groups)
        super().__init__(groups, settings, budget, removal)

    @property
    def phase(self) -> str:
        """The phase of the last step; ``""`` without quantization."""
        return self.control.plan.phase(self.num_steps) if self.control else ""

    def state_dict(self) -> dict[str, Any]:
        """Return HESSO's entries and, with quantizers, ``geta``; the network's has d, q_m and t."""
        state = super().state_dict()
        if self.control is not None:
            state["geta"] = self.control.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            UserError: as `HESSO.load_state_dict` does; also if only one of the two runs quantizes,
                or their bit plans differ.
        """
        if ("geta" in state_dict) != (self.control is not None):
            there, here = ("with", "without") if self.control is None else ("without", "with")
            raise UserError(f"the state is of a run {there} quantizers, this one is {here}")
        if self.control is not None:
            self.control.check_state(state_dict["geta"])
        super().load_state_dict(state_dict)
        if self.control is not None:
            self.control.load_state_dict(state_dict["geta"])
            self.control.watch(self.num_steps)

    def _share_groups(self) -> None:
        super()._share_groups()
        self._scalar_groups = [g for g in self.param_groups if g["id"] == "quantization"]
        if self._scalar_groups:
            self._base.param_groups = [g for g in self.param_groups if g["id"] != "quantization"]

    def _update(self) -> None:
        if self.control is None:
            super()._update()
            return
        step = self.pruner.steps
        if not self.control.rounds:
            self.control.observe(step, self._quantized())
            super()._update()
            return
        self.control.begin_step(step)
        before = self.control.scalars()
        self._step_scalars()
        self.control.limit_moves(before)
        losses = self._choose_losses(step, before[0])
        self._base.step()
        for group in self.pruner.groups:
            if group["id"] in losses:
                self._subtract(group, losses[group["id"]])
            else:
                self._shrink(group)
        self.control.follow(step, self._quantized())
        self.control.project(step)

    def _end_step(self) -> None:
        if self.control is not None and not self.control.rounds:
            self.control.end_float_step(self.pruner.steps, self._quantized(), self.state)

    def _quantized(self) -> list[Tensor]:
        """Return the quantized parameters, in the order of their quantizers."""
        places = self.control.positions
        found = {
            places[name]: param
            for group in self.param_groups
            for name, param in zip(group["p_names"], group["params"], strict=True)
            if name in places
        }
        return [found[place] for place in range(len(places))]

    def _step_scalars(self) -> None:
        """Move d, q_m and t by the base optimizer, with ``lr_quant``.

        If ranges follow, it moves their logarithms, whose gradients are ``x dL/dx``.
        """
        (group,) = self._scalar_groups
        weights, scheduled = self._base.param_groups, group["lr"]
        self._base.param_groups, group["lr"] = self._scalar_groups, self.control.plan.lr_quant
        scalars = [s for s in group["params"] if s.grad is not None]
        is_log = self.control.plan.follow_until is not None
        self.control.complete_gradients()
        try:
            if is_log:
                torch._foreach_mul_([s.grad for s in scalars], scalars)
                torch._foreach_log_(scalars)
            self._base.step()
            if is_log:
                torch._foreach_exp_(scalars)
        finally:
            self._base.param_groups, group["lr"] = weights, scheduled

    def _choose_losses(self, step: int, d_before: Tensor) -> dict[str, list[Tensor]]:
        """Set the step sizes of groups that shrink; return what each of their tensors loses.

        Returns:
            Group id -> ``gamma x^Q`` of the redundant channels, one per tensor of the group. Groups
            without redundant channels or without quantized tensors are missing.
        """
        control, pending, decisions = self.control, [], []
        finest, coarsest = control.bounds(step)
        for group in self.pruner.groups:
            redundant = self.pruner.indices(group).get("redundant")
            places = [control.positions.get(name) for name in group["p_names"]]
            quantized = [place for place in places if place is not None]
            if redundant is None or not quantized:
                continue
            contents, residuals, moves = [], [], []
            for param, move, dim, place in zip(
                group["params"], self._moves(group), group["p_dims"], places, strict=True
            ):
                content, residual = param.index_select(dim, redundant), None
                if place is not None:
                    quantizer = control.quantizers[place]
                    content, residual = quantizer.split(content, d_before[place])
                contents.append(content)
                residuals.append(residual)
                moves.append(None if move is None else move.index_select(dim, redundant))
            bounds = (torch.stack([b[i] for i in quantized]) for b in (finest, coarsest))
            even = 1.0 - self.pruner.factor
            gamma, d = choose_rate_and_steps(contents, residuals, moves, group["lr"], even, *bounds)
            decisions.append(torch.cat([gamma.reshape(1), d]))
            pending.append((group["id"], contents, residuals, quantized))
        if not pending:
            return {}
        decided = from_rank_0(torch.cat(decisions)).split([len(d) for d in decisions])
        losses = {}
        for (id_, contents, residuals, quantized), (gamma, *steps) in zip(
            pending, decided, strict=True
        ):
            for place, d in zip(quantized, steps, strict=True):
                control.quantizers[place].d.copy_(d)
            own = iter(steps)
            losses[id_] = [
                (content if residual is None else content.add_(residual * next(own))).mul_(gamma)
                for content, residual in zip(contents, residuals, strict=True)
            ]
        return losses

    def _subtract(self, group: dict[str, Any], losses: Sequence[Tensor]) -> None:
        """Subtract ``losses`` from redundant channels; set removed channels to zero."""
        redundant, ends = self.pruner.indices(group)["redundant"], self.pruner.factor == 0.0
        remaining = total = 0.0
        for param, dim, loss in zip(group["params"], group["p_dims"], losses, strict=True):
            rows = param.index_select(dim, redundant).sub_(loss)
            if ends:
                remaining = remaining + rows.square().sum()
                total = total + param.square().sum()
                rows.zero_()
            param.index_copy_(dim, redundant, rows)
        if ends:  # the only wait for the device, once per period
            share = (remaining / total).sqrt().item()
            log.info(
                "%s: redundant channels leave with %.3f of the group's norm", group["id"], share
            )
        self._zero_pruned(group)


def build_geta(
    graph: Graph,
    settings: GetaSettings,
    quantization: Quantization | None = None,
    latency: ChannelCost | None = None,
) -> GETA:
    """Build a `GETA` for the model of ``graph``.

    Args:
        graph: the result of `gaitlib.prune.oto.trace` for the model.
        settings: without ``bits`` the optimizer only prunes.
        quantization: the result of `quantize_network`, attached to the model of ``graph``. Before
            the first step, calibrate it or load it from a checkpoint.
        latency: needed for ``target_latency_ms``; see `gaitlib.prune.hesso.network_budget`.

    Raises:
        UserError: if settings, quantizers and model do not belong together, or the target cannot be
            reached.
    """
    if quantization is not None:
        if quantization_of(graph.model) is not quantization:
            raise UserError("the quantization is not the one attached to the model of the graph")
        weights_alone = settings.bits is not None and settings.bits.quantize == "weights"
        if weights_alone and len(quantization.activations):
            raise UserError(
                "quantize is 'weights', but the network has quantizers of activations: call "
                "quantize_network(model, 'weights')"
            )
    budget = network_budget(graph, settings, latency)
    limited = isinstance(settings.bits, FloatFirst) and settings.bits.budget is not None
    bit_budget = BitBudget(graph, settings) if limited else None
    removal = removal_of(graph, settings)
    groups = graph.param_groups()
    return GETA(groups, settings, quantization, budget, removal, bit_budget, graph.model)
