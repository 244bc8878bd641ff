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

`load_network` also reads weights that torch saved (`gaitlib.deploy.state_dict_export`), where a
file beside them says which network they are of.
"""

import contextlib
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gaitlib.deploy.network_description import NetworkDescription, dense_outline
from gaitlib.deploy.state_dict_export import (
    ARCHITECTURE,
    read_architecture_json,
    read_state_dict,
)
from gaitlib.model import GaitBase, build_model
from gaitlib.model.network_cost import FLOAT_BITS, stored_bits, stored_bytes
from gaitlib.model.widths import layer_widths, resize_layers
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.packing import pack, stored_tensors, unpack
from gaitlib.quantize.quantization import quantization_of, weight_names
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing

SUFFIX = ".safetensors"
FORMAT = 1
INPUT_BITS = 24  # whole numbers up to 2^24 are exact in float32
_METADATA = "network"
_DTYPES = {"integers": "U8", "floats": "F32", "grids": "F32"}
_DAMAGE = (
    *(SafetensorError, ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, ArithmeticError, EOFError, pickle.UnpicklingError),
)  # what reading any bytes, and build_model with any JSON, may raise


class NetworkFileError(UserError):
    """A network on disk is not one that this version can load."""


def network_path(folder: Path | str, stage: str, timestamp: str | None = None) -> Path:
    """Return ``<folder>/compressed_gaitbase_<stage>_<timestamp>.safetensors``.

    Args:
        folder: of the stage's compressed networks.
        stage: what made the network.
        timestamp: ``YYYY-MM-DD_HH-MM-SS``; now if None.
    """
    timestamp = timestamp or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(folder, f"compressed_gaitbase_{stage}_{timestamp}{SUFFIX}")


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
        UserError: if ``architecture`` builds another network; if a quantizer is not of the weight
            or the input of a convolution or head; if a weight's grid has no sign, or an input's
            more than 24 bits; if a quantized weight is not finite.
    """
    path, widths = Path(path), layer_widths(model)
    outline = dense_outline(architecture)
    resize_layers(outline, widths)
    if _shapes(outline) != _shapes(model):
        raise UserError(f"architecture {dict(architecture)} builds another network than this")
    quantization = quantization_of(model)
    weight_grids, input_grids = ({}, {}) if quantization is None else quantization.grids()
    names = weight_names(model)
    _check_known(weight_grids, names.values(), "weight")
    _check_known(input_grids, names, "layer")
    _check_inputs(input_grids)
    if unsigned := [name for name, grid in weight_grids.items() if not grid.signed]:
        raise UserError(f"the grids of {unsigned} have no sign, weights have one")
    integers, floats = [], []
    for name, tensor in stored_tensors(model).items():
        grid = weight_grids.get(name)
        if grid is not None and not tensor.isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite; no grid has them")
        if grid is not None and stored_bits(grid.bits) != FLOAT_BITS:
            integers.append(pack(grid.quantize(tensor), grid.bits))
        else:
            floats.append((tensor if grid is None else grid.fake(tensor)).cpu().float().ravel())
    weights = [weight_grids.get(name) for name in names.values()]
    weights = [g if g is not None and stored_bits(g.bits) != FLOAT_BITS else None for g in weights]
    inputs = [input_grids.get(layer) for layer in names]
    header = {
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
    text = json.dumps(header, separators=(",", ":"))
    with replacing(path, durable=True) as part:
        part.write_bytes(save(tensors, {_METADATA: text}))
    return path


def load_network(path: Path | str, device: torch.device | str = "cpu") -> GaitBase:
    """Rebuild a network from its file.

    If it was quantized, quantizers that no longer learn are attached (`quantization_of` gives
    them), and it computes what the written one did. Nothing of the size that a file claims is
    allocated before the file is seen to hold it.

    Args:
        path: what `write_network` wrote, or a ``.pt`` of weights. Which network a ``.pt`` is of is
            read from the network file of the same name beside it, or else from the
            ``architecture.json`` of earlier versions.
        device: where the network goes; it is returned in eval mode.

    Raises:
        FileNotFoundError: if a file is missing.
        NetworkFileError: if it is of an unknown format, damaged, or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; write_network makes it")
    if path.suffix == SUFFIX:
        with _refusing(f"{path} is no network that can be loaded"):
            description, tensors = _read(path)
            model = description.rebuild(_state(description, tensors))
    else:
        description = describe_network(path)
        with _refusing(f"{path} and {_describing(path)}, which describes it, do not fit"):
            model = description.rebuild(read_state_dict(path))
    return model.to(device)


def load_dense(path: Path | str) -> GaitBase:
    """Build, with new weights, the network that a compressed one was cut from.

    Args:
        path: of the compressed network, as `load_network` takes it.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they are
        return build_model(**describe_network(path).architecture)


def describe_network(path: Path | str) -> NetworkDescription:
    """Read which network a file holds.

    Args:
        path: as `load_network` takes it.

    Raises:
        FileNotFoundError: if the file that says it is missing.
        NetworkFileError: as `load_network`.
    """
    source = _describing(Path(path))
    if source.name == ARCHITECTURE:
        if not source.is_file():
            raise FileNotFoundError(
                f"{source} is missing; it says which network the weights are of. Put it, or the "
                f"{Path(path).stem}{SUFFIX} that was written with {path}, beside them"
            )
        with _refusing(f"{source} does not describe a network"):
            return read_architecture_json(source)[0]
    with _refusing(f"{source} is no network that can be loaded"):
        return _read(source)[0]


def is_network_file(path: Path | str) -> bool:
    """Say whether ``path`` is a compressed network's file, rather than a training checkpoint.

    Raises:
        NetworkFileError: if an ``architecture.json`` beside it is damaged.
    """
    path = Path(path)
    source = _describing(path)
    if source.name != ARCHITECTURE:
        return True
    if not source.exists():
        return False
    with _refusing(f"{source} does not describe a network"):
        return read_architecture_json(source)[1] == path.name


def _describing(path: Path) -> Path:
    """Return the file that says which network ``path`` holds."""
    beside = path.with_suffix(SUFFIX)
    return beside if path.suffix == SUFFIX or beside.is_file() else path.with_name(ARCHITECTURE)


@contextlib.contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Turn what a damaged file raises in the block into one error, in one line."""
    try:
        yield
    except _DAMAGE as error:
        reason = "" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise NetworkFileError(f"{message}: {reason or repr(error):.500}") from error


def _read(path: Path) -> tuple[NetworkDescription, dict[str, Tensor]]:
    """Return what a file describes, and its tensors, of the right types."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_METADATA)
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        if text is None or found != _DTYPES:
            raise UserError(
                f"it needs the metadata {_METADATA!r} and the tensors {_DTYPES}, and has "
                f"{sorted(file.metadata() or {})} and {found}"
            )
        tensors = {name: file.get_tensor(name) for name in _DTYPES}
    header = json.loads(text)
    version = header.get("format") if isinstance(header, dict) else None
    if version != FORMAT:
        raise UserError(f"it has format {version!r}, this version reads {FORMAT}")
    return _description(header, tensors["grids"]), tensors


def _description(header: Mapping[str, Any], grids: Tensor) -> NetworkDescription:
    architecture = header["build_model"]
    dense = dense_outline(architecture)
    own = layer_widths(dense)
    widths = {}
    for layer, sizes in zip(own, _listed(header, "widths", len(own), list), strict=True):
        if len(sizes) != len(own[layer]):
            raise UserError(f"{layer} needs the widths {list(own[layer])}, not {sizes!r:.80}")
        widths[layer] = dict(zip(own[layer], sizes, strict=True))
    names = weight_names(dense)
    weight_bits, input_bits, input_signed = (
        _listed(header, key, len(names), int)
        for key in ("weight_bits", "input_bits", "input_signed")
    )
    stored = sum(bits != FLOAT_BITS for bits in (*weight_bits, *input_bits))
    if grids.shape != (stored, 3):
        raise UserError(
            f"grids has the shape {tuple(grids.shape)}, the bits call for ({stored}, 3)"
        )
    row = iter(grids.tolist())
    weight_grids = {
        name: _settled(Grid(*next(row), bits=bits, signed=True))
        for name, bits in zip(names.values(), weight_bits, strict=True)
        if bits != FLOAT_BITS
    }
    input_grids = {
        layer: Grid(*next(row), bits=bits, signed=bool(signed))
        for layer, bits, signed in zip(names, input_bits, input_signed, strict=True)
        if bits != FLOAT_BITS
    }
    _check_inputs(input_grids)
    return NetworkDescription(architecture, widths, weight_grids, input_grids)


def _settled(grid: Grid) -> Grid:
    """Return the grid of values that ``grid`` has bent and rounded: it leaves them as they are."""
    return Grid(grid.d, grid.d * grid.levels, 1.0, grid.bits, True)


def _state(description: NetworkDescription, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut ``integers`` and ``floats`` into the entries of the network's ``state_dict``."""
    model, weight_grids = description.outline(), description.weight_grids
    shapes = _shapes(model)
    packed = [stored_bytes(shapes[name].numel(), grid.bits) for name, grid in weight_grids.items()]
    floats = [shape.numel() for name, shape in shapes.items() if name not in weight_grids]
    for kind, sizes in (("integers", packed), ("floats", floats)):
        if tensors[kind].shape != (sum(sizes),):
            raise UserError(
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


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in stored_tensors(model).items()}


def _listed(header: Mapping[str, Any], key: str, length: int, kind: type) -> list[Any]:
    values = header[key]
    if (
        type(values) is not list
        or len(values) != length
        or any(type(v) is not kind for v in values)
    ):
        raise UserError(f"{key} has to be a list of {length} {kind.__name__}, not {values!r:.80}")
    return values


def _check_known(grids: Mapping[str, Grid], known: Iterable[str], kind: str) -> None:
    if strangers := sorted(grids.keys() - set(known)):
        raise UserError(f"no {kind} is called {strangers}; quantized are {list(known)} at most")


def _check_inputs(grids: Mapping[str, Grid]) -> None:
    if wide := {layer: grid.bits for layer, grid in grids.items() if grid.bits > INPUT_BITS}:
        raise UserError(
            f"the inputs of {wide} have more bits than float32 counts in, {INPUT_BITS}; leave "
            "them float"
        )
