"""What a file says about a network besides its numbers, and the network built from both."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaitlib.model import GaitBase, build_model
from gaitlib.model.widths import MAX_CLASSES, MAX_WIDTH, Widths, resize_layers
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.quantization import attach_grids
from gaitlib.system.errors import UserError

#: The most residual blocks.
MAX_BLOCKS = 400


@dataclass(frozen=True)
class NetworkDescription:
    """Which network it is: everything but its numbers.

    Attributes:
        architecture: the arguments of ``build_model`` that make the dense network.
        widths: ``in`` and ``out`` of each layer of this one, as `layer_widths` gives them.
        weight_grids: the grid that each quantized weight lies on, by parameter name.
        input_grids: the grid of each quantized layer input, by layer name.
    """

    architecture: dict[str, Any]
    widths: Widths
    weight_grids: dict[str, Grid]
    input_grids: dict[str, Grid]

    def outline(self) -> GaitBase:
        """Return the float network as shapes alone, on the meta device.

        Raises:
            UserError: if the widths are not those of a narrower network of this architecture.
        """
        model = dense_outline(self.architecture)
        resize_layers(model, self.widths)
        return model

    def rebuild(self, state: Mapping[str, Tensor]) -> GaitBase:
        """Return the network with these numbers, in eval mode on their device.

        Quantizers that no longer learn are attached where there are grids. Weights lie on their
        grids already, so weight quantizers leave them as they are.

        Args:
            state: the float network's ``state_dict``; the network takes over its tensors.

        Raises:
            UserError: as `outline`, or for grids of what the network does not have.
            RuntimeError: if names or shapes differ.
        """
        model = self.outline()
        model.load_state_dict(state, assign=True)
        if self.weight_grids or self.input_grids:
            attach_grids(model, self.weight_grids, self.input_grids)
        return model.eval()


def dense_outline(architecture: Mapping[str, Any]) -> GaitBase:
    """Build the dense network as shapes alone: allocates nothing, draws no random number.

    Raises:
        UserError: if the architecture is none, or larger than an experiment may ask for.
    """
    _check_sizes(architecture)
    with torch.device("meta"):
        return build_model(**architecture)


def _check_sizes(architecture: Mapping[str, Any]) -> None:
    """Refuse an architecture that is too large to build; its file may come from anyone."""
    text = json.dumps(architecture)
    classifier = architecture.get("SeparateBNNecks") or {}
    widths = json.dumps({**architecture, "SeparateBNNecks": {**classifier, "class_num": 1}})
    if (
        max(map(int, re.findall(r"[0-9]{1,20}", widths))) > MAX_WIDTH
        or int(classifier.get("class_num", 1)) > MAX_CLASSES
        or len(text) > 10_000
    ):
        raise UserError(f"its architecture is too large: {text:.100}")
    blocks = architecture["backbone_cfg"].get("layers", [])
    if isinstance(blocks, list | tuple) and sum(blocks) > MAX_BLOCKS:
        raise UserError(f"layers {list(blocks)} are {sum(blocks)} blocks, more than {MAX_BLOCKS}")
