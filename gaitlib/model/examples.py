"""An example of a network's inputs: a tensor, a tuple of arguments, or a dict of named ones."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from gaitlib.system.errors import UserError

Example = Tensor | tuple[Any, ...] | dict[str, Any]


def run_example(model: Callable[..., Any], example: Example) -> list[Tensor]:
    """Run a network on an example; return all tensors of its output, whatever holds them."""
    if isinstance(example, dict):
        output = model(**example)
    else:
        output = model(*example) if isinstance(example, tuple) else model(example)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def run_given(model: Callable[..., Any], example: Example, said: str) -> list[Tensor]:
    """Run a network on inputs that a user gave, as `run_example` does.

    Args:
        model: the network.
        example: the inputs.
        said: what they are, for the message.

    Raises:
        UserError: with what the network's own code says, if it does not run on them.
    """
    try:
        return run_example(model, example)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        kinds = (
            f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            for leaf in tree_leaves(example)
        )
        raise UserError(
            f"this {type(model).__name__} does not run on {said} ({', '.join(kinds):.100}): {line}"
            ". Give a tensor, a tuple of arguments or a dict of named ones, as it takes them"
        ) from error


def example_like(example: Example, tensor: Tensor) -> Example:
    """Return the example on the device of ``tensor`` and, if it is not of integers, in its type."""

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(tensor) if leaf.is_floating_point() else leaf.to(tensor.device)

    return tree_map_only(Tensor, moved, example)


def varied(example: Example) -> Example:
    """Return the example with random numbers, 0 to 1, in place of tensors of one number alone."""
    generator = torch.Generator().manual_seed(0)

    def random(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point() or leaf.numel() < 2 or leaf.min() < leaf.max():
            return leaf
        return torch.rand(leaf.shape, generator=generator).to(leaf)

    return tree_map_only(Tensor, random, example)


def one_more(example: Example) -> Example:
    """Return the example with its first row again at the end, in every tensor that has as many."""
    rows = next(len(leaf) for leaf in tree_leaves(example) if isinstance(leaf, Tensor))

    def longer(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, leaf[:1]]) if leaf.dim() and len(leaf) == rows else leaf

    return tree_map_only(Tensor, longer, example)


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, each relative to its largest number.

    Outputs of other shapes differ infinitely, and one that is not finite differs by NaN.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return math.inf
    errors = [torch.zeros(())]
    for a, b in zip(expected, found, strict=True):
        a, b = (tensor if tensor.is_floating_point() else tensor.float() for tensor in (a, b))
        scale = a.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((a - b).abs().max() / scale)
    return torch.stack([error.to(errors[-1]) for error in errors]).max().item()
