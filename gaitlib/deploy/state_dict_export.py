"""A network's weights as torch's ``state_dict``: an export for other programs.

The keys are the float network's, and ``torch.load(path, weights_only=True)`` reads the file. A
quantized network's weights lie on their grids: read without quantizers they are the quantized
weights.

A ``state_dict`` does not say which network it is of. The network file of the same name beside it
does (`gaitlib.deploy.network_file`).
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from gaitlib.model.float_state import float_state
from gaitlib.quantize.quantization import quantization_of
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing, tensor_bytes


def export_state_dict(model: nn.Module, path: Path | str) -> Path:
    """Write the float network's ``state_dict``, settled (`Quantization.settle`) if quantized.

    Args:
        model: any network; not changed.
        path: of the file, by custom ``*.pt``; its folder is made if missing.

    Raises:
        OSError: if the file cannot be written.
    """
    state = float_state(settled_copy(model))
    with replacing(path, durable=True) as part:
        part.write_bytes(tensor_bytes({n: tensor.detach().cpu() for n, tensor in state.items()}))
    return Path(path)


def settled_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose quantizers are settled; a float network is returned itself."""
    if quantization_of(model) is None:
        return model
    twin = copy.deepcopy(model)
    quantization_of(twin).settle(twin)
    return twin


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` without running anything in it; floats are float32, on the CPU.

    Raises:
        UserError: if the file holds something else; torch raises other errors for damaged files.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path.name} holds no state_dict, which is tensors by name")
    return {n: t.to(torch.float32) if t.is_floating_point() else t for n, t in state.items()}
