"""Small networks, clips, traces and compression sections, for tests of several rooms."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.model import GaitBase, build_model
from gaitlib.prune import oto
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso_settings import TARGETS, HessoSettings
from gaitlib.quantize.bit_settings import GetaSettings
from workbook.config import HessoCfg

Arguments = dict[str, Any]


def resnet(
    *channels: int,
    layers: tuple[int, ...] | None = None,
    strides: tuple[int, ...] = (1, 2, 2, 1),
    block: str = "BasicBlock",
    maxpool: bool = False,
    **heads: Any,
) -> Arguments:
    """Return `build_model`'s arguments for a ResNet with one stride and block per channel count."""
    backbone = {
        "type": "ResNet9",
        "block": block,
        "channels": list(channels),
        "layers": list(layers or [1] * len(channels)),
        "strides": list(strides[: len(channels)]),
        "maxpool": maxpool,
    }
    width = channels[-1] * (4 if block == "Bottleneck" else 1)
    return {"backbone_cfg": backbone, **_heads(width, **heads)}


def plain(*layers: str, **heads: Any) -> Arguments:
    """Return `build_model`'s arguments for a plain backbone, as in ``"BC-4", "M", "FC-8-2"``."""
    width = int(layers[-1].split("-")[1])
    return {"backbone_cfg": {"type": "Plain", "layers_cfg": list(layers)}, **_heads(width, **heads)}


def _heads(
    width: int,
    *,
    embedding: int = 8,
    classes: int | None = 5,
    bins: tuple[int, ...] = (2, 1),
    norm: bool = False,
    **bnnecks: Any,
) -> Arguments:
    parts = {"parts_num": sum(bins)}
    necks = {"in_channels": embedding, "class_num": classes, **parts, **bnnecks}
    return {
        "SeparateFCs": {"in_channels": width, "out_channels": embedding, "norm": norm, **parts},
        "SeparateBNNecks": necks if classes else None,
        "bin_num": list(bins),
    }


def build(arguments: Arguments, seed: int = 0) -> GaitBase:
    """Build a network with the weights of a seed."""
    torch.manual_seed(seed)
    return build_model(**arguments)


@torch.no_grad()
def with_statistics(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics and biases, as training would."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.copy_(torch.rand(module.num_features, generator=generator))
    return model


def clips(n: int, t: int, height: int = 64, width: int = 44, seed: int = 0) -> Tensor:
    """Return clips in 0..1: ``(N, T, H, W)``."""
    return torch.rand(n, t, height, width, generator=torch.Generator().manual_seed(seed))


EXAMPLE = clips(1, 2)[:, :, None]  # (1, 2, 1, 64, 44): what to trace a network with
_TRACES: dict[str, Graph] = {}


def traced(model: nn.Module) -> Graph:
    """Return the graph of ``model``; each architecture is traced once, quantized or not."""
    named = [(n, p.shape) for n, p in model.named_parameters() if not n.startswith("quantization.")]
    if str(named) not in _TRACES:
        _TRACES[str(named)] = oto.trace(copy.deepcopy(model), EXAMPLE)
    return dataclasses.replace(_TRACES[str(named)], model=model)


def fill_gradients(model: nn.Module, step: int, scale: float = 0.1) -> None:
    """Give every parameter a random gradient, the same for the same step on any device."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator).to(p.device)


def run_steps(
    optimizer: torch.optim.Optimizer, model: nn.Module, steps: int, start: int = 0
) -> None:
    """Take some steps with random gradients, of the numbers from ``start``."""
    for step in range(start, start + steps):
        fill_gradients(model, step)
        optimizer.step()


#: Base optimizers with little beside ``lr``: no decay, and no momentum that torch does not have.
_BASES = {
    "sgd": {"weight_decay": 0.0, "first_momentum": 0.0},
    "adam": {"weight_decay": 0.0, "first_momentum": 0.9},
    "adamw": {"weight_decay": 0.01, "first_momentum": 0.9},
}


def _keys(keys: Arguments) -> Arguments:
    schedule = {"start_pruning_step": 0, "pruning_steps": 1, "pruning_periods": 1}
    return {"lr": 0.1} | schedule | _BASES.get(keys.get("variant", "sgd"), {}) | keys


def _aimed(keys: Arguments) -> Arguments:
    return _keys(keys if {*TARGETS} & keys.keys() else {"target_group_sparsity": 0.5} | keys)


def hesso_settings(**keys: Any) -> HessoSettings:
    """Return settings that prune half at the first step, with torch's defaults, ``lr`` 0.1."""
    return HessoSettings.of(**_aimed(keys))


def hesso_section(**keys: Any) -> HessoCfg:
    """Return the section of an experiment with the keys of `hesso_settings`."""
    return HessoCfg(**_keys(keys))


def geta_settings(**keys: Any) -> GetaSettings:
    """Return settings as `hesso_settings`; they quantize if ``keys`` ask for it."""
    return GetaSettings.of(**_aimed(keys))
