"""Batch norms of a finished network: measure their statistics again, find what they normalise."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from gaitlib.model.eval_mode import layer_calls
from gaitlib.model.examples import Example, difference, example_like, run_example

TOLERANCE = 1e-4  # largest difference of an output, of its largest number


def reestimate_batch_norms(model: nn.Module, clips: Sequence[Tensor]) -> None:
    """Replace the running statistics of every batch norm by their means over batches of clips.

    Rounding moves the outputs of a layer, and the running statistics of training lag behind its
    last steps. Weights and random streams do not change, so that doing it twice is doing it once.

    Args:
        model: changed in place, on its own device; it keeps its mode.
        clips: batches in the network's input format. None leaves the statistics as they are.
    """
    if not len(clips):
        return
    device = next(model.parameters()).device
    update_bn((batch.to(device) for batch in clips), model)


def normalised_convolutions(model: nn.Module, example: Example | None = None) -> dict[str, str]:
    """Return the convolutions whose output a batch norm alone reads: its name by theirs.

    Dividing the weights of an output channel of such a convolution by a positive number, and the
    running mean and deviation of the channel too, does not change what the network computes. All
    are tried on a copy with the number 2.

    Args:
        model: run in evaluation mode; not changed.
        example: inputs to run it on; one clip of one random frame if None.
    """
    if example is None:
        example = torch.rand(1, 1, *model.frame_size, generator=torch.Generator().manual_seed(0))
    example = example_like(example, next(model.parameters()))
    made, found = {}, {}
    for name, layer, given, output in layer_calls(model, nn.Conv2d | _BatchNorm, example):
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = name, output  # kept, so that no other tensor gets its id
        elif id(given) in made:
            found[made[id(given)][0]] = name
    if _halved_unnoticed(model, found, example):
        return found
    return {c: norm for c, norm in found.items() if _halved_unnoticed(model, {c: norm}, example)}


@torch.no_grad()
def _halved_unnoticed(model: nn.Module, pairs: Mapping[str, str], example: Example) -> bool:
    """Return whether a network computes the same with these convolutions' weights halved."""
    twin = copy.deepcopy(model).eval()
    expected = run_example(twin, example)
    for conv_name, norm_name in pairs.items():
        divide_channels(twin, conv_name, norm_name, torch.tensor(2.0).to(expected[0]))
    return difference(expected, run_example(twin, example)) <= TOLERANCE


@torch.no_grad()
def divide_channels(model: nn.Module, convolution: str, norm: str, share: Tensor) -> None:
    """Divide the output channels of a convolution, and its batch norm's statistics, in place.

    Args:
        model: the network.
        convolution: name of the layer, of a pair of `normalised_convolutions`.
        norm: name of its batch norm.
        share: one positive number, or one for each channel.
    """
    conv, norm = model.get_submodule(convolution), model.get_submodule(norm)
    conv.weight.div_(share.reshape(-1, 1, 1, 1))
    if conv.bias is not None:
        conv.bias.div_(share)
    norm.running_mean.div_(share)
    # batch norm divides by sqrt(var + eps); eps keeps its size
    norm.running_var.add_(norm.eps).div_(share.square()).sub_(norm.eps)
