"""Bits that come late: train and prune in float, then round for the last part of the steps.

This is ``order: float_first``. Float training followed by a part with bits beats bits in all steps,
and that part may coincide with the decay of the learning rate (Dremov et al., 2025,
https://arxiv.org/abs/2509.22935).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.model.examples import Example
from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_control import FOLLOW_RATE, BitControl
from gaitlib.quantize.bit_settings import FloatFirst
from gaitlib.quantize.ptq import clip_channels
from gaitlib.system.distributed import from_rank_0

#: Steps before the switch in which inputs are watched, and gradients are gathered for a budget.
OBSERVED_STEPS = 50
#: The optimizer's averages of a parameter's gradients, and which power of them they average.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}


class LateBits(BitControl):
    """Keeps quantizers off until the switch, chooses whole bits there, and keeps them.

    Until ``plan.start`` steps are done, nothing is rounded, and the scalars do not learn. In
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
        model: with the quantizers attached, which are switched off here.
        plan: when bits begin, and which.
        budget: chooses the bits of weights; None takes those of the plan.
        example: inputs of a network that is no GaitBase, as in `normalised_convolutions`.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: FloatFirst,
        budget: BitBudget | None = None,
        example: Example | None = None,
    ) -> None:
        super().__init__(model, plan)
        self.budget, self.example = budget, example
        self.squares: Tensor | None = None  # (W,), sums of the mean squared gradients
        self._switch()

    @property
    def rounds(self) -> bool:
        """Whether the network is rounded in the next step."""
        return self.whole is not None

    def follows(self, step: int) -> bool:
        """Return whether ranges follow what they clip after ``step``."""
        return super().follows(step) if self.rounds else self._observed(step) > 0

    def observe(self, step: int) -> None:
        """Gather the gradients of a step in float, before the weights move."""
        if self.budget is None or self._observed(step) <= 0:
            return
        grads = [w.new_zeros(1) if w.grad is None else w.grad for w in self.weights()]
        found = torch.stack([g.float().square().mean() for g in grads])
        self.squares = found if self.squares is None else found + self.squares.to(found.device)

    def end_float_step(self, step: int, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Follow the inputs' ranges; after the last step in float choose bits and round.

        Args:
            step: steps that have been done; channels have left.
            state: the optimizer's, by parameter; it is scaled with the channels of weights.
        """
        if step >= self.plan.start:
            self._choose_bits(step)
            if self.plan.clipping == "channel":
                self._scale_channels(state)
            self._switch()
        if (observed := self._observed(step)) > 0:  # 1/k makes the range a running mean
            self._move_ranges(max(FOLLOW_RATE, 1 / observed))
        self.watch(step)

    def complete_gradients(self) -> None:
        """Add to the gradients of q_m and t what they change by d, which follows them."""
        for q in self.quantizers:
            if q.q_m.grad is not None:
                q.q_m.grad.add_(q.d.grad * q.t * q.d / q.q_m)
            if q.t.grad is not None:
                q.t.grad.add_(q.d.grad * q.d * q.q_m.log())

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue, except for the scalars."""
        return super().state_dict() | {"squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; raises as `BitControl.load_state_dict`."""
        super().load_state_dict(state)
        self.squares = state["squares"]
        self._switch()

    def _observed(self, step: int) -> int:
        """Return how many steps in float have been observed by the end of ``step``."""
        return step - max(self.plan.start - OBSERVED_STEPS, 0)

    def _choose_bits(self, step: int) -> None:
        bits = self.interval(step)[0].clone()
        if self.budget is not None:
            weights = dict(zip(self.positions, self.weights(), strict=True))
            layers, count = self.quantization.input_quantizers, len(weights)
            inputs = dict(zip(layers, bits[count:].int().tolist(), strict=True))
            squares = torch.ones(count) if self.squares is None else self.squares
            chosen = self.budget.choose(weights, inputs, squares.tolist())
            bits[:count] = torch.tensor(chosen, dtype=bits.dtype)
        self.whole = from_rank_0(bits)

    def _scale_channels(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Give the output channels of each convolution like ranges.

        With W = s W' the gradient of W' is s times that of W. So averages of gradients are
        multiplied by s, and those of squares by its square.
        """
        bits = dict(zip(self.positions, self.whole.int().tolist(), strict=False))
        for name, share in clip_channels(self.model, bits, self.example).items():
            weight = self.model.get_parameter(name)
            share = share.reshape(-1, *[1] * (weight.dim() - 1))
            for key, power in _POWERS.items():
                if (moment := state.get(weight, {}).get(key)) is not None:
                    moment.mul_(share.pow(power))

    def _switch(self) -> None:
        """Let quantizers round and learn if bits have been chosen, and only then."""
        self.quantization.switch(self.rounds)
        for scalar in self.learned.values():
            scalar.requires_grad_(self.rounds)
            scalar.grad = scalar.grad if self.rounds else None
