"""The width of each layer of a network: read the widths as plain numbers, and apply them.

A compressed network is the network of its ``build_model`` arguments with narrower layers. Its file
stores those arguments and the widths.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.system.errors import UserError

Widths = dict[str, dict[str, int]]

#: The most channels or parts of a layer, and the most classes, that a network may have.
MAX_WIDTH, MAX_CLASSES = 16_384, 10**6

#: The tensor that says how wide a layer is, and its dimension of each width. The first kind counts.
_WIDTHS_OF = {
    _ConvTransposeNd: ("weight", {"in": 0, "out": 1}),
    _ConvNd: ("weight", {"in": 1, "out": 0}),
    nn.Linear: ("weight", {"in": 1, "out": 0}),
    _BatchNorm: ("running_mean", {"out": 0}),
    _NormBase | nn.GroupNorm | nn.LayerNorm | nn.PReLU: ("weight", {"out": 0}),
    SeparateFCs | SeparateBNNecks: ("fc_bin", {"in": 1, "out": 2}),
}


def sides_of(layer: nn.Module) -> tuple[str, dict[str, int]]:
    """Return the tensor that says how wide a layer is, and its dimensions of ``in`` and ``out``.

    A depthwise convolution has only ``out``, as a norm has: its channels are those that it reads.
    Another grouped convolution, and a layer that is not known here, have neither.
    """
    if getattr(layer, "groups", 1) > 1:
        return ("weight", {"out": 0}) if is_depthwise(layer) else ("", {})
    kinds = (found for kind, found in _WIDTHS_OF.items() if isinstance(layer, kind))
    return next((found for found in kinds if getattr(layer, found[0], None) is not None), ("", {}))


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution of each channel by itself."""
    is_conv = isinstance(layer, _ConvNd) and layer.groups > 1
    return is_conv and layer.groups == layer.in_channels == layer.out_channels


def weight_names(model: nn.Module) -> dict[str, str]:
    """Return the parameter that multiplies the input, by layer: of convolutions, Linear, heads."""
    found = {}
    for name, layer in model.named_modules():
        tensor, sides = sides_of(layer)
        if "in" in sides or isinstance(layer, _ConvNd):
            found[name] = f"{name}.{tensor or 'weight'}"
    return found


def layer_widths(model: nn.Module) -> Widths:
    """Return ``in`` and ``out`` channels of every layer, by module name.

    A norm has only ``out``; a quantizer, and a module of a kind that is not known here, has none.
    """
    widths = {}
    for name, layer in model.named_modules():
        tensor, sides = sides_of(layer)
        if sides:
            shape = getattr(layer, tensor).shape
            widths[name] = {side: shape[dim] for side, dim in sides.items()}
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
            resize_layer(model.get_submodule(name), width)


def resize_layer(layer: nn.Module, width: Mapping[str, int]) -> None:
    """Give one layer these widths, in place; all its tensors become zeros."""
    _, sides = sides_of(layer)
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.dim():  # no counter of steps
            shape = list(tensor.shape)
            for side, dim in sides.items() if len(shape) > 1 else [("out", 0)]:
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
        own, sides = sides_of(layer)
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
    tensor, sides = sides_of(layer)
    width = {side: getattr(layer, tensor).shape[dim] for side, dim in sides.items()}
    if isinstance(layer, _ConvNd):
        single = layer.groups > 1
        layer.out_channels, layer.in_channels = width["out"], width["out" if single else "in"]
        layer.groups = layer.out_channels if single else 1
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = width["out"], width["in"]
    elif isinstance(layer, _NormBase):
        layer.num_features = width["out"]
    elif isinstance(layer, nn.GroupNorm):
        if layer.num_groups == layer.num_channels:
            layer.num_groups = width["out"]
        layer.num_channels = width["out"]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = width["out"]
