"""The base optimizers of HESSO: torch's own, and how far their next step moves a parameter."""

import math
from typing import Any

import torch
from torch import Tensor

from gaitlib.prune.hesso_settings import HessoSettings


def build_base(groups: list[dict[str, Any]], settings: HessoSettings) -> torch.optim.Optimizer:
    """Build torch's SGD, Adam or AdamW from only_train_once's argument names.

    Args:
        groups: parameter groups; the optimizer keeps these dicts, not copies.
        settings: ``variant``, and the arguments of that variant.
    """
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.variant == "sgd":
        momentum, dampening = settings.first_momentum, settings.dampening
        return torch.optim.SGD(groups, momentum=momentum, dampening=dampening, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.variant]
    return kind(groups, betas=(settings.first_momentum, settings.second_momentum), **common)


def next_move(
    param: Tensor, group: dict[str, Any], state: dict[str, Any], variant: str
) -> Tensor | None:
    """Return v of the optimizer's next step, which adds ``-lr * v`` to ``param``.

    SGD's v is the momentum buffer after that step. Adam's and AdamW's is
    ``m_hat / (sqrt(v_hat) + eps)``, without AdamW's decoupled decay. Changes nothing.

    Args:
        param: the parameter, with its gradient.
        group: the parameter group that holds it.
        state: the optimizer's state of the parameter before the step.
        variant: ``sgd``, ``adam`` or ``adamw``.

    Returns:
        A tensor of ``param``'s shape; None if the parameter has no gradient.
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
