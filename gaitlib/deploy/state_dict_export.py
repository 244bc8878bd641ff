"""A network's weights as torch's ``state_dict``: an export for other programs.

The keys are the float network's, and ``torch.load(path, weights_only=True)`` reads the file. A
quantized network's weights lie on their grids: read without quantizers they are the quantized
weights.

A ``state_dict`` does not say which network it is of. The network file of the same name beside it
does (`gaitlib.deploy.network_file`). Earlier versions wrote ``architecture.json`` instead, which
`read_architecture_json` still reads.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.deploy.network_description import NetworkDescription
from gaitlib.model.float_state import float_state
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.quantization import quantization_of
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing, tensor_bytes

ARCHITECTURE = "architecture.json"
#: Formats of architecture.json: of float networks, and of quantized ones.
FORMAT, QUANTIZED_FORMAT = 1, 2


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


def read_architecture_json(path: Path) -> tuple[NetworkDescription, str]:
    """Read the ``architecture.json`` of an earlier version.

    Returns:
        The description, and the name of the file of weights that it was written for.

    Raises:
        UserError: if the format is unknown; or LookupError, TypeError or AttributeError if the
            content is not what the format says.
    """
    entries = json.loads(path.read_text(encoding="utf-8"))
    version = entries["format"]
    if version not in (FORMAT, QUANTIZED_FORMAT):
        raise UserError(
            f"it has format {version!r}, this version reads {FORMAT} and {QUANTIZED_FORMAT}"
        )
    architecture, widths, weights = (entries[k] for k in ("build_model", "widths", "weights"))
    tables = [architecture, widths, *(widths.values() if isinstance(widths, dict) else ())]
    if not all(isinstance(table, dict) for table in tables) or not isinstance(weights, str):
        raise UserError("build_model and widths have to be objects, weights a file name")
    quantization: dict[str, Any] = {"weights": {}, "activations": {}}
    if version == QUANTIZED_FORMAT:
        quantization = entries["quantization"]
    weight_grids, input_grids = (
        {name: Grid(**values) for name, values in quantization[kind].items()}
        for kind in ("weights", "activations")
    )
    description = NetworkDescription(architecture, widths, weight_grids, input_grids)
    return description, Path(weights).name
