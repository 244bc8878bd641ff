"""Which entries of a network's ``state_dict`` are the float network's, and which its quantizers'.

Quantizers hang on a network as its submodule ``quantization``; every other entry is OpenGait's.
"""

from torch import Tensor, nn

QUANTIZATION = "quantization"  # the submodule; the scalars' checkpoint keys begin with it


def of_quantizer(name: str) -> bool:
    """Say whether a parameter or ``state_dict`` entry of a network belongs to its quantizers."""
    return name.startswith(f"{QUANTIZATION}.")


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` entries of the float network alone, by name."""
    return {n: tensor for n, tensor in model.state_dict().items() if not of_quantizer(n)}
