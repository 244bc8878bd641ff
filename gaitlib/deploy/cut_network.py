"""Cut a sparse network small, prove that nothing changed, and write it to disk.

Beside the weights (a ``state_dict``, loadable with ``weights_only=True``) stands
``architecture.json``: the arguments of ``build_model`` and the width of every layer. The pair
rebuilds the network without executing anything that a file holds.

Of a quantized network the weights on disk stand on their grids already, under the float network's
keys: read without quantizers they are the quantized weights. The grids are in
``architecture.json``, and `load_compressed` attaches them again; those of activations change what
the network computes, those of weights say which whole numbers the weights are multiples of.
"""

import copy
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib.model import GaitBase, build_model
from gaitlib.model.float_state import float_state, of_quantizer
from gaitlib.model.widths import Widths, layer_widths, resize_layers
from gaitlib.prune.graph import Graph
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.quantization import attach_grids, quantization_of
from gaitlib.system.files import replacing
from gaitlib.train.checkpoint import save_atomically

log = logging.getLogger(__name__)

FORMAT, QUANTIZED_FORMAT = 1, 2  # older versions, which know no grids, refuse the second
ARCHITECTURE = "architecture.json"
_KINDS = ("weights", "activations")
CLIPS_SHAPE = (4, 6, 64, 44)  # N, T, H, W of the clips that full and compressed are compared on


class CompressionError(RuntimeError):
    """The compressed network is not the sparse one."""


class NetworkFileError(ValueError):
    """A network on disk is not one that this version can load."""


@dataclass(frozen=True)
class Compressed:
    """A compressed network and what was measured of it.

    Attributes:
        model: the small network, in eval mode, on the device of the full one.
        full: the sparse network that it was cut from, as given.
        params: numbers in the parameters of ``model``; the scalars of quantizers do not count.
        full_params: the same of ``full``.
        group_sparsity: share of removable channels that were zero, 0..1.
        max_error: largest difference of the outputs, relative to the largest output.
        widths: ``in`` and ``out`` of each layer of ``model``.
        bits: of each quantizer of ``model``, as `Quantization.bits`; None for a float network.
        path, full_path, architecture_path: the files; None where nothing was written.
    """

    model: nn.Module
    full: nn.Module
    params: int
    full_params: int
    group_sparsity: float
    max_error: float
    widths: Widths
    bits: pd.DataFrame | None = None
    path: Path | None = None
    full_path: Path | None = None
    architecture_path: Path | None = None


def construct_compressed_model(
    graph: Graph,
    model: nn.Module | None = None,
    out_dir: Path | str | None = None,
    *,
    architecture: Mapping[str, Any] | None = None,
    example: Tensor | None = None,
    tolerance: float = 1e-4,
    timestamp: str | None = None,
) -> Compressed:
    """Remove the zero channels of ``model``, compare, and write both networks.

    Writes ``compressed_gaitbase_geta_<timestamp>.pt``, ``full_gaitbase_geta_<timestamp>.pt`` and
    ``architecture.json`` into ``out_dir``, each beside its name and then renamed. What is compared
    with the full network is the network that loads from there. The comparison runs in float32 on
    the CPU, because a GPU may multiply in TF32, whose rounding is larger than ``tolerance``.

    A quantized network is compressed at whole bits, with its weights on their grids
    (`Quantization.settle`), and so is the copy of the full one that it is compared with. That
    comparison runs in float64: in float32 the two sum in different orders, and where an activation
    lies between two levels the last digit decides for a whole step.

    Args:
        graph: what `gaitlib.prune.oto.trace` said of the model.
        model: a model with the parameters of the traced one; the traced one if None. Not changed.
        out_dir: folder to write into, made if missing; None writes nothing.
        architecture: the arguments of ``build_model`` that made the model; needed with ``out_dir``.
        example: clips to compare on, ``(N, T, H, W)``; uniform noise if None.
        tolerance: largest relative difference allowed, as in GETA.
        timestamp: ``YYYY-MM-DD_HH-MM-SS`` for the file names; now if None.

    Raises:
        CompressionError: if the outputs differ by more; what was written stays for inspection.
        ValueError: if ``architecture`` is missing, or does not make this model.
    """
    model = graph.model if model is None else model
    small = _settled(graph.slice(model)).eval()
    sparsity, widths = graph.group_sparsity(model), layer_widths(small)
    paths: list[Path | None] = [None, None, None]
    candidate = copy.deepcopy(small).cpu().float()
    if out_dir is not None:
        if architecture is None:
            raise ValueError(
                f"to write into {out_dir}, pass architecture, the arguments of build_model: "
                "a network on disk is rebuilt from them"
            )
        if layer_widths(_build(architecture)) != layer_widths(model):
            raise ValueError(f"architecture {dict(architecture)} builds another network than this")
        stamp = timestamp or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        path, full_path = (
            Path(out_dir, f"{kind}_gaitbase_geta_{stamp}.pt") for kind in ("compressed", "full")
        )
        _save(model, full_path)
        architecture_path = write_network(small, architecture, path)
        paths = [path, full_path, architecture_path]
        candidate = load_compressed(path)
    error = _relative_error(model, candidate, example)
    if not error <= tolerance:  # NaN is refused too
        kept = "" if out_dir is None else f"; both networks are in {out_dir}"
        raise CompressionError(
            f"full and compressed differ by {error:.3g} of the largest output, "
            f"tolerance {tolerance:.3g}{kept}"
        )
    params, full_params = _count_parameters(small), _count_parameters(model)
    log.info("%d of %d parameters left, error %.2g", params, full_params, error)
    quantization = quantization_of(small)
    bits = None if quantization is None else quantization.bits()
    return Compressed(small, model, params, full_params, sparsity, error, widths, bits, *paths)


def write_network(model: nn.Module, architecture: Mapping[str, Any], path: Path | str) -> Path:
    """Write the weights of a network to ``path`` and its ``architecture.json`` beside them.

    Args:
        model: a network that ``build_model`` made, whole or with narrower layers; not changed. If
            it is quantized, its settled weights are written (`Quantization.settle`).
        architecture: the arguments of that call.
        path: file of the weights; its folder is made if missing.

    Returns:
        The path of the ``architecture.json``, which replaces one that is there.
    """
    path = Path(path)
    blueprint = {
        "format": FORMAT,
        "weights": path.name,
        "build_model": dict(architecture),
        "widths": layer_widths(model),
    }
    model = _settled(model)
    if (quantization := quantization_of(model)) is not None:
        blueprint["format"] = QUANTIZED_FORMAT
        blueprint["quantization"] = {
            kind: {name: asdict(grid) for name, grid in grids.items()}
            for kind, grids in zip(_KINDS, quantization.grids(), strict=True)
        }
    text = json.dumps(blueprint, indent=1) + "\n"
    beside = path.with_name(ARCHITECTURE)
    _save(model, path)
    with replacing(beside) as part:
        part.write_text(text, encoding="utf-8")
    return beside


def load_compressed(path: Path | str, device: torch.device | str = "cpu") -> GaitBase:
    """Rebuild a network from its weights and the ``architecture.json`` beside them.

    If it was quantized, quantizers that no longer learn are attached (`quantization_of` gives
    them), and it computes what the written one did. A low-bit file, ``.safetensors``, describes
    itself: `gaitlib.deploy.network_file.load_lowbit` reads it.

    Args:
        path: the weights, or the folder of the pair.
        device: where the network goes; it is returned in eval mode.

    Raises:
        FileNotFoundError: if either file is missing.
        NetworkFileError: if the pair is of an unknown format, damaged, or does not match.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from gaitlib.deploy.network_file import load_lowbit  # which writes networks of this module

        return load_lowbit(path, device)
    beside = path / ARCHITECTURE if path.is_dir() else path.with_name(ARCHITECTURE)
    if not beside.is_file():
        raise FileNotFoundError(f"{beside} is missing; it says which network the weights are of")
    blueprint = _read_blueprint(beside)
    weights = blueprint.weights
    path = path / weights if path.is_dir() else path
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = _build(blueprint.arguments)
        resize_layers(model, blueprint.widths)
        model.load_state_dict(state)
        if blueprint.grids is not None:
            attach_grids(model, *blueprint.grids)
    except (ValueError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise NetworkFileError(
            f"{path} and {beside}, which describes {weights}, do not fit: {error}"
        ) from error
    return model.eval().to(device)


def drop_bnnecks(model: GaitBase) -> GaitBase:
    """Return a copy that embeds without classifying; deployed networks only compare clips."""
    twin = copy.deepcopy(model)
    if (quantization := quantization_of(twin)) is not None:
        quantization.remove("BNNecks")
    twin.BNNecks = None
    return twin


def export_embedding(path: Path | str, out_dir: Path | str) -> Path:
    """Write a network on disk again without its BNNecks; embeddings stay as they are.

    Args:
        path: weights with their ``architecture.json``, as `load_compressed` takes them.
        out_dir: another folder, made if missing.

    Returns:
        The path of the new weights, named as the old ones with ``_embedding`` before ``.pt``;
        `load_compressed` loads them.

    Raises:
        ValueError: if ``out_dir`` is the folder of ``path``, whose ``architecture.json`` would go.
    """
    path, out_dir = Path(path), Path(out_dir)
    folder = path if path.is_dir() else path.parent
    if folder.resolve() == out_dir.resolve():
        raise ValueError(f"{out_dir} holds the network itself; export into another folder")
    model = drop_bnnecks(load_compressed(path))
    blueprint = _read_blueprint(folder / ARCHITECTURE)
    stem = Path(blueprint.weights if path.is_dir() else path).stem
    target = out_dir / f"{stem}_embedding.pt"
    write_network(model, blueprint.arguments | {"SeparateBNNecks": None}, target)
    return target


def is_network_file(path: Path | str) -> bool:
    """Say whether ``path`` is a compressed network's file, rather than a training checkpoint."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return True
    blueprint = path.with_name(ARCHITECTURE)
    return blueprint.exists() and _read_blueprint(blueprint).weights == path.name


def load_dense(path: Path | str) -> GaitBase:
    """Build, with new weights, the network that a compressed one was cut from.

    Args:
        path: of the compressed weights or their folder.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return _build(_read_blueprint(folder / ARCHITECTURE).arguments)


@dataclass(frozen=True)
class _Blueprint:
    """What ``architecture.json`` says; ``grids`` of weights and of activations, if quantized."""

    arguments: dict[str, Any]
    widths: Widths
    weights: str
    grids: tuple[dict[str, Grid], dict[str, Grid]] | None


def _read_blueprint(path: Path) -> _Blueprint:
    try:
        blueprint = json.loads(path.read_text(encoding="utf-8"))
        version = blueprint["format"]
        arguments, widths, weights = (blueprint[k] for k in ("build_model", "widths", "weights"))
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkFileError(f"{path} does not describe a network: {error!r}") from error
    if version not in (FORMAT, QUANTIZED_FORMAT):
        raise NetworkFileError(
            f"{path} has format {version!r}, this version reads {FORMAT} and {QUANTIZED_FORMAT}"
        )
    tables = [arguments, widths, *(widths.values() if isinstance(widths, dict) else ())]
    if not all(isinstance(table, dict) for table in tables) or not isinstance(weights, str):
        raise NetworkFileError(
            f"{path} does not describe a network: build_model and widths have "
            "to be objects, weights a file name"
        )
    grids = None
    if version == QUANTIZED_FORMAT:
        try:
            entry = blueprint["quantization"]
            of_weights, of_activations = (
                {name: Grid(**values) for name, values in entry[kind].items()} for kind in _KINDS
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NetworkFileError(f"{path} does not describe quantizers: {error!r}") from error
        grids = of_weights, of_activations
    return _Blueprint(arguments, widths, Path(weights).name, grids)


def _settled(model: nn.Module) -> nn.Module:
    """Return a copy whose quantizers are settled; a float network is returned itself."""
    if quantization_of(model) is None:
        return model
    twin = copy.deepcopy(model)
    quantization_of(twin).settle(twin)
    return twin


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not of_quantizer(name))


def _build(architecture: Mapping[str, Any]) -> GaitBase:
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, and then overwritten
        return build_model(**architecture)


def _save(model: nn.Module, path: Path) -> None:
    """Write the float network's entries; those of quantizers are in ``architecture.json``."""
    state = {name: tensor.detach().cpu() for name, tensor in float_state(_settled(model)).items()}
    save_atomically(state, path)


def _relative_error(full: nn.Module, small: nn.Module, clips: Tensor | None) -> float:
    if clips is None:
        clips = torch.rand(CLIPS_SHAPE, generator=torch.Generator().manual_seed(0))
    full, clips = _settled(copy.deepcopy(full).cpu().float()).eval(), clips.cpu()
    if quantization_of(full) is not None:
        full, small, clips = full.double(), copy.deepcopy(small).double(), clips.double()
    errors = []
    with torch.no_grad():
        for expected, found in zip(full(clips), small.eval()(clips), strict=True):
            if expected is not None:
                scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
                errors.append((expected - found).abs().max() / scale)
    return torch.stack(errors).max().item()
