"""Limits each quantizer's bit width per step and clamps it to those limits.

`BitPlan` has GETA's four phases (https://arxiv.org/abs/2502.16638) and the limits. In projection
and in the joint phase the step size d is clipped to the interval of allowed bits. In cool-down d is
set so that every quantizer keeps a whole number of bits. Clipping comes last in a step, so bits are
inside their interval after every step of the last three phases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gaitlib.quantize.bit_plan import MAX_BITS, BitPlan
from gaitlib.quantize.grid import bit_width, step_size
from gaitlib.quantize.quantization import Quantization
from gaitlib.system.distributed import from_rank_0
from gaitlib.system.errors import UserError

TOLERANCE = 1e-3  # bits; rounding error of float32
SMALLEST_Q_M = 1e-6
T_RANGE = (0.25, 4.0)
#: The clipping magnitude of a signed grid with the least squared error for normally distributed
#: numbers, in standard deviations, at 2 to 8 bits: as in Banner et al., 2019
#: (https://arxiv.org/abs/1810.05723), for a grid whose levels lie evenly around 0.
NORMAL_CLIPPING = (1.22, 1.95, 2.47, 2.90, 3.27, 3.61, 3.92)
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

    Attributes:
        whole: the bits kept in cool-down, ``(Q,)``; None before.
        outside: how often a quantizer was outside its interval after a step, summed over all steps
            and quantizers; a tensor without dimensions. It should stay 0.
    """

    def __init__(self, quantization: Quantization, plan: BitPlan) -> None:
        self.quantization = quantization
        self.plan = plan
        self.quantizers = quantization.quantizers()
        self.positions = {name: i for i, name in enumerate(quantization.weights.keys())}
        self.learned = [
            (f"quantization.{name}", scalar)
            for name, scalar in quantization.named_parameters()
            if scalar.requires_grad
        ]
        self.whole: Tensor | None = None
        self.outside = torch.zeros((), dtype=torch.long, device=self.quantizers[0].d.device)
        self._cached: dict[Any, Tensor] = {}
        self.watch(0)

    def param_group(self) -> dict[str, Any]:
        """Return the scalars as a parameter group, without weight decay.

        As a parameter group they take part in ``zero_grad``, and a ``GradScaler`` un-scales their
        gradients and checks that they are finite. Steps use ``lr_quant``, whatever ``lr`` a
        schedule writes into the group.
        """
        return {
            "id": "quantization",
            "params": [scalar for _, scalar in self.learned],
            "p_names": [name for name, _ in self.learned],
            "p_transform": ["no_prune"] * len(self.learned),
            "p_dims": [0] * len(self.learned),
            "num_groups": 1,
            "is_prunable": False,
            "is_auxiliary": False,
            "weight_decay": 0.0,
        }

    @property
    def rounds(self) -> bool:
        """Whether the network is rounded in the next step."""
        return True

    def complete_gradients(self) -> None:
        """Add to the scalars' gradients what autograd does not know of them; nothing here."""

    def scalars(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return copies of d, q_m and t, each ``(Q,)``."""
        names = ("d", "q_m", "t")
        d, q_m, t = (torch.stack([getattr(q, n).detach() for q in self.quantizers]) for n in names)
        return d, q_m, t

    def begin_step(self, step: int) -> None:
        """Choose the whole bits if cool-down has begun: the nearest ones inside the interval.

        If the first step of cool-down was skipped, this happens at the first one that runs.
        """
        if self.whole is None and self.plan.phase(step) == "cool-down":
            bits = bit_width(*self.scalars(), self._signs())
            lower, upper = self._interval(step)
            self.whole = from_rank_0(torch.clamp(bits.round(), lower, upper))

    def limit_moves(self, before: tuple[Tensor, Tensor, Tensor]) -> None:
        """Limit the last move of the scalars: none more than halves or doubles.

        They stay positive for any gradient and learning rate. q_m stays at 1e-6 or above, t between
        1/4 and 4.

        Args:
            before: the `scalars` before the move.
        """
        moved = zip(self.scalars(), before, strict=True)
        d, q_m, t = (torch.clamp(now, then / 2, then * 2) for now, then in moved)
        self._write("d", d)
        self._write("q_m", q_m.clamp(min=SMALLEST_Q_M))
        self._write("t", t.clamp(*T_RANGE))

    def follows(self, step: int) -> bool:
        """Return whether ranges follow what they clip after ``step``."""
        return self.plan.follow_until is not None and step <= self.plan.follow_until

    def watch(self, step: int) -> None:
        """Make inputs note their magnitude in the step after ``step``, if ranges follow then."""
        for quantizer in self.quantizers[len(self.positions) :]:
            quantizer.watched = self.follows(step + 1)

    def follow(self, step: int, weights: Sequence[Tensor]) -> None:
        """Set the ranges for the next step, if they follow at ``step``; bits stay as they are.

        Args:
            step: steps that have been done.
            weights: the quantized parameters, in the order of their quantizers.
        """
        self.watch(step)
        if not self.follows(step):
            return
        d, q_m, t = self.scalars()
        bits = bit_width(d, q_m, t, self._signs()) if self.whole is None else self.whole
        wanted = torch.stack(
            [normal_clipping(w, b) for w, b in zip(weights, bits, strict=False)]
            + [q.seen_range() for q in self.quantizers[len(weights) :]]
        )
        rate = self._input_rate(step)
        rates = self._constant(
            "rates",
            [1.0] * len(weights) + [rate] * (len(self.quantizers) - len(weights)),
            (len(weights), rate),
        )
        q_m = from_rank_0(torch.lerp(q_m, wanted, rates).clamp(min=SMALLEST_Q_M))
        self._write("q_m", q_m)
        self._write("d", step_size(bits, q_m, t, self._signs()))

    def bounds(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the finest and coarsest step sizes allowed for the current q_m and t: ``(Q,)``."""
        _, q_m, t = self.scalars()
        if self.whole is not None:
            exact = step_size(self.whole, q_m, t, self._signs())
            return exact, exact
        lower, upper = self._interval(step)
        signs = self._signs()
        return step_size(upper, q_m, t, signs), step_size(lower, q_m, t, signs)

    def project(self, step: int) -> None:
        """Clip every d to its bounds; the last action of ``step``."""
        finest, coarsest = self.bounds(step)
        d, _, _ = self.scalars()
        self._write("d", from_rank_0(torch.clamp(d, finest, coarsest)))
        if self.plan.phase(step) != "warm-up":
            bits = bit_width(*self.scalars(), self._signs())
            lower, upper = (
                (self.whole, self.whole) if self.whole is not None else self._interval(step)
            )
            self.outside += ((bits < lower - TOLERANCE) | (bits > upper + TOLERANCE)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue, except for the scalars."""
        return {"plan": asdict(self.plan), "whole": self.whole, "outside": self.outside.clone()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ``UserError``, with the differences, if ``state`` is of another plan."""
        ours, theirs = asdict(self.plan), state["plan"]
        differing = {k: (theirs.get(k), v) for k, v in ours.items() if theirs.get(k) != v}
        if differing:
            raise UserError(f"the state is of another bit plan, (saved, here): {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; see `check_state`."""
        self.check_state(state)
        whole = state["whole"]
        self.whole = None if whole is None else whole.to(self.quantizers[0].d.device)
        self.outside = state["outside"].to(self.quantizers[0].d.device).clone()
        self._cached.clear()

    def _input_rate(self, step: int) -> float:
        """Return how far inputs' ranges move after ``step``, as a share of the distance."""
        return FOLLOW_RATE

    def _write(self, name: str, values: Tensor) -> None:
        torch._foreach_copy_([getattr(q, name) for q in self.quantizers], list(values.unbind()))

    def _signs(self) -> Tensor:
        signs = tuple(q.signed for q in self.quantizers)
        return self._constant("signs", [float(sign) for sign in signs], signs)

    def _interval(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the fewest and the most bits allowed after ``step``: ``(Q,)``."""
        if self.plan.phase(step) == "warm-up":
            lowest = [1.0 + q.signed for q in self.quantizers]
            return (
                self._constant("lowest", lowest, tuple(lowest)),
                self._constant("widest", [float(MAX_BITS)] * len(lowest), MAX_BITS),
            )
        shrinks = self.plan.projection.shrinks_by(step)
        count = len(self.positions)
        intervals = [self.plan.weights] * count
        intervals += [self.plan.activations] * (len(self.quantizers) - count)
        # calibration may find negative inputs; a signed grid needs 2 bits
        lowest = [
            float(max(i.least, 1 + q.signed))
            for i, q in zip(intervals, self.quantizers, strict=True)
        ]
        most = [max(i.after(shrinks), low) for i, low in zip(intervals, lowest, strict=True)]
        return (
            self._constant("lower", lowest, tuple(lowest)),
            self._constant("upper", most, tuple(most)),
        )

    def _constant(self, name: str, values: list[float], key: Any) -> Tensor:
        """Return values as a tensor on the quantizers' device; cached until ``key`` changes."""
        device = self.quantizers[0].d.device
        if self._cached.get(f"{name} of") != (key, device):
            self._cached[name] = torch.tensor(values, device=device)
            self._cached[f"{name} of"] = (key, device)
        return self._cached[name]


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
