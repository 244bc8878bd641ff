"""A network's weights as integers of a few bits, in one safetensors file.

A quantized weight is ``sgn(k) d |k|`` with whole k (`gaitlib.quantize.grid`). The file holds k,
each tensor at its own width: densely packed for 2 to 8 bits, as int16 for 9 to 16. Wider grids and
everything else (batch norms, biases) are float32. A safetensors file is a JSON header and raw bytes
(https://github.com/huggingface/safetensors): reading one executes nothing.

Four things stand in the file. So few, because an entry of the header costs about 100 bytes, and a
compressed network may have 10 kB:

``integers``
    uint8. The packed weights, one tensor after the other in the order of ``state_dict``. k is
    stored in two's complement, lowest bit first, bits filling each byte from its lowest upwards;
    only the last byte of a tensor is padded, with zeros. An int16 is two bytes, the lower first.
``floats``
    float32. All other floating-point entries of ``state_dict``, in its order. Step counters of
    batch norms are not kept; they load as 0.
``grids``
    float32, one row ``(d, q_m, t)`` a grid: of the weights, then of the layers' inputs.
metadata ``network``
    JSON: ``format``; ``build_model``, its arguments; ``widths``, ``[in, out]`` of each layer or
    ``[out]`` of a batch norm; ``weight_bits``, ``input_bits`` and ``input_signed`` of each
    convolution and head, where 32 bits are a float. Layers stand in the order of ``layer_widths``.

With quickstart's network the header takes 1.0 kB and the grids 0.3 kB. At 4 bits that is 1.8 % on
top of the numbers, 4.4 % with 4 of 10 channels left.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gaitlib.deploy.cut_network import NetworkFileError
from gaitlib.model import GaitBase, build_model
from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.model.network_cost import FLOAT_BITS, stored_bits, stored_bytes
from gaitlib.model.widths import layer_widths, resize_layers
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.packing import pack, stored_tensors, unpack
from gaitlib.quantize.quantization import attach_grids
from gaitlib.system.files import replacing

FORMAT = 1
INPUT_BITS = 24  # whole numbers up to 2^24 are exact in float32
_METADATA = "network"
_DTYPES = {"integers": "U8", "floats": "F32", "grids": "F32"}
_DAMAGE = (
    *(SafetensorError, ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, ArithmeticError),
)  # what the JSON of a stranger may make of build_model


def write_lowbit(
    model: GaitBase,
    architecture: Mapping[str, Any],
    weight_grids: Mapping[str, Grid],
    activation_grids: Mapping[str, Grid],
    path: Path | str,
) -> Path:
    """Write a quantized network to one file.

    Args:
        model: a network that ``build_model`` made, whole or with narrower layers, with or without
            quantizers attached. Its weights are rounded here; where the grid has a t other than 1,
            they have to be those before rounding, which is not the same done twice.
        architecture: the arguments of that call.
        weight_grids: grid of each quantized weight, by parameter name (``FCs.fc_bin``).
        activation_grids: grid of each quantized input, by layer name (``FCs``). Both as
            ``Quantization.grids`` gives them.
        path: the file, by custom ``*.safetensors``; its folder is made if missing.

    Returns:
        The path.

    Raises:
        ValueError: if ``architecture`` builds another network, a grid is of nothing in the model, a
            weight's has no sign, an input's more than 24 bits, or a weight is not finite.
    """
    path, widths = Path(path), layer_widths(model)
    outline = _outline(architecture)
    resize_layers(outline, widths)
    if _shapes(outline) != _shapes(model):
        raise ValueError(f"architecture {dict(architecture)} builds another network than this")
    names = _weight_names(model)
    _check_known(weight_grids, names.values(), "weight")
    _check_known(activation_grids, names, "layer")
    _check_inputs(activation_grids)
    if unsigned := [name for name, grid in weight_grids.items() if not grid.signed]:
        raise ValueError(f"the grids of {unsigned} have no sign, weights have one")
    integers, floats = [], []
    for name, tensor in stored_tensors(model).items():
        grid = weight_grids.get(name)
        if grid is not None and not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite; no grid has them")
        if grid is not None and stored_bits(grid.bits) != FLOAT_BITS:
            integers.append(pack(grid.quantize(tensor), grid.bits))
        else:
            floats.append((tensor if grid is None else grid.fake(tensor)).cpu().float().ravel())
    weights = [weight_grids.get(name) for name in names.values()]
    weights = [g if g is not None and stored_bits(g.bits) != FLOAT_BITS else None for g in weights]
    inputs = [activation_grids.get(layer) for layer in names]
    description = {
        "format": FORMAT,
        "build_model": dict(architecture),
        "widths": [list(width.values()) for width in widths.values()],
        "weight_bits": [FLOAT_BITS if grid is None else grid.bits for grid in weights],
        "input_bits": [FLOAT_BITS if grid is None else grid.bits for grid in inputs],
        "input_signed": [int(grid is None or grid.signed) for grid in inputs],
    }
    rows = [(grid.d, grid.q_m, grid.t) for grid in weights + inputs if grid is not None]
    tensors = {
        "integers": torch.cat([torch.empty(0, dtype=torch.uint8), *integers]),
        "floats": torch.cat([torch.empty(0), *floats]),  # there may be none
        "grids": torch.tensor(rows, dtype=torch.float32).reshape(-1, 3),
    }
    text = json.dumps(description, separators=(",", ":"))
    with replacing(path, durable=True) as part:
        part.write_bytes(save(tensors, {_METADATA: text}))
    return path


def load_lowbit(path: Path | str, device: torch.device | str = "cpu") -> GaitBase:
    """Rebuild a quantized network from its file.

    Its weights are ``sgn(k) d |k|`` in float32. Its quantizers are attached and no longer learn:
    those of activations round, those of weights only say on which grid a weight is. Nothing of the
    size that a file claims is allocated before the file is seen to hold it.

    Args:
        path: what `write_lowbit` wrote.
        device: where the network goes; it is returned in eval mode.

    Raises:
        FileNotFoundError: if the file is missing.
        NetworkFileError: if it is of an unknown format, damaged, or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; write_lowbit makes it")
    try:
        tensors, description = _read(path)
        model = _rebuild(tensors, description)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise NetworkFileError(f"{path} is no network that can be loaded: {reason}") from error
    return model.eval().to(device)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of a file, both of the right types."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_METADATA)
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        if text is None or found != _DTYPES:
            raise ValueError(
                f"it needs the metadata {_METADATA!r} and the tensors {_DTYPES}, and has "
                f"{sorted(file.metadata() or {})} and {found}"
            )
        tensors = {name: file.get_tensor(name) for name in _DTYPES}
    description = json.loads(text)
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise ValueError(f"it has format {version!r}, this version reads {FORMAT}")
    return tensors, description


def _rebuild(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> GaitBase:
    model = _outline(description["build_model"])
    own = layer_widths(model)
    widths = {}
    for layer, sizes in zip(own, _listed(description, "widths", len(own), list), strict=True):
        if len(sizes) != len(own[layer]):
            raise ValueError(f"{layer} needs the widths {list(own[layer])}, not {sizes!r:.80}")
        widths[layer] = dict(zip(own[layer], sizes, strict=True))
    resize_layers(model, widths)
    names = _weight_names(model)
    weight_bits, input_bits, input_signed = (
        _listed(description, key, len(names), int)
        for key in ("weight_bits", "input_bits", "input_signed")
    )
    stored = sum(bits != FLOAT_BITS for bits in (*weight_bits, *input_bits))
    if tensors["grids"].shape != (stored, 3):
        raise ValueError(
            f"grids has the shape {tuple(tensors['grids'].shape)}, the bits call for ({stored}, 3)"
        )
    row = iter(tensors["grids"].tolist())
    weight_grids = {
        name: Grid(*next(row), bits=bits, signed=True)
        for name, bits in zip(names.values(), weight_bits, strict=True)
        if bits != FLOAT_BITS
    }
    input_grids = {
        layer: Grid(*next(row), bits=bits, signed=bool(signed))
        for layer, bits, signed in zip(names, input_bits, input_signed, strict=True)
        if bits != FLOAT_BITS
    }
    _check_inputs(input_grids)
    model.load_state_dict(_state(model, weight_grids, tensors), assign=True)
    settled = {name: _settled(grid) for name, grid in weight_grids.items()}
    for quantizer in attach_grids(model, settled, input_grids).weights.values():
        quantizer.enabled = False  # the weights are rounded, these only say how
    return model


def _settled(grid: Grid) -> Grid:
    """Return the grid of values that ``grid`` has bent and rounded: it lets them be."""
    return Grid(grid.d, grid.d * grid.levels, 1.0, grid.bits, True)


def _state(
    model: nn.Module, weight_grids: Mapping[str, Grid], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Cut ``integers`` and ``floats`` into the entries of the model's ``state_dict``."""
    shapes = _shapes(model)
    packed = [stored_bytes(shapes[name].numel(), grid.bits) for name, grid in weight_grids.items()]
    floats = [shape.numel() for name, shape in shapes.items() if name not in weight_grids]
    for kind, sizes in (("integers", packed), ("floats", floats)):
        if tensors[kind].shape != (sum(sizes),):
            raise ValueError(
                f"{kind} has the shape {tuple(tensors[kind].shape)}, the network needs "
                f"({sum(sizes)},)"
            )
    packed_parts = iter(tensors["integers"].split(packed))
    float_parts = iter(tensors["floats"].split(floats))
    state = {}
    for name, tensor in model.state_dict().items():
        if grid := weight_grids.get(name):
            k = unpack(next(packed_parts), grid.bits, tensor.shape)
            state[name] = grid.dequantize(k)
        elif name in shapes:
            state[name] = next(float_parts).reshape(tensor.shape).clone()
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return state


def _outline(architecture: Mapping[str, Any]) -> GaitBase:
    """Build a network of shapes alone: nothing is allocated, no random number is drawn."""
    with torch.device("meta"):
        return build_model(**architecture)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in stored_tensors(model).items()}


def _weight_names(model: nn.Module) -> dict[str, str]:
    """Return the parameter that multiplies the input, by layer: of convolutions and heads."""
    names = {}
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            names[layer] = f"{layer}.weight"
        elif isinstance(module, SeparateFCs | SeparateBNNecks):
            names[layer] = f"{layer}.fc_bin"
    return names


def _listed(description: Mapping[str, Any], key: str, length: int, kind: type) -> list[Any]:
    values = description[key]
    if (
        type(values) is not list
        or len(values) != length
        or any(type(v) is not kind for v in values)
    ):
        raise ValueError(f"{key} has to be a list of {length} {kind.__name__}, not {values!r:.80}")
    return values


def _check_known(grids: Mapping[str, Grid], known: Iterable[str], kind: str) -> None:
    if strangers := sorted(grids.keys() - set(known)):
        raise ValueError(f"no {kind} is called {strangers}; quantized are {list(known)} at most")


def _check_inputs(grids: Mapping[str, Grid]) -> None:
    if wide := {layer: grid.bits for layer, grid in grids.items() if grid.bits > INPUT_BITS}:
        raise ValueError(
            f"the inputs of {wide} have more bits than float32 counts in, {INPUT_BITS}; leave "
            "them float"
        )
