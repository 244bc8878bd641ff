"""Choose how fast redundant channels shrink, and how coarse their weights' grids are meanwhile.

This is the joint phase of QASSO, the optimizer of GETA (https://arxiv.org/abs/2502.16638). A
quantized weight is ``x^Q = C + d Rs`` with ``C = sgn(x) c(x)`` and ``Rs = sgn(x) R(x)``, see
`gaitlib.quantize.grid`. With g the base optimizer's next move of x and alpha the learning rate,
redundant channels move by

    s = -alpha g - gamma C - gamma d Rs

so that ``<g, s> = -alpha |g|^2 - gamma <g, C> - gamma d <g, Rs>``. The forget rate gamma limits the
second term to at most ``(1 - eta) alpha |g|^2``. The step size d limits the third term to at most
``xi eta alpha |g|^2``. Hence ``<g, s> <= -(1 - xi) eta alpha |g|^2 < 0``: channels shrink while s
stays a descent direction.

This adds to the paper's two formulas:

* gamma is at most the even rate 1 / (steps left). Where <g, C> is barely negative, the formula
  alone has no upper bound, and channels would move far past zero.
* A group has several weights, of very different ranges. They share gamma, and each has its own d:
  weight i is limited to ``xi eta alpha |g_i|^2``, and the sum over i stays below the bound of the
  whole.
* The conditions use inner products instead of cosines, which rounding can take out of [-1, 1].
* Channels count as forgotten when mean |C| is about 0 (not the mean of C, which is about 0 for any
  weight).
* Rs belongs to the step size before the update, both in choosing d and in moving, so that the
  inequality above holds for the step that is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ETA = 0.999
XI = 0.9
BETA = 0.8
EPSILON = 1e-8


def choose_rate_and_steps(
    slices: Sequence[tuple[Tensor, Tensor | None, Tensor | None]],
    alpha: float,
    even: float,
    finest: Tensor,
    coarsest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose gamma and the step sizes for the redundant channels of one group.

    Args:
        slices: C, Rs and g of each tensor of the group, redundant channels only. Where a tensor is
            not quantized, C is x itself and Rs is None. Without a gradient g is None and counts
            as 0.
        alpha: learning rate of the weights.
        even: 1 / (steps left in the period, this one included).
        finest: smallest step size allowed, ``(Q,)`` for Q quantized tensors in the order given.
        coarsest: largest step size allowed, in the same form.

    Returns:
        gamma in 0..``even``, and d ``(Q,)`` within its bounds. A weight takes its coarsest step,
        unless rounding would then exceed the weight's limit above. If even the finest step exceeds
        it, gamma is lowered by powers of 0.8 until it does not.
    """
    zero = finest.new_zeros(())
    length = sum((g.square().sum() for _, _, g in slices if g is not None), zero)
    product = sum(((g * c).sum() for c, _, g in slices if g is not None), zero)
    size = sum((c.abs().sum() for c, _, _ in slices), zero) / sum(c.numel() for c, _, _ in slices)
    bound = (1 - ETA) * alpha * length / -product
    gamma = torch.where(product < 0, bound.clamp(max=even), zero + even)
    gamma = torch.where(size > EPSILON, gamma, zero)

    quantized = [(r, g) for _, r, g in slices if r is not None]  # Q pairs
    costs = torch.stack([zero if g is None else -(g * r).sum() for r, g in quantized])
    lengths = torch.stack([zero if g is None else g.square().sum() for _, g in quantized])
    shares = XI * ETA * alpha * lengths
    limited = costs > 0  # rounding works against the descent
    limit = torch.where(limited, shares / (costs * finest), torch.inf).min()
    lowered = gamma * BETA ** (torch.log(gamma / limit) / -torch.log(zero + BETA)).ceil()
    gamma = torch.where(gamma > limit, lowered, gamma)
    steps = torch.where(limited & (gamma > 0), shares / (gamma * costs), coarsest)
    return gamma, torch.clamp(steps, finest, coarsest)
