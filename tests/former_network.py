"""A network on disk as earlier versions wrote it: torch's state_dict and architecture.json."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaitlib.model.float_state import float_state
from gaitlib.model.widths import layer_widths
from gaitlib.quantize.quantization import quantization_of


def write_former_network(model: nn.Module, architecture: dict[str, Any], path: Path) -> Path:
    """Write the pair of files, format 1 or, for a settled quantized network, 2; return the JSON."""
    entries = {
        "format": 1,
        "weights": path.name,
        "build_model": architecture,
        "widths": layer_widths(model),
    }
    if (quantization := quantization_of(model)) is not None:
        weights, inputs = quantization.grids()
        entries["format"] = 2
        entries["quantization"] = {
            "weights": {name: asdict(grid) for name, grid in weights.items()},
            "activations": {name: asdict(grid) for name, grid in inputs.items()},
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: t.detach().cpu() for name, t in float_state(model).items()}, path)
    beside = path.with_name("architecture.json")
    beside.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return beside
