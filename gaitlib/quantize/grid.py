"""The values that a quantized tensor may take, and how many bits they need.

A quantizer clips, bends and rounds (GETA, https://arxiv.org/abs/2502.16638)::

    c(x) = min(|x|, q_m)^t        k = round(c / d)        x^Q = sgn(x) d k

With b bits the largest k is L = 2^(b-1) - 1 for signed values and 2^b - 1 for values that are never
negative. The step of a grid whose last level is q_m^t is d = q_m^t / L. For t = 1 this is plain
uniform quantization; for any other t, x^Q is near sgn(x) |x|^t and not near x.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gaitlib.system.errors import UserError

Number = float | Tensor

TINY = 1e-36  # replaces smaller magnitudes, whose logarithm is slow or infinite


def bit_width(d: Number, q_m: Number, t: Number, signed: bool | Tensor = True) -> Number:
    """Return the real-valued bits of a grid: ``log2(q_m^t / d + 1)``, and 1 more with a sign.

    Args:
        d: step; a number or a tensor, like the next two.
        q_m: clipping magnitude.
        t: exponent.
        signed: whether the grid has negative values; for tensors also a tensor of ones and zeros.
    """
    levels = q_m**t / d
    bits = torch.log2(levels + 1) if isinstance(levels, Tensor) else math.log2(levels + 1)
    return bits + (+signed)  # a bool counts as 0 or 1


def step_size(bits: Number, q_m: Number, t: Number, signed: bool | Tensor = True) -> Number:
    """Return the step d of a grid of real-valued ``bits`` whose last level is ``q_m^t``.

    The inverse of `bit_width`.

    Raises:
        UserError: for a number of bits that gives no level except zero. Tensors are not checked.
    """
    magnitude = bits - (+signed)
    if not isinstance(magnitude, Tensor) and magnitude <= 0:
        raise UserError(f"{bits} bits give no level except zero: write more than {+signed}")
    return q_m**t / (2**magnitude - 1)


def clip(x: Tensor, q_m: Tensor, signed: bool) -> Tensor:
    """Return a new tensor: x clipped to -q_m..q_m, or to 0..q_m without a sign."""
    below = torch.minimum(x, q_m)
    return torch.maximum(below, -q_m) if signed else below.clamp_(min=0)


def bend(x: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return ``sgn(x) min(|x|, q_m)^t`` in the dtype of ``x``; without a sign, x < 0 becomes 0.

    The power is ``exp(t ln |x|)``, with 1e-36 for smaller |x|. No grid resolves that difference,
    and a logarithm of 0 is slow on a CPU.

    Args:
        x: floating, any shape.
        q_m: tensor without dimensions.
        t: tensor without dimensions; None means 1, without a power.
        signed: whether negative values keep their sign.
    """
    clipped = clip(x, q_m, signed)
    if t is None:
        return clipped
    if not signed:
        return clipped.clamp_(min=TINY).log_().mul_(t).exp_()
    return torch.copysign(clipped.abs().clamp_(min=TINY).log_().mul_(t).exp_(), clipped)


@dataclass(frozen=True)
class Grid:
    """The values that one quantized tensor may take: ``k d`` for whole k.

    Attributes:
        d: step between neighbouring values.
        q_m: magnitude above which numbers are clipped.
        t: exponent; 1 is plain uniform quantization.
        bits: 2 or more with a sign, 1 or more without.
        signed: if True, k is in ``-(2^(bits-1) - 1) .. 2^(bits-1) - 1`` (weights); if False, in
            ``0 .. 2^bits - 1`` (activations after a ReLU).
    """

    d: float
    q_m: float
    t: float
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 + self.signed <= self.bits <= 32:
            raise UserError(
                f"bits is {self.bits!r}; it must be a whole number, {1 + self.signed} to 32"
            )
        if not all(math.isfinite(value) and value > 0 for value in (self.d, self.q_m, self.t)):
            raise UserError(f"{self}: d, q_m and t must be positive numbers")

    @property
    def levels(self) -> int:
        """The largest k."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def quantize(self, x: Tensor) -> Tensor:
        """Return k for every entry of ``x``, as int32 of the same shape."""
        x = x.detach().float()
        t = None if self.t == 1 else x.new_tensor(self.t)
        k = bend(x, x.new_tensor(self.q_m), t, self.signed).div_(x.new_tensor(self.d)).round_()
        return k.clamp_(-self.levels if self.signed else 0, self.levels).to(torch.int32)

    def dequantize(self, k: Tensor) -> Tensor:
        """Return the float32 values of whole numbers ``k``."""
        k = k.to(torch.float32)
        return k * k.new_tensor(self.d)

    def fake(self, x: Tensor) -> Tensor:
        """Round every entry of ``x`` to the grid: ``dequantize(quantize(x))``, float32."""
        return self.dequantize(self.quantize(x))
