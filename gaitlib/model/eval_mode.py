"""Put a network into evaluation mode for one block of code, or to see what its layers do."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.model.examples import Example, run_example


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode in the block; then restore the mode of each.

    So a batch norm that is frozen in a training network stays frozen.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def layer_calls(
    model: nn.Module, kinds: Any, example: Example | None = None
) -> list[tuple[str, nn.Module, Tensor, Any]]:
    """Run a network once; return the calls of some layers, in order.

    Args:
        model: run in evaluation mode; not changed.
        kinds: classes of the layers.
        example: inputs to run it on; one clip of one empty frame if None.

    Returns:
        Of each call the layer's name, the layer, its input and its output.
    """
    calls = []

    def record(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((name, layer, inputs[0], output))

    handles = [
        layer.register_forward_hook(partial(record, name))
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
    ]
    if example is None:
        example = next(model.parameters()).new_zeros(1, 1, *model.frame_size)
    try:
        with in_eval_mode(model):
            run_example(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls
