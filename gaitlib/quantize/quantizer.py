"""Round one tensor to a learnable grid, by hooks that do so while a layer runs.

This is the quantizer of GETA (https://arxiv.org/abs/2502.16638): a step d, a clipping magnitude q_m
and an exponent t per tensor, see `gaitlib.quantize.grid`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.quantize.grid import TINY, Grid, bend, bit_width, clip, step_size

COVERAGE = 0.999  # share of a layer's inputs that calibration does not clip

CALIBRATION_SAMPLE = 2**20  # numbers of one input that calibration sorts
TRAINING_SAMPLE = 2**14  # numbers of one input that a training step sorts


class _FakeQuantize(torch.autograd.Function):
    """x^Q with GETA's gradients; computes in float32 or wider, returns the dtype of x.

    Of the tensors of x's size only x is saved for the backward pass; after a ReLU autograd has
    saved it already.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, d, q_m, t)
        ctx.signed = signed
        x_, d_, q_, t_ = _wide(x, d, q_m, t)
        return bend(x_, q_, t_, signed).div_(d_).round_().mul_(d_).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *scalars = ctx.saved_tensors
        x_, d, q_m, t = _wide(x, *scalars)
        u = grad.to(x_.dtype)
        work = clip(x_, q_m, ctx.signed)
        # straight through where the forward pass does not clip
        passed = torch.where(work == x_, u, u.new_zeros(()))
        grads: list[Tensor | None] = [None, None, None]
        if any(ctx.needs_input_grad[1:4]):
            # reuse buffers: on a CPU new memory takes longer than arithmetic
            rest = (u - passed).mul_(work)  # clipped x: work is sgn(x) q_m, or 0 (unsigned x < 0)
            outside = rest.sum() / q_m
            grads[1] = outside if t is None else outside * t * q_m ** (t - 1)
            if t is None:
                steps = work.div_(d)
            else:
                sign = work.sign() if ctx.signed else None
                logs = work.abs_().clamp_(min=TINY).log_()
                bent = torch.mul(logs, t, out=rest).exp_()
                if sign is not None:
                    bent.mul_(sign)
                grads[2] = logs.mul_(bent).mul_(u).sum()
                steps, rest = bent.div_(d), logs
            grads[0] = torch.round(steps, out=rest).sub_(steps).mul_(u).sum()
        grads = [
            g.to(s.dtype) if g is not None and needed else None
            for g, s, needed in zip(grads, scalars, ctx.needs_input_grad[1:4], strict=True)
        ]
        return passed.to(x.dtype) if ctx.needs_input_grad[0] else None, *grads, None


def _wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """Convert tensors to the dtype of the first, or to float32 if that is wider."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [None if tensor is None else tensor.detach().to(dtype) for tensor in tensors]


class Quantizer(nn.Module):
    """Rounds one tensor with its three scalars d, q_m and t.

    Args:
        bits: bits of the grid at the start, real-valued.
        q_m: the clipping magnitude at the start.
        signed: whether the grid has negative values.
        uniform: keep t at 1, which is plain uniform quantization and saves a power.

    Attributes:
        d, q_m, t: float32 parameters without dimensions. An optimizer must keep them positive.
        enabled: if False, tensors pass unchanged.

    Shape:
        x: any; returns the same shape and dtype. Gradients: with u the incoming one and
            R = round(c / d) - c / d, dd is ``sum u sgn(x) R``, dq_m is
            ``sum u sgn(x) [|x| > q_m] t q_m^(t-1)``, dt is ``sum u sgn(x) c ln min(|x|, q_m)``, and
            dx is ``u [|x| <= q_m]``.
    """

    def __init__(
        self, bits: float, q_m: float = 1.0, signed: bool = True, uniform: bool = False
    ) -> None:
        super().__init__()
        self.signed = signed
        self.uniform = uniform
        self.enabled = True
        self.handles: list[Any] = []  # of hooks; they are bound methods, so copies call their own
        self.d = nn.Parameter(torch.ones(()))
        self.q_m = nn.Parameter(torch.ones(()))
        self.t = nn.Parameter(torch.ones(()), requires_grad=not uniform)
        self.reset(bits, q_m)

    @torch.no_grad()
    def reset(self, bits: float, q_m: float | Tensor) -> None:
        """Set q_m (1 if given as 0), t = 1, and the step d that gives ``bits``."""
        q_m = torch.as_tensor(q_m, dtype=torch.float32)
        self.q_m.copy_(torch.where(q_m > 0, q_m, 1.0))
        self.t.fill_(1.0)
        self.d.copy_(step_size(bits, self.q_m, self.t, self.signed))

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` to the grid."""
        if not self.enabled:
            return x
        return _FakeQuantize.apply(
            x, self.d, self.q_m, None if self.uniform else self.t, self.signed
        )

    @torch.no_grad()
    def split(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return C = sgn(x) c(x) and Rs = sgn(x) R(x) for a step d; x^Q is ``C + d Rs``."""
        content = bend(x, self.q_m, None if self.uniform else self.t, self.signed)
        steps = content / d
        return content, steps.round().sub_(steps)

    def grid(self) -> Grid:
        """Return the grid at the nearest whole number of bits, with the same q_m and t."""
        d, q_m, t = (scalar.detach().cpu().float() for scalar in (self.d, self.q_m, self.t))
        bits = max(round(bit_width(d, q_m, t, self.signed).item()), 1 + self.signed)
        step = step_size(torch.tensor(float(bits)), q_m, t, self.signed)
        return Grid(step.item(), q_m.item(), t.item(), bits, self.signed)

    @torch.no_grad()
    def freeze(self, grid: Grid) -> "Quantizer":
        """Set the scalars to ``grid``; they no longer learn. Return this quantizer."""
        self.signed, self.uniform = grid.signed, grid.t == 1
        for scalar, value in ((self.d, grid.d), (self.q_m, grid.q_m), (self.t, grid.t)):
            scalar.fill_(value)
            scalar.requires_grad_(False)
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        while self.handles:
            self.handles.pop().remove()


class WeightQuantizer(Quantizer):
    """Rounds one parameter of a layer while that layer runs.

    Args:
        weight: the parameter; q_m starts at its largest magnitude.
        bits: as in `Quantizer`.
        uniform: as in `Quantizer`.
    """

    def __init__(self, weight: Tensor, bits: float = 16, uniform: bool = False) -> None:
        super().__init__(bits, weight.detach().abs().max(), uniform=uniform)

    def attach(self, model: nn.Module, name: str) -> None:
        """Register hooks on the layer of the parameter ``name``."""
        layer_name, _, self.name = name.rpartition(".")
        layer = model.get_submodule(layer_name)
        self.handles = [
            layer.register_forward_pre_hook(self._set_rounded),
            layer.register_forward_hook(self._remove_rounded, always_call=True),
        ]

    def _set_rounded(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Python finds an instance attribute before the registered parameter of the same name
        layer.__dict__[self.name] = self(layer._parameters[self.name])

    def _remove_rounded(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        layer.__dict__.pop(self.name, None)


class ActivationQuantizer(Quantizer):
    """Rounds the input of a layer; `calibrate` must set its range first.

    Calibration also checks whether the input is ever negative. After a ReLU it is not, and the grid
    needs no sign. A checkpoint stores the sign along with the scalars.

    Attributes:
        calibrated: whether range and sign are set.
        sample: how many numbers of an input to look at, in training mode; 0 looks at none.
        seen: of the last input that was looked at, the lowest value and the upper magnitude: (2,).
    """

    def __init__(self, bits: float = 16, uniform: bool = False) -> None:
        super().__init__(bits, signed=False, uniform=uniform)
        self.bits = bits
        self.calibrated = False
        self.sample = 0
        self.seen: Tensor | None = None

    def attach(self, model: nn.Module, name: str) -> None:
        """Register a hook on the layer ``name``."""
        layer = model.get_submodule(name)
        self.handles = [layer.register_forward_pre_hook(self._round_input)]

    def _round_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self(inputs[0]), *inputs[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` to the grid; look at its range first, if there is a sample size."""
        if self.enabled and not self.calibrated:
            raise RuntimeError("an input has no range yet: call calibrate, or load a checkpoint")
        if self.sample and self.training:
            self.seen = _range(x.detach(), self.sample)
        return super().forward(x)

    def seen_range(self) -> Tensor:
        """Return the upper magnitude of the last input that was looked at; q_m before any."""
        return self.q_m.detach() if self.seen is None else self.seen[1]

    def set_range(self, observed: Sequence[Tensor]) -> None:
        """Set sign and range from what was ``seen`` of several inputs."""
        lowest, upper = torch.stack(observed).unbind(1)
        self.signed = bool((lowest < 0).any())
        self.reset(self.bits, upper.max())
        self.calibrated = True

    def freeze(self, grid: Grid) -> "Quantizer":
        """Set the scalars to ``grid``; they no longer learn and need no calibration."""
        self.calibrated = True
        return super().freeze(grid)

    def get_extra_state(self) -> Tensor:
        """Return -1 before calibration; afterwards 1 with a sign and 0 without."""
        return torch.tensor(int(self.signed) if self.calibrated else -1)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the value of `get_extra_state`."""
        self.calibrated, self.signed = int(state) >= 0, int(state) == 1


def _range(x: Tensor, most: int) -> Tensor:
    """Return the lowest value of x, and the magnitude that a share COVERAGE of x is below: (2,).

    The magnitude is that of every n-th entry if x has more than ``most``, about that many. n shares
    no factor with the number of entries, so that all columns, rows and channels take part alike.
    """
    stride = max(x.numel() // most, 1)
    while math.gcd(stride, x.numel()) > 1:
        stride += 1
    sizes = x.flatten()[::stride].abs().float()
    rank = max(int(COVERAGE * len(sizes)), 1)
    upper = sizes.kthvalue(rank).values
    return torch.stack([x.amin().float(), torch.where(upper > 0, upper, sizes.max())])
