"""The optimizers under HESSO: torch's own, and what they are about to do to a parameter."""

import math
from typing import Any

import torch
from torch import Tensor

VARIANTS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
WEIGHT_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 1e-2}  # defaults, only_train_once's


def build_base(
    groups: list[dict[str, Any]],
    variant: str,
    lr: float,
    weight_decay: float | None = None,
    first_momentum: float | None = None,
    second_momentum: float | None = None,
    dampening: float | None = None,
) -> torch.optim.Optimizer:
    """Build torch's SGD, Adam or AdamW from only_train_once's argument names.

    Args:
        groups: parameter groups; the optimizer keeps these very dicts.
        variant: ``sgd``, ``adam`` or ``adamw``.
        lr: learning rate.
        weight_decay: added to the gradient (sgd, adam) or applied apart (adamw); if None 0, or
            0.01 for adamw.
        first_momentum: momentum of sgd (0 if None), the first beta of the others (0.9).
        second_momentum: the second beta of adam and adamw (0.999 if None).
        dampening: sgd's (0 if None).
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose from {sorted(VARIANTS)}")
    weight_decay = WEIGHT_DECAY[variant] if weight_decay is None else weight_decay
    if variant == "sgd":
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=first_momentum or 0.0,
            dampening=dampening or 0.0,
            weight_decay=weight_decay,
        )
    betas = (
        0.9 if first_momentum is None else first_momentum,
        0.999 if second_momentum is None else second_momentum,
    )
    return VARIANTS[variant](groups, lr=lr, betas=betas, weight_decay=weight_decay)


def coming_move(
    param: Tensor, group: dict[str, Any], state: dict[str, Any], variant: str
) -> Tensor | None:
    """Return v, by which the next step moves ``param`` (the step is ``-lr * v``).

    Changes nothing: ``state`` is the optimizer's before that step. SGD's v is the momentum buffer,
    Adam's and AdamW's is ``m_hat / (sqrt(v_hat) + eps)``, without AdamW's decoupled decay. None if
    the parameter has no gradient.
    """
    if param.grad is None:
        return None
    grad = param.grad
    if variant != "adamw" and group["weight_decay"]:
        grad = grad.add(param.detach(), alpha=group["weight_decay"])
    if variant == "sgd":
        buffer = state.get("momentum_buffer")
        if not group["momentum"] or buffer is None:
            return grad.clone()
        return buffer.mul(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
    beta1, beta2 = group["betas"]
    step = float(state["step"]) + 1 if state else 1.0
    mean = state["exp_avg"] if state else torch.zeros_like(param)
    square = state["exp_avg_sq"] if state else torch.zeros_like(param)
    mean = mean.lerp(grad, 1 - beta1).div_(1 - beta1**step)
    square = square.mul(beta2).addcmul_(grad, grad, value=1 - beta2)
    return mean.div_(square.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"]))
