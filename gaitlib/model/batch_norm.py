"""Batch norms of a finished network: measure their statistics again, find what they normalise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from gaitlib.model.eval_mode import in_eval_mode
from gaitlib.model.gaitbase import frame_size_of


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


@torch.no_grad()
def normalised_convolutions(model: nn.Module) -> dict[str, str]:
    """Return the convolutions whose output a batch norm reads at once: its name by theirs.

    Dividing the weights of an output channel of such a convolution by a positive number, and the
    running mean and deviation of the channel too, does not change what the network computes.

    Args:
        model: run on an empty silhouette, in evaluation mode; not changed.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def after(name: str, output: Tensor) -> None:
        made[id(output)] = name, output  # kept, so that no other tensor gets its id

    def before(name: str, x: Tensor) -> None:
        if id(x) in made:
            found[made[id(x)][0]] = name

    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(
                layer.register_forward_hook(lambda _, __, output, name=name: after(name, output))
            )
        elif isinstance(layer, _BatchNorm):
            handles.append(
                layer.register_forward_pre_hook(lambda _, inputs, name=name: before(name, *inputs))
            )
    try:
        with in_eval_mode(model):
            device = next(model.parameters()).device
            model(torch.zeros(1, 1, *frame_size_of(model), device=device))
    finally:
        for handle in handles:
            handle.remove()
    return found
