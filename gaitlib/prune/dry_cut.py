"""Cut every group on trial, before any training, and refuse those whose cut changes the output.

A graph of operations does not show all that a cut may break: a norm over channels, a sigmoid that
makes 0.5 of a zero, a fixed channel number, an output. So half of each group's channels are set to
zero in a copy and cut out of another. Both run on two batches, and have to agree. In training mode,
where a head may run that evaluation leaves out, they have to run and return the same shapes.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gaitlib.model.examples import Example, difference, example_like, one_more, run_example
from gaitlib.model.float_state import quantization_of
from gaitlib.model.widths import sides_of
from gaitlib.prune.graph import Graph

TOLERANCE = 1e-4  # largest difference of an output, relative to its largest number, as in GETA


def refuse_wrong_cuts(graph: Graph) -> Graph:
    """Return the graph with a reason for each group that cannot be cut; the model stays as it is.

    Groups are tried one by one, and then together with those before.
    """
    twin = copy.deepcopy(graph.model).float().eval()
    if (quantization := quantization_of(twin)) is not None:
        quantization.detach_from(twin)
    _randomise(twin)
    trial = replace(graph, model=twin)
    example = example_like(graph.example, next(twin.parameters()))
    tries = [(example, False), (one_more(example), False), (example, True)]
    tries = [(given, training) for given, training in tries if _runs(twin, given, training)]
    refused: dict[str, str] = {}
    for group in trial.prunable():
        if reason := _fault(trial, [group.id], tries):
            refused[group.id] = reason
    right = [group.id for group in trial.prunable() if group.id not in refused]
    if _fault(trial, right, tries):
        together: list[str] = []
        for id_ in right:
            if reason := _fault(trial, [*together, id_], tries):
                refused[id_] = reason
            else:
                together.append(id_)
    groups = (replace(g, reason=refused.get(g.id, g.reason)) for g in graph.groups)
    return replace(graph, groups=tuple(groups))


@torch.no_grad()
def _fault(graph: Graph, ids: Iterable[str], tries: Iterable[tuple[Example, bool]]) -> str:
    """Return why half of these groups' channels cannot be cut together; empty if they can."""
    zeroed = replace(graph, model=copy.deepcopy(graph.model))
    zeroed.zero({id_: range(1, len(graph.left[id_]), 2) for id_ in ids})
    training = False
    try:
        cut = zeroed.slice()
        for example, training in tries:
            expected = _run(zeroed.model, example, training)
            error = difference(expected, _run(cut, example, training))
            if error == math.inf:
                return "reaches the output"
            if not (training or error <= TOLERANCE):  # NaN is refused too
                return "cutting it changes the output"
    except Exception as error:  # whatever the network's own code makes of a narrower tensor
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the network does not {'train' if training else 'run'} without half of it ({said})"
    return ""


def _run(model: nn.Module, example: Example, training: bool) -> list[Tensor]:
    """Run a network in either mode, with the same random numbers at each call."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return run_example(model.train(training), copy.deepcopy(example))


@torch.no_grad()
def _runs(model: nn.Module, example: Example, training: bool) -> bool:
    """Return whether a network takes an example; it may be made for one size of batch."""
    try:
        _run(copy.deepcopy(model), example, training)
    except Exception:
        return False
    return True


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Give norms, biases and scales random numbers, so that a tensor that was forgotten shows."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            random = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(low + (high - low) * random)

    for parameter in model.parameters():
        if not parameter.any():  # as of a last layer that begins at zero and hides all before it
            fill(parameter, -0.5, 0.5)
    for layer in model.modules():
        if not sides_of(layer)[1]:  # its own parameters scale or shift, at first perhaps by 1e-6
            for parameter in layer.parameters(recurse=False):
                if parameter.numel() == max(parameter.shape, default=1):
                    fill(parameter, 0.5, 1.5)
        if isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm):
            fill(layer.weight, 0.5, 1.5)
            fill(getattr(layer, "running_mean", None), -0.5, 0.5)
            fill(getattr(layer, "running_var", None), 0.5, 1.5)
        if isinstance(getattr(layer, "bias", None), Tensor):
            fill(layer.bias, -0.5, 0.5)
