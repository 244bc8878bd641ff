"""Separate the ``state_dict`` entries of the float network from those of its quantizers.

The quantizers are the network's submodule ``quantization``; every other entry is OpenGait's.
"""

from typing import Any

from torch import Tensor, nn

QUANTIZATION = "quantization"  # the submodule's name, which starts its checkpoint keys


def quantization_of(model: nn.Module) -> Any | None:
    """Return a network's `gaitlib.quantize.quantization.Quantization`; None if it has none."""
    return getattr(model, QUANTIZATION, None)


def of_quantizer(name: str) -> bool:
    """Return whether a parameter or ``state_dict`` entry of a network belongs to its quantizers."""
    return name.startswith(f"{QUANTIZATION}.")


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` entries of the float network alone, by name."""
    return {n: tensor for n, tensor in model.state_dict().items() if not of_quantizer(n)}
