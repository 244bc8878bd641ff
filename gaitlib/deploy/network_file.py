"""A compressed network in one safetensors file: its numbers, and which network they are of.

A quantized weight is ``sgn(k) d |k|`` with whole k (`gaitlib.quantize.grid`). The file holds k,
each tensor at its own width: densely packed for 2 to 8 bits, as int16 for 9 to 16. Wider grids and
everything else (batch norms, biases, a float network's weights) are float32. A safetensors file is
a JSON header and raw bytes (https://github.com/huggingface/safetensors): reading one executes
nothing.

Four things stand in the file. So few, because an entry of the header costs about 100 bytes, and a
compressed network may have 10 kB:

``integers``
    uint8. The packed weights, one tensor after the other in the order of ``state_dict``. k is
    stored in two's complement, lowest bit first, bits filling each byte from its lowest upwards;
    only the last byte of a tensor is padded, with zeros. An int16 is two bytes, the lower first.
    Empty for a float network.
``floats``
    float32. All other floating-point entries of ``state_dict``, in its order. Step counters of
    batch norms are not kept; they load as 0.
``grids``
    float32, one row ``(d, q_m, t)`` per grid: of the weights, then of the layers' inputs.
metadata ``network``
    JSON: ``format``; ``build_model``, its arguments; ``widths``, ``[in, out]`` of each layer or
    ``[out]`` of a batch norm; ``weight_bits``, ``input_bits`` and ``input_signed`` of each
    convolution and head, where 32 bits are a float. Layers stand in the order of ``layer_widths``.

With quickstart's network the header takes 1.0 kB and the grids 0.3 kB. At 4 bits that is 1.8 % on
top of the numbers, 4.4 % with 4 of 10 channels left.

`load_network` also reads weights that torch saved (`gaitlib.deploy.state_dict_export`), where the
network file of the same name beside them says which network they are of.
"""

import contextlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gaitlib.deploy.network_description import NetworkDescription
from gaitlib.deploy.state_dict_export import read_state_dict
from gaitlib.model import GaitBase, build_model, outline
from gaitlib.model.backbones import add_backbone
from gaitlib.model.network_cost import FLOAT_BITS, stored_bits, stored_bytes
from gaitlib.model.widths import MAX_CLASSES, MAX_WIDTH, layer_widths, weight_names
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.packing import pack, stored_tensors, unpack
from gaitlib.quantize.quantization import quantization_of
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing

SUFFIX = ".safetensors"
FORMAT = 1
MAX_BLOCKS = 400  # residual units that a network may have
_METADATA = "network"
_DTYPES = {"integers": "U8", "floats": "F32", "grids": "F32"}
_DAMAGE = (
    *(SafetensorError, ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, ArithmeticError, EOFError, pickle.UnpicklingError),
)  # what reading any bytes, and build_model with any JSON, may raise


class NetworkFileError(UserError):
    """A network on disk is not one that this version can load."""


def network_path(folder: Path | str, stage: str) -> Path:
    """Return ``<folder>/compressed_gaitbase_<stage>_<time>.safetensors``, with the time of now.

    Args:
        folder: of the stage's compressed networks.
        stage: what made the network.
    """
    return Path(folder, f"compressed_gaitbase_{stage}_{datetime.now():%Y-%m-%d_%H-%M-%S}{SUFFIX}")


def write_network(model: GaitBase, architecture: Mapping[str, Any], path: Path | str) -> Path:
    """Write a network, float or quantized, to one file.

    The weights that have quantizers are written on their grids at whole bits.

    Args:
        model: a network that ``build_model`` made, whole or with narrower layers; not changed.
            Quantizers, if it has any, are those of ``quantize_network`` or ``attach_grids``,
            settled or not.
        architecture: the arguments of that call.
        path: the file, by custom ``*.safetensors``; its folder is made if missing.

    Returns:
        The path.

    Raises:
        UserError: if ``architecture`` builds another network; if a quantized weight is not finite;
            for grids as `NetworkDescription`.
    """
    quantization = quantization_of(model)
    grids = ({}, {}) if quantization is None else quantization.grids()
    description = NetworkDescription(dict(architecture), layer_widths(model), *grids)
    if _shapes(description.outline()) != _shapes(model):
        raise UserError(f"architecture {dict(architecture)} builds another network than this")
    integers, floats = [torch.empty(0, dtype=torch.uint8)], [torch.empty(0)]  # there may be none
    for name, tensor in stored_tensors(model).items():
        grid = description.weight_grids.get(name)
        if grid is not None and not tensor.isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite; no grid has them")
        if _is_packed(grid):
            integers.append(pack(grid.quantize(tensor), grid.bits))
        else:
            floats.append((tensor if grid is None else grid.fake(tensor)).cpu().float().ravel())
    header, rows = _header(description, weight_names(model))
    grids = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)
    tensors = {"integers": torch.cat(integers), "floats": torch.cat(floats), "grids": grids}
    text = json.dumps(header, separators=(",", ":"))
    with replacing(path, durable=True) as part:
        part.write_bytes(save(tensors, {_METADATA: text}))
    return Path(path)


def _is_packed(grid: Grid | None) -> bool:
    return grid is not None and stored_bits(grid.bits) != FLOAT_BITS


def _header(
    description: NetworkDescription, names: Mapping[str, str]
) -> tuple[dict[str, Any], list[tuple[float, float, float]]]:
    """Return the metadata and the rows of ``grids``; ``names`` are those of `weight_names`."""
    weights = [description.weight_grids.get(name) for name in names.values()]
    weights = [grid if _is_packed(grid) else None for grid in weights]
    inputs = [description.input_grids.get(layer) for layer in names]
    header = {
        "format": FORMAT,
        "build_model": description.architecture,
        "widths": [list(width.values()) for width in description.widths.values()],
        "weight_bits": [FLOAT_BITS if grid is None else grid.bits for grid in weights],
        "input_bits": [FLOAT_BITS if grid is None else grid.bits for grid in inputs],
        "input_signed": [int(grid is None or grid.signed) for grid in inputs],
    }
    return header, [(grid.d, grid.q_m, grid.t) for grid in weights + inputs if grid is not None]


def load_network(
    path: Path | str,
    device: torch.device | str = "cpu",
    backbone: type[nn.Module] | None = None,
) -> GaitBase:
    """Rebuild a network from its file.

    If it was quantized, quantizers that no longer learn are attached (`quantization_of` gives
    them), and it computes what the written one did. Nothing of the size that a file claims is
    allocated before the file is seen to hold it.

    Args:
        path: what `write_network` wrote, or a ``.pt`` of weights beside such a file of its name.
        device: where the network goes; it is returned in eval mode.
        backbone: the class of a backbone of one's own. A file names it and never imports it; the
            class has that name, in any module.

    Raises:
        FileNotFoundError: if a file is missing.
        NetworkFileError: if it is of an unknown format, damaged, or contradicts itself; or if its
            backbone is of another class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; write_network makes it")
    with _reading(path, backbone) as (description, tensors):
        is_own = path.suffix == SUFFIX
        state = _state(description, tensors) if is_own else read_state_dict(path)
        return description.rebuild(state).to(device)


def load_dense(path: Path | str) -> GaitBase:
    """Build, with new weights, the network that a compressed one was cut from.

    Args:
        path: of the compressed network, as `load_network` takes it.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they are
        return build_model(**describe_network(path).architecture)


def describe_network(path: Path | str) -> NetworkDescription:
    """Read which network a file holds; takes and raises what `load_network` does."""
    with _reading(Path(path)) as (description, _):
        return description


def is_network_file(path: Path | str) -> bool:
    """Say whether ``path`` is a compressed network's file, rather than a training checkpoint."""
    path = Path(path)
    return path.suffix == SUFFIX or path.with_suffix(SUFFIX).is_file()


@contextlib.contextmanager
def _reading(
    path: Path, backbone: type[nn.Module] | None = None
) -> Iterator[tuple[NetworkDescription, dict[str, Tensor]]]:
    """Yield what the file says which network ``path`` holds, and its tensors, of the right types.

    Whatever a damaged file raises, also in the block, becomes one error of one line.
    """
    source = path.with_suffix(SUFFIX)
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} is missing: it says which network {path.name} is of. Put it there; "
            "it was written with the weights"
        )
    try:
        with safe_open(source, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
            found = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            if text is None or found != _DTYPES:
                raise UserError(
                    f"it needs the metadata {_METADATA!r} and the tensors {_DTYPES}, and has "
                    f"{sorted(file.metadata() or {})} and {found}"
                )
            tensors = {name: file.get_tensor(name) for name in _DTYPES}
        header = json.loads(text)
        if backbone is not None:
            _take(backbone, header["build_model"]["backbone_cfg"]["type"])
        yield _description(header, tensors["grids"]), tensors
    except _DAMAGE as error:
        reason = "" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise NetworkFileError(
            f"{path} is no network that can be loaded: {reason or repr(error):.500}"
        ) from error


def _take(backbone: type[nn.Module], name: str) -> None:
    """Let a class be the backbone that a file names."""
    own = add_backbone(backbone)
    if ":" not in name or own.rpartition(":")[2] != name.rpartition(":")[2]:
        fix = f"pass the class {name.rpartition(':')[2]}" if ":" in name else "leave backbone out"
        raise UserError(f"its backbone is {name}, and backbone={own} is another class: {fix}")
    add_backbone(backbone, name)


def _description(header: Mapping[str, Any], grids: Tensor) -> NetworkDescription:
    if header["format"] != FORMAT:
        raise UserError(f"it has format {header['format']!r}, this version reads {FORMAT}")
    architecture = header["build_model"]
    _check_size(architecture)
    dense = outline(architecture)
    widths = {
        layer: dict(zip(own, sizes, strict=True))
        for (layer, own), sizes in zip(layer_widths(dense).items(), header["widths"], strict=True)
    }
    names = weight_names(dense)
    weights = zip(names.values(), header["weight_bits"], strict=True)
    inputs = zip(names, header["input_bits"], header["input_signed"], strict=True)
    weights = [(*weight, True) for weight in weights if weight[1] != FLOAT_BITS]
    inputs = [given for given in inputs if given[1] != FLOAT_BITS]
    if grids.shape != (count := len(weights + inputs), 3):
        raise UserError(f"grids is {tuple(grids.shape)}, the bits call for ({count}, 3)")
    rows = zip(weights + inputs, grids.tolist(), strict=True)
    found = [(name, Grid(*row, bits, bool(signed))) for (name, bits, signed), row in rows]
    weight_grids = {name: _settled(grid) for name, grid in found[: len(weights)]}
    return NetworkDescription(architecture, widths, weight_grids, dict(found[len(weights) :]))


def _check_size(architecture: Mapping[str, Any]) -> None:
    """Refuse an architecture that takes long to build; its file may come from anyone."""
    necks, backbone = architecture.get("SeparateBNNecks") or {}, architecture["backbone_cfg"]
    text = json.dumps({**architecture, "SeparateBNNecks": {**necks, "class_num": 1}})
    if (
        max(map(int, re.findall(r"[0-9]{1,20}", text))) > MAX_WIDTH
        or necks.get("class_num", 1) > MAX_CLASSES
        or (backbone["type"] == "ResNet9" and sum(backbone.get("layers", ())) > MAX_BLOCKS)
        or len(text) > 10_000
    ):
        raise UserError(f"its architecture is too large: {text:.100}")


def _settled(grid: Grid) -> Grid:
    """Return the grid of values that ``grid`` has bent and rounded: it leaves them as they are."""
    return Grid(grid.d, grid.d * grid.levels, 1.0, grid.bits, True)


def _state(description: NetworkDescription, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut ``integers`` and ``floats`` into the entries of the network's ``state_dict``."""
    model, weight_grids = description.outline(), description.weight_grids
    shapes = _shapes(model)
    sizes = {
        "integers": {n: stored_bytes(shapes[n].numel(), g.bits) for n, g in weight_grids.items()},
        "floats": {n: shape.numel() for n, shape in shapes.items() if n not in weight_grids},
    }
    parts = {}
    for kind, of_kind in sizes.items():
        if tensors[kind].shape != (total := sum(of_kind.values()),):
            raise UserError(f"{kind} is {(*tensors[kind].shape,)}, the network needs ({total},)")
        parts |= zip(of_kind, tensors[kind].split(list(of_kind.values())), strict=True)
    state = {}
    for name, tensor in model.state_dict().items():
        if grid := weight_grids.get(name):
            state[name] = grid.dequantize(unpack(parts[name], grid.bits, tensor.shape))
        elif name in shapes:
            state[name] = parts[name].reshape(tensor.shape).clone()
        else:  # a counter of steps
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return state


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in stored_tensors(model).items()}
