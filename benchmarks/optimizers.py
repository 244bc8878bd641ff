"""One step of the pruning optimizers, while some channels shrink and others are kept at zero."""

import torch
from torch import nn

from benchmarks.networks import graph_of, network_of
from benchmarks.timing import Row, Setting, Work
from gaitlib.prune import hesso, oto
from gaitlib.prune.hesso_settings import HessoSettings
from gaitlib.quantize import geta
from gaitlib.quantize.bit_settings import GetaSettings
from gaitlib.quantize.quantization import Quantization, calibrate, quantize_network
from gaitlib.system.device import keep_freed_memory

STEPS = 20  # per run
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
PRUNING = {
    "variant": "sgd",
    "lr": 1e-3,
    "first_momentum": 0.9,
    "weight_decay": 5e-4,
    "target_group_sparsity": 0.5,
    "start_pruning_step": 4,
    "pruning_steps": 40_000,  # a period outlasts the measurement: channels shrink all the time
    "pruning_periods": 2,
}
BITS = {
    "lr_quant": 1e-4,
    "start_projection_step": 0,
    "projection_steps": 4,
    "projection_periods": 2,
    "bit_reduction": 2,
    "min_bit_wt": 4,
    "max_bit_wt": 8,
    "min_bit_act": 8,
    "max_bit_act": 8,
}


def _stepping(model: nn.Module, optimizer: torch.optim.Optimizer) -> Work:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = 1e-4 * gradient.to(parameter.device)

    def run() -> None:
        for _ in range(STEPS):
            optimizer.step()

    return Work(run, STEPS)


def sgd(setting: Setting, size: str) -> Work:
    """Step torch.optim.SGD as a user calls it."""
    model = network_of(size, setting)
    return _stepping(model, torch.optim.SGD(model.parameters(), **SGD))


def ours(setting: Setting, size: str) -> Work:
    """Step gaitlib's HESSO."""
    keep_freed_memory(setting.device)
    model = network_of(size, setting)
    return _stepping(model, hesso.build_hesso(graph_of(model), HessoSettings.of(**PRUNING)))


def ours_with_budget(setting: Setting, size: str) -> Work:
    """Step gaitlib's HESSO with a budget, while it gathers the importance of the next choice."""
    keep_freed_memory(setting.device)
    model = network_of(size, setting)
    cfg = HessoSettings.of(**PRUNING | {"target_group_sparsity": None, "target_macs": 0.25})
    return _stepping(model, hesso.build_hesso(graph_of(model), cfg))


def package(setting: Setting, size: str) -> Work:
    """Step only_train_once's own HESSO."""
    model = network_of(size, setting)
    return _stepping(model, oto.package_hesso(graph_of(model), HessoSettings.of(**PRUNING)))


def ours_geta(setting: Setting, size: str) -> Work:
    """Step gaitlib's GETA, on weights and activations."""
    keep_freed_memory(setting.device)
    model = network_of(size, setting)
    graph, cfg = graph_of(model), GetaSettings.of(**PRUNING, **BITS)
    return _stepping(model, geta.build_geta(graph, cfg, _quantized(model, setting)))


def _quantized(model: nn.Module, setting: Setting) -> Quantization:
    quantization = quantize_network(
        model, "weights_and_activations", weight_bits=8, activation_bits=8, uniform=True
    )
    calibrate(model, quantization, [torch.rand(4, 2, 64, 44, device=setting.device)])
    return quantization


def _rows(size: str, name: str, judged: bool) -> dict[str, Row]:
    arguments = {"size": size}
    suffix = "" if judged else f"-{size}"

    def target(value: float) -> float | None:
        return value if judged else None

    return {
        f"hesso-sgd{suffix}": Row(
            f"HESSO step, {name}",
            "torch.optim.SGD",
            (ours, arguments),
            (sgd, arguments),
            "steps/s",
            target=target(1.5),
            at_most=True,
        ),
        f"budget-sgd{suffix}": Row(
            f"HESSO step with a budget, {name}",
            "torch.optim.SGD",
            (ours_with_budget, arguments),
            (sgd, arguments),
            "steps/s",
            target=target(1.3),
            at_most=True,
        ),
        f"hesso-package{suffix}": Row(
            f"HESSO step, {name}",
            "only_train_once's own HESSO",
            (ours, arguments),
            (package, arguments),
            "steps/s",
            target=target(3),
        ),
        f"geta-sgd{suffix}": Row(
            f"GETA step, {name}",
            "torch.optim.SGD",
            (ours_geta, arguments),
            (sgd, arguments),
            "steps/s",
            target=target(3),
            at_most=True,
        ),
    }


ROWS = _rows("full", "full GaitBase", True) | _rows("slim", "quickstart's GaitBase", False)
