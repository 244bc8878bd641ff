"""Bits that come late: train and prune in float, then round for the last part of the steps.

This is ``order: float_first``. Float training followed by a part with bits beats bits in all steps,
and that part may coincide with the decay of the learning rate (Dremov et al., 2025,
https://arxiv.org/abs/2509.22935).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_control import FOLLOW_RATE, BitControl, normal_clipping
from gaitlib.quantize.bit_plan import BitPlan
from gaitlib.quantize.grid import step_size
from gaitlib.quantize.ptq import clip_channels
from gaitlib.quantize.quantization import Quantization
from gaitlib.system.distributed import from_rank_0

#: Steps before the switch in which inputs are watched, and gradients are gathered for a budget.
OBSERVED_STEPS = 50
#: The optimizer's averages of a parameter's gradients, and which power of them they average.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}


class LateBits(BitControl):
    """Keeps quantizers off until the switch, chooses whole bits there, and keeps them.

    Until ``plan.bits_start`` steps are done, nothing is rounded, and the scalars do not learn. In
    the last OBSERVED_STEPS of them the range of each input becomes the running mean of the
    magnitudes that 99.9 % of a batch are below, and the squared gradients of the weights are
    summed. Then each quantizer gets whole bits: those of the plan, or what the budget chooses. A
    weight is clipped at `normal_clipping`; before, `clip_channels` may give the output channels of
    a convolution like ranges, which changes nothing of the float network.

    Afterwards ranges follow what they clip up to ``plan.follow_until``, as in `BitControl`, and are
    learned from then on. Since d follows q_m and t at fixed bits, the gradients of those two
    include what they change by d: with d = q_m^t / L that is ``dL/dd t d / q_m`` and
    ``dL/dd d ln q_m``. For t = 1 this is the gradient of the range in learned step size
    quantization (Esser et al., 2020, https://arxiv.org/abs/1902.08153).

    Args:
        quantization: of the network; switched off here.
        plan: with ``bits_start``.
        budget: chooses the bits of weights; None takes those of the plan.
        model: the network, to clip by channel; None clips by tensor.
    """

    def __init__(
        self,
        quantization: Quantization,
        plan: BitPlan,
        budget: BitBudget | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(quantization, plan)
        self.budget, self.model = budget, model
        self.squares: Tensor | None = None  # (W,), sums of the mean squared gradients
        self._switch()

    @property
    def rounds(self) -> bool:
        """Whether the network is rounded in the next step."""
        return self.whole is not None

    def begin_step(self, step: int) -> None:
        """Do nothing: bits are chosen at the end of a step."""

    def follows(self, step: int) -> bool:
        """Return whether ranges follow what they clip after ``step``."""
        if step <= self.plan.bits_start or self.whole is None:
            return self._observes(step)
        return super().follows(step)

    def observe(self, step: int, weights: Sequence[Tensor]) -> None:
        """Gather the gradients of a step in float, before the weights move.

        Args:
            step: the number of the step.
            weights: the quantized parameters, in the order of their quantizers.
        """
        if self.budget is None or not self._observes(step):
            return
        grads = [w.new_zeros(1) if w.grad is None else w.grad for w in weights]
        found = torch.stack([g.float().square().mean() for g in grads])
        self.squares = found if self.squares is None else found + self.squares.to(found.device)

    def end_float_step(
        self, step: int, weights: Sequence[Tensor], state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Follow the inputs' ranges; after the last step in float choose bits and round.

        Args:
            step: steps that have been done.
            weights: as in `observe`, after channels have left.
            state: the optimizer's, by parameter; it is scaled with the channels of weights.
        """
        self.follow(step, weights)
        if step >= self.plan.bits_start:
            self._choose_bits(weights)
            self._scale_channels(weights, state)
            self._set_ranges(weights)
            self._switch()
            self.watch(step)

    def complete_gradients(self) -> None:
        """Add to the gradients of q_m and t what they change by d, which follows them."""
        live = [q for q in self.quantizers if q.d.grad is not None and q.q_m.grad is not None]
        if not live:
            return
        d, q_m, t, grad = (
            torch.stack([value(q) for q in live])
            for value in (lambda q: q.d, lambda q: q.q_m, lambda q: q.t, lambda q: q.d.grad)
        )
        torch._foreach_add_([q.q_m.grad for q in live], list((grad * t * d / q_m).unbind()))
        for q, share in zip(live, (grad * d * q_m.log()).unbind(), strict=True):
            if q.t.grad is not None:
                q.t.grad.add_(share)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue, except for the scalars."""
        return super().state_dict() | {"squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; see `check_state`."""
        super().load_state_dict(state)
        self.squares = state["squares"]
        self._switch()

    def _observes(self, step: int) -> bool:
        return step > self.plan.bits_start - OBSERVED_STEPS

    def _input_rate(self, step: int) -> float:
        """Return 1/k at the k-th observed step in float, which makes the range a running mean."""
        if self.whole is not None:
            return FOLLOW_RATE
        observed = step - max(self.plan.bits_start - OBSERVED_STEPS, 0)
        return max(FOLLOW_RATE, 1 / observed)

    def _choose_bits(self, weights: Sequence[Tensor]) -> None:
        signs = self._signs()
        least = torch.full_like(signs, self.plan.weights.least)
        least[len(weights) :] = self.plan.activations.least
        bits = torch.maximum(least, 1 + signs)  # calibration may find negative inputs
        if self.budget is not None:
            names = list(self.positions)
            inputs = zip(self.quantization.activations.keys(), bits[len(names) :], strict=True)
            squares = torch.ones(len(names)) if self.squares is None else self.squares
            chosen = self.budget.choose(
                dict(zip(names, weights, strict=True)),
                {layer: int(b) for layer, b in inputs},
                squares.tolist(),
            )
            bits[: len(names)] = torch.tensor(chosen, dtype=bits.dtype)
        self.whole = from_rank_0(bits)

    def _scale_channels(
        self, weights: Sequence[Tensor], state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Give the output channels of each convolution like ranges, if the network is given.

        With W = s W' the gradient of W' is s times that of W. So averages of gradients are
        multiplied by s, and those of squares by its square.
        """
        if self.model is None:
            return
        bits = dict(zip(self.positions, self.whole.int().tolist(), strict=False))
        named = dict(zip(self.positions, weights, strict=True))
        for name, share in clip_channels(self.model, bits).items():
            shape = (-1, *[1] * (named[name].dim() - 1))
            for key, power in _POWERS.items():
                if (moment := state.get(named[name], {}).get(key)) is not None:
                    moment.mul_(share.pow(power).reshape(shape))

    def _set_ranges(self, weights: Sequence[Tensor]) -> None:
        """Set each weight's range for its bits, and all steps."""
        _, q_m, t = self.scalars()
        wanted = [normal_clipping(w, b) for w, b in zip(weights, self.whole, strict=False)]
        q_m[: len(wanted)] = torch.stack(wanted)
        self._write("q_m", torch.where(q_m > 0, q_m, 1.0))  # a weight of zeros has any range
        _, q_m, t = self.scalars()
        self._write("d", step_size(self.whole, q_m, t, self._signs()))

    def _switch(self) -> None:
        """Let quantizers round and learn if bits have been chosen, and only then."""
        for quantizer in self.quantizers:
            quantizer.enabled = self.rounds
        for _, scalar in self.learned:
            scalar.requires_grad_(self.rounds)
            scalar.grad = scalar.grad if self.rounds else None
