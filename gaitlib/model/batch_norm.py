"""Batch norms of a finished network: measure their statistics again, find what they normalise."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from gaitlib.model.eval_mode import layer_calls


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


def normalised_convolutions(model: nn.Module) -> dict[str, str]:
    """Return the convolutions whose output a batch norm reads at once: its name by theirs.

    Dividing the weights of an output channel of such a convolution by a positive number, and the
    running mean and deviation of the channel too, does not change what the network computes.

    Args:
        model: run on an empty silhouette, in evaluation mode; not changed.
    """
    made, found = {}, {}
    for name, layer, given, output in layer_calls(model, nn.Conv2d | _BatchNorm):
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = name, output  # kept, so that no other tensor gets its id
        elif id(given) in made:
            found[made[id(given)][0]] = name
    return found
