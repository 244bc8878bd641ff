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
_MAPS = SeparateFCs | SeparateBNNecks  # fc_bin is (P, in, out)


def layer_widths(model: nn.Module) -> Widths:
    """Return ``in`` and ``out`` channels of every layer, by module name.

    A batch norm has only ``out``, a quantizer has no width. Any other module with parameters is not
    part of a gait network.

    Raises:
        TypeError: for such a module.
    """
    widths = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            widths[name] = {"in": layer.in_channels, "out": layer.out_channels}
        elif isinstance(layer, _BATCH_NORMS):
            widths[name] = {"out": layer.num_features}
        elif isinstance(layer, _MAPS):
            widths[name] = {"in": layer.fc_bin.shape[1], "out": layer.fc_bin.shape[2]}
        elif not of_quantizer(name) and any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"{name} is a {type(layer).__name__}, whose width is not known here")
    return widths


def resize_layers(model: nn.Module, widths: Mapping[str, Mapping[str, int]]) -> None:
    """Give every layer of ``model`` these widths, in place; all resized tensors become zeros.

    Raises:
        UserError: if the names are not the model's, or a width is not in 1..the present width.
    """
    present = layer_widths(model)
    if present.keys() != widths.keys():
        differing = sorted(present.keys() ^ widths.keys())
        raise UserError(f"these layers are in one of model and widths only: {differing}")
    for name, width in widths.items():
        if width.keys() != present[name].keys():
            raise UserError(f"{name} needs the widths {sorted(present[name])}, not {dict(width)}")
        for side, size in width.items():
            if type(size) is not int or not 1 <= size <= present[name][side]:
                raise UserError(
                    f"{name} has {side!r} {size!r}; it has to be an integer in "
                    f"1..{present[name][side]}"
                )
        if width != present[name]:
            _resize(model.get_submodule(name), **{f"{k}_": v for k, v in width.items()})


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
        if isinstance(layer, SeparateFCs):
            own, sides = "fc_bin", {"in": 1}
        elif isinstance(layer, nn.Conv2d):
            own, sides = "weight", {"out": 0, "in": 1}
        elif isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            own, sides = "running_mean", {"out": 0}
        else:
            continue
        there = weights.get(f"{name}.{own}")
        if there is not None and there.dim() == getattr(layer, own).dim():
            for side, dim in sides.items():
                width[side] = min(width[side], max(there.shape[dim], 1))
    return found


def _resize(layer: nn.Module, out_: int, in_: int | None = None) -> None:
    if isinstance(layer, nn.Conv2d):
        shapes = {"weight": (out_, in_, *layer.weight.shape[2:]), "bias": (out_,)}
    elif isinstance(layer, _BATCH_NORMS):
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (out_,))
    else:
        shapes = {"fc_bin": (layer.fc_bin.shape[0], in_, out_)}
    for name, shape in shapes.items():
        old = getattr(layer, name)
        if old is not None:
            replace_tensor(layer, name, old.new_zeros(shape))
    sync_widths(layer)


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
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _BATCH_NORMS):
        layer.num_features = len(layer.running_mean)
