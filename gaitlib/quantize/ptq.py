"""Post-training quantization: round a trained network, to compare with training at few bits."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gaitlib.model import GaitBase
from gaitlib.model.batch_norm import (
    divide_channels,
    normalised_convolutions,
    reestimate_batch_norms,
)
from gaitlib.model.examples import Example
from gaitlib.quantize.grid import step_size
from gaitlib.quantize.quantization import calibrate, quantize_network

_SHARES = torch.linspace(0.3, 1.0, 71)  # clipping magnitudes to try, as shares of max |w|


@dataclass(frozen=True)
class Rounding:
    """How a network is rounded after its training.

    The defaults are the best of both: at 4 bits the batch norms are worth most, at 3 bits the
    channels too, and without the former the latter can lose.

    Attributes:
        clipping: a weight is clipped where its squared rounding error is least: one magnitude per
            ``tensor``, or one per output ``channel`` of a convolution, whose scale goes into the
            batch norm behind it.
        batch_norm_batches: batches of training clips to measure the statistics of batch norms on
            again after rounding; 0 keeps those of training.
    """

    clipping: Literal["tensor", "channel"] = "channel"
    batch_norm_batches: int = 32


def round_after_training(
    model: GaitBase,
    weight_bits: Mapping[str, int],
    activation_bits: Mapping[str, int],
    clips: Sequence[Tensor],
    rounding: Rounding,
    batch_norm_clips: Sequence[Tensor] = (),
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
        rounding: how weights are clipped.
        batch_norm_clips: batches to measure the statistics of batch norms on again, once all is
            rounded; none keeps those of training.

    """
    twin = copy.deepcopy(model).eval()
    if rounding.clipping == "channel":
        clip_channels(twin, weight_bits)
    kind = "weights_and_activations" if activation_bits else "weights"
    quantization = quantize_network(twin, kind, uniform=True)
    calibrate(twin, quantization, clips, training=False)
    for name, quantizer in quantization.weight_quantizers.items():
        weight, bits = twin.get_parameter(name).detach(), weight_bits[name]
        quantizer.reset(bits, best_clippings(weight.reshape(1, -1), bits)[0])
    for name, quantizer in quantization.input_quantizers.items():
        quantizer.reset(activation_bits[name], quantizer.q_m.detach().clone())
    quantization.settle(twin)
    reestimate_batch_norms(twin, batch_norm_clips)
    return twin


def best_clippings(rows: Tensor, bits: int) -> Tensor:
    """Try 71 clipping magnitudes of each row; return those with the least squared error.

    Args:
        rows: float32, ``(R, n)``.
        bits: of a signed grid, 2 or more.

    Returns:
        ``(R,)``; 0 for a row of zeros.
    """
    largest = rows.abs().amax(1)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for share in _SHARES.tolist():
        q_m = share * largest
        d = step_size(bits, q_m.clamp(min=torch.finfo(q_m.dtype).tiny), 1.0)[:, None]
        rounded = torch.clamp(rows, -q_m[:, None], q_m[:, None]).div_(d).round_().mul_(d)
        errors = rounded.sub_(rows).square_().sum(1)
        best = torch.where(errors < least, q_m, best)
        least = torch.minimum(errors, least)
    return best


@torch.no_grad()
def clip_channels(
    model: nn.Module, bits: Mapping[str, int], example: Example | None = None
) -> dict[str, Tensor]:
    """Scale each output channel so that one grid per weight clips all where their error is least.

    The channels of a convolution are divided by the share that their best clipping magnitude has
    of the largest one, and the statistics of the batch norm behind it too. So every channel has a
    grid of its own, and the network still computes the same, with integers and files as before. A
    weight without a batch norm behind it keeps its scale.

    Args:
        model: in float; changed in place.
        bits: of each weight, by parameter name.
        example: as in `normalised_convolutions`.

    Returns:
        By parameter name, what the channels of each weight were divided by: ``(O,)``, in 0..1.
    """
    shares = {}
    for conv_name, norm_name in normalised_convolutions(model, example).items():
        weight = model.get_submodule(conv_name).weight
        best = best_clippings(weight.flatten(1), bits[f"{conv_name}.weight"])  # (O,)
        share = torch.where(best > 0, best / best.max(), 1.0)
        divide_channels(model, conv_name, norm_name, share)
        shares[f"{conv_name}.weight"] = share
    return shares
