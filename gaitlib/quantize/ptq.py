"""Post-training quantization: round a trained network, to compare with training at few bits."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gaitlib.model import GaitBase
from gaitlib.quantize.grid import Grid, step_size
from gaitlib.quantize.quantization import calibrate, quantize_network

_SHARES = torch.linspace(0.3, 1.0, 71)  # clipping magnitudes to try, as shares of max |w|


def round_after_training(
    model: GaitBase,
    weight_bits: Mapping[str, int],
    activation_bits: Mapping[str, int],
    clips: Iterable[Tensor],
) -> GaitBase:
    """Return a copy with every weight and input on a uniform grid, without any training.

    A weight's clipping magnitude is the one with the least squared rounding error (Banner et al.,
    2019, https://arxiv.org/abs/1810.05723), found by search. An input's is the one that clips 0.1 %
    of it.

    Args:
        model: trained, in float.
        weight_bits: whole bits of every quantized weight, by parameter name.
        activation_bits: whole bits of every quantized input, by layer name; empty to quantize only
            weights.
        clips: batches to calibrate the inputs on, in the network's input format.

    Raises:
        ValueError: if the names differ from those of the network's weights and inputs.
    """
    twin = copy.deepcopy(model).eval()
    kind = "weights_and_activations" if activation_bits else "weights"
    quantization = quantize_network(twin, kind, uniform=True)
    given = (weight_bits, activation_bits)
    for table, bits in zip((quantization.weights, quantization.activations), given, strict=True):
        if set(table.keys()) != set(bits):
            raise ValueError(f"bits are given for {sorted(bits)}, not for {sorted(table.keys())}")
    calibrate(twin, quantization, clips, training=False)
    for name, quantizer in quantization.weights.items():
        weight = twin.get_parameter(name).detach()
        quantizer.reset(weight_bits[name], best_clipping(weight, weight_bits[name]))
    for name, quantizer in quantization.activations.items():
        quantizer.reset(activation_bits[name], quantizer.q_m.detach().clone())
    quantization.settle(twin)
    return twin


def best_clipping(weight: Tensor, bits: int) -> float:
    """Try 71 clipping magnitudes; return the one with the least squared rounding error."""
    largest = weight.abs().max().item()
    errors = {}
    for q_m in (_SHARES * largest).tolist():
        grid = Grid(step_size(bits, q_m, 1.0), q_m, 1.0, bits, True)
        errors[q_m] = (grid.fake(weight) - weight).square().sum().item()
    return min(errors, key=errors.get)
