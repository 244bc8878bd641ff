"""What a file says about a network besides its numbers, and the network built from both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gaitlib.model import GaitBase, outline
from gaitlib.model.widths import Widths, resize_layers
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.quantization import attach_grids
from gaitlib.system.errors import UserError

INPUT_BITS = 24  # whole numbers up to 2^24 are exact in float32


@dataclass(frozen=True)
class NetworkDescription:
    """Which network it is: everything but its numbers.

    Attributes:
        architecture: the arguments of ``build_model`` that make the dense network.
        widths: ``in`` and ``out`` of each layer of this one, as `layer_widths` gives them.
        weight_grids: the grid that each quantized weight lies on, by parameter name.
        input_grids: the grid of each quantized layer input, by layer name.

    Raises:
        UserError: if a weight's grid has no sign, or an input's more than 24 bits.
    """

    architecture: dict[str, Any]
    widths: Widths
    weight_grids: dict[str, Grid]
    input_grids: dict[str, Grid]

    def __post_init__(self) -> None:
        refuse_unsigned(self.weight_grids)
        if wide := {name: g.bits for name, g in self.input_grids.items() if g.bits > INPUT_BITS}:
            raise UserError(
                f"the inputs of {wide} have more bits than float32 counts in, {INPUT_BITS}: leave "
                "them float"
            )

    def outline(self) -> GaitBase:
        """Return the float network as shapes alone, on the meta device.

        Raises:
            UserError: if the widths are not those of a narrower network of this architecture.
        """
        model = outline(self.architecture)
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


def refuse_unsigned(weight_grids: Mapping[str, Grid]) -> None:
    """Raise ``UserError`` if the grid of a weight, by parameter name, has no negative values."""
    if unsigned := [name for name, grid in weight_grids.items() if not grid.signed]:
        raise UserError(f"the grids of {unsigned} have no sign: weights need one")
