"""Limits each quantizer's bit width per step and clamps it to those limits.

`Qasso` has GETA's four phases (https://arxiv.org/abs/2502.16638) and the limits. In projection
and in the joint phase the step size d is clipped to the interval of allowed bits. In cool-down d is
set so that every quantizer keeps a whole number of bits. Clipping comes last in a step, so bits are
inside their interval after every step of the last three phases.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.model.float_state import quantization_of
from gaitlib.quantize.bit_settings import Bits
from gaitlib.quantize.grid import bit_width, step_size
from gaitlib.quantize.quantization import constant
from gaitlib.quantize.quantizer import TRAINING_SAMPLE
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError

TOLERANCE = 1e-3  # bits; rounding error of float32
SMALLEST_Q_M = 1e-6
T_RANGE = (0.25, 4.0)
#: The clipping magnitude of a signed grid with the least squared error for normally distributed
#: numbers, in standard deviations, at 2 to 8 bits: as in Banner et al., 2019
#: (https://arxiv.org/abs/1810.05723), for a grid whose levels lie evenly around 0.
NORMAL_CLIPPING = (1.22, 1.95, 2.47, 2.90, 3.27, 3.61, 3.92)
#: Settings that may change in mid-run: a control does not read them.
NOT_PLANNED = ("batch_norm_batches", "distillation", "keep_better")
#: How far an input's range moves towards the last batch's in one step.
FOLLOW_RATE = 0.05


class BitControl:
    """Keeps d, q_m and t of all quantizers positive and inside the plan.

    All arithmetic is on tensors of ``(Q,)``, one entry per quantizer (those of weights first), on
    the quantizers' device. No method waits for the device.

    With ``plan.follow_until``, ranges follow what they clip up to that step. A weight's q_m is the
    multiple of its root mean square that `NORMAL_CLIPPING` gives for its bits, at most its largest
    magnitude; zeros do not count. An input's q_m moves by `FOLLOW_RATE` of the distance to the
    magnitude that 99.9 % of the last batch are below. Bits stay as they are: d changes with q_m.
    Afterwards the base optimizer moves the logarithms of d, q_m and t, so that ``lr_quant`` is a
    relative step for small and large scalars alike.

    Args:
        model: with the quantizers attached.
        plan: when bits shrink, and the limits.

    Attributes:
        whole: the bits kept in cool-down, ``(Q,)``; None before.
        outside: how often a quantizer was outside its interval after a step, summed over all steps
            and quantizers; a tensor without dimensions. It should stay 0.
    """

    def __init__(self, model: nn.Module, plan: Bits) -> None:
        self.model, self.plan = model, plan
        self.quantization = quantization_of(model)
        self.quantizers = self.quantization.quantizers()
        self.positions = {name: i for i, name in enumerate(self.quantization.weight_quantizers)}
        self.learned = {
            f"quantization.{name}": scalar
            for name, scalar in self.quantization.named_parameters()
            if scalar.requires_grad
        }
        self.whole: Tensor | None = None
        self.outside = torch.zeros((), dtype=torch.long, device=self.quantizers[0].d.device)
        self.watch(0)

    def param_group(self) -> dict[str, Any]:
        """Return the scalars as a parameter group, without weight decay.

        As a parameter group they take part in ``zero_grad``, and a ``GradScaler`` un-scales their
        gradients and checks that they are finite. Steps use ``lr_quant``, whatever ``lr`` a
        schedule writes into the group.
        """
        return {
            "id": "quantization",
            "params": list(self.learned.values()),
            "p_names": list(self.learned),
            "is_prunable": False,
            "weight_decay": 0.0,
        }

    def weights(self) -> list[nn.Parameter]:
        """Return the quantized parameters, in the order of their quantizers."""
        return [self.model.get_parameter(name) for name in self.positions]

    @property
    def rounds(self) -> bool:
        """Whether the network is rounded in the next step."""
        return True

    def complete_gradients(self) -> None:
        """Add to the scalars' gradients what autograd does not know of them; nothing here."""

    def begin_step(self, step: int) -> None:
        """Choose the whole bits if cool-down has begun: the nearest ones inside the interval.

        If the first step of cool-down was skipped, this happens at the first one that runs.
        """
        if self.whole is None and self.plan.phase(step) == "cool-down":
            bits = bit_width(*self.quantization.scalars())
            self.whole = from_rank_0(torch.clamp(bits.round(), *self.interval(step)))

    def limit_moves(self, before: tuple[Tensor, ...]) -> None:
        """Limit the last move of the scalars: none more than halves or doubles.

        They stay positive for any gradient and learning rate. q_m stays at 1e-6 or above, t between
        1/4 and 4.

        Args:
            before: `Quantization.scalars` before the move.
        """
        moved = zip(self.quantization.scalars()[:3], before, strict=False)
        d, q_m, t = (torch.clamp(now, then / 2, then * 2) for now, then in moved)
        self._write(d=d, q_m=q_m.clamp(min=SMALLEST_Q_M), t=t.clamp(*T_RANGE))

    def follows(self, step: int) -> bool:
        """Return whether ranges follow what they clip after ``step``."""
        return self.plan.follow_until is not None and step <= self.plan.follow_until

    def watch(self, step: int) -> None:
        """Let the step after ``step`` look at the inputs, if ranges follow then."""
        for quantizer in self.quantization.activations.values():
            quantizer.sample = TRAINING_SAMPLE * self.follows(step + 1)

    def follow(self, step: int) -> None:
        """Set the ranges for the next step, if they follow at ``step``; bits stay as they are."""
        self.watch(step)
        if self.follows(step):
            self._move_ranges(FOLLOW_RATE)

    def interval(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the fewest and the most bits allowed after ``step``: ``(Q,)``."""
        if self.whole is not None:
            return self.whole, self.whole
        weights, inputs = self.plan.limits(step)
        limits = [weights] * len(self.positions)
        limits += [inputs] * (len(self.quantizers) - len(limits))
        least, most = [], []
        for (low, high), quantizer in zip(limits, self.quantizers, strict=True):
            # calibration may find negative inputs; a signed grid needs 2 bits
            least.append(float(max(low, 1 + quantizer.signed)))
            most.append(max(float(high), least[-1]))
        device = self.outside.device
        return constant(tuple(least), device), constant(tuple(most), device)

    def bounds(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the finest and coarsest step sizes allowed for the current q_m and t: ``(Q,)``."""
        lower, upper = self.interval(step)
        _, *rest = self.quantization.scalars()
        return step_size(upper, *rest), step_size(lower, *rest)

    def project(self, step: int) -> None:
        """Clip every d to its bounds; the last action of ``step``."""
        d = self.quantization.scalars()[0]
        self._write(d=from_rank_0(torch.clamp(d, *self.bounds(step))))
        lower, upper = self.interval(step)
        bits = bit_width(*self.quantization.scalars())
        self.outside += ((bits < lower - TOLERANCE) | (bits > upper + TOLERANCE)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue, except for the scalars."""
        return {"plan": asdict(self.plan), "whole": self.whole, "outside": self.outside.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            UserError: with the differences, if ``state`` is of another plan.
        """
        ours, theirs = asdict(self.plan), state["plan"]
        keys = [k for k in ours if k not in NOT_PLANNED and ours[k] != theirs.get(k)]
        if differing := {k: (theirs.get(k), ours[k]) for k in keys}:
            raise UserError(f"the state is of another bit plan, (saved, here): {differing}")
        device, whole = self.outside.device, state["whole"]
        self.whole = None if whole is None else whole.to(device)
        self.outside = state["outside"].to(device).clone()

    def _move_ranges(self, rate: float) -> None:
        """Set the weights' ranges for their bits, and move the inputs' by a share of the way."""
        d, q_m, t, signs = self.quantization.scalars()
        bits = bit_width(d, q_m, t, signs) if self.whole is None else self.whole
        wanted = [normal_clipping(w, b) for w, b in zip(self.weights(), bits, strict=False)]
        rates = [1.0] * len(wanted) + [rate] * (len(bits) - len(wanted))
        wanted += [q.seen_range() for q in self.quantization.activations.values()]
        q_m = torch.lerp(q_m, torch.stack(wanted), constant(tuple(rates), q_m.device))
        q_m = from_rank_0(q_m.clamp(min=SMALLEST_Q_M))
        self._write(q_m=q_m, d=step_size(bits, q_m, t, signs))

    def _write(self, **values: Tensor) -> None:
        for name, value in values.items():
            torch._foreach_copy_([getattr(q, name) for q in self.quantizers], list(value.unbind()))


def normal_clipping(weight: Tensor, bits: Tensor) -> Tensor:
    """Return the clipping magnitude for a weight at real-valued ``bits``, without dimensions.

    It is the root mean square of the entries that are not zero times `NORMAL_CLIPPING`, which is
    interpolated between whole bits; at most the largest magnitude.
    """
    table = weight.new_tensor(NORMAL_CLIPPING, dtype=torch.float32)
    place = (bits - 2).clamp(0, len(table) - 1)
    below = place.floor().long().clamp(max=len(table) - 2)
    multiple = torch.lerp(table[below], table[below + 1], place - below)
    rms = weight.detach().float().square().sum().div(weight.count_nonzero().clamp(min=1)).sqrt()
    return torch.minimum(multiple * rms, weight.detach().abs().amax().float())
