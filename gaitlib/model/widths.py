"""The width of each layer of a network: read the widths as plain numbers, and apply them.

A compressed network is the network of its ``build_model`` arguments with narrower layers. Its file
stores those arguments and the widths.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from gaitlib.model.float_state import of_quantizer
from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.system.errors import UserError

Widths = dict[str, dict[str, int]]

#: The most channels or parts of a layer, and the most classes, that a network may have.
MAX_WIDTH, MAX_CLASSES = 16_384, 10**6

_BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
#: The tensor that says how wide a layer is, and its dimension of each width.
_WIDTHS_OF = {
    nn.Conv2d: ("weight", {"in": 1, "out": 0}),
    _BATCH_NORMS: ("running_mean", {"out": 0}),
    SeparateFCs | SeparateBNNecks: ("fc_bin", {"in": 1, "out": 2}),
}


def _widths_of(layer: nn.Module) -> tuple[str, dict[str, int]]:
    """Return the entry of `_WIDTHS_OF`, or an empty one."""
    return next((found for kind, found in _WIDTHS_OF.items() if isinstance(layer, kind)), ("", {}))


def weight_names(model: nn.Module) -> dict[str, str]:
    """Return the parameter that multiplies the input, by layer: of convolutions and heads."""
    tensors = {name: _widths_of(layer) for name, layer in model.named_modules()}
    return {name: f"{name}.{tensor}" for name, (tensor, sides) in tensors.items() if "in" in sides}


def layer_widths(model: nn.Module) -> Widths:
    """Return ``in`` and ``out`` channels of every layer, by module name.

    A batch norm has only ``out``, a quantizer has no width. Any other module with parameters is not
    part of a gait network.

    Raises:
        TypeError: for such a module.
    """
    widths = {}
    for name, layer in model.named_modules():
        tensor, sides = _widths_of(layer)
        if sides:
            shape = getattr(layer, tensor).shape
            widths[name] = {side: shape[dim] for side, dim in sides.items()}
        elif not of_quantizer(name) and any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"{name} is a {type(layer).__name__}, whose width is not known here")
    return widths


def resize_layers(model: nn.Module, widths: Mapping[str, Mapping[str, int]]) -> None:
    """Give every layer of ``model`` these widths, in place; all resized tensors become zeros.

    Raises:
        UserError: if the names are not the model's, or a width is not in 1..the present width.
    """
    present = layer_widths(model)
    if differing := sorted(present.keys() ^ widths.keys()):
        raise UserError(f"these layers are in one of model and widths only: {differing}")
    for name, width in widths.items():
        for side, most in present[name].items():
            size = width[side]
            if type(size) is not int or not 1 <= size <= most:
                raise UserError(f"{name} has {side!r} {size!r}: write an integer in 1..{most}")
        if width != present[name]:
            _resize(model.get_submodule(name), width)


def _resize(layer: nn.Module, width: Mapping[str, int]) -> None:
    _, sides = _widths_of(layer)
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.dim():  # no counter of steps
            shape = list(tensor.shape)
            for side, dim in sides.items():
                if dim < len(shape):
                    shape[dim] = width[side]
            replace_tensor(layer, name, tensor.new_zeros(shape))
    sync_widths(layer)


def widths_of_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Widths:
    """Return the widths that ``model`` has after channels have left, from the weights that remain.

    What a compressed network keeps, embedding and classes, is the model's.

    Args:
        model: the dense network.
        weights: some or all of its names, with tensors that are as wide or narrower.
    """
    found = layer_widths(model)
    for name, width in found.items():
        layer = model.get_submodule(name)
        if isinstance(layer, SeparateBNNecks | nn.BatchNorm1d):
            continue
        own, sides = _widths_of(layer)
        there = weights.get(f"{name}.{own}")
        if there is not None and there.dim() == getattr(layer, own).dim():
            for side, dim in sides.items():
                if (own, side) != ("fc_bin", "out"):
                    width[side] = min(width[side], max(there.shape[dim], 1))
    return found


def replace_tensor(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer ``name`` of one layer by ``tensor``."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(layer, name, tensor)


def sync_widths(layer: nn.Module) -> None:
    """Set a layer's channel counts (``in_channels`` and so on) to those of its tensors."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, _BATCH_NORMS):
        layer.num_features = len(layer.running_mean)
