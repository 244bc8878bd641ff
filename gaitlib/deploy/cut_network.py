"""Cut a sparse network small, prove that nothing changed, and write it to disk."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib.deploy.network_description import dense_outline
from gaitlib.deploy.network_file import (
    SUFFIX,
    describe_network,
    load_network,
    network_path,
    write_network,
)
from gaitlib.deploy.state_dict_export import export_state_dict, settled_copy
from gaitlib.model import GaitBase, frame_size_of
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.widths import Widths, layer_widths
from gaitlib.prune.graph import Graph
from gaitlib.quantize.quantization import quantization_of
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

CLIPS = (4, 6)  # N, T of the clips that full and compressed are compared on


class CompressionError(UserError):
    """The compressed network is not the sparse one."""


@dataclass(frozen=True)
class Compressed:
    """A compressed network and what was measured of it.

    Attributes:
        model: the small network, in eval mode, on the device of the full one.
        full: the sparse network that it was cut from; as given, if no channels had left that.
        params: numbers in the parameters of ``model``; the scalars of quantizers do not count.
        full_params: the same of ``full``.
        group_sparsity: share of removable channels that were zero, 0..1.
        max_error: largest difference of the outputs, relative to the largest output.
        widths: ``in`` and ``out`` of each layer of ``model``.
        bits: of each quantizer of ``model``, as `Quantization.bits`; None for a float network.
        path: the network file; None where nothing was written, like the following.
        state_dict_path: the export of ``model``.
        full_path: the export of ``full``.
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
    state_dict_path: Path | None = None
    full_path: Path | None = None


def construct_compressed_model(
    graph: Graph,
    model: nn.Module | None = None,
    out_dir: Path | str | None = None,
    *,
    architecture: Mapping[str, Any] | None = None,
    stage: str = "geta",
    example: Tensor | None = None,
    tolerance: float = 1e-4,
    timestamp: str | None = None,
) -> Compressed:
    """Remove the zero channels of ``model``, compare, and write both networks.

    Of a model that channels have left while it trained, the full network is `Graph.widen`'s copy,
    which has zeros in their place. The compressed one is compared with both.

    Writes ``compressed_gaitbase_<stage>_<timestamp>.safetensors`` into ``out_dir``, the file that
    this package loads, and for other programs the weights of the compressed and of the full network
    as plain state_dicts: ``compressed_gaitbase_<stage>_<timestamp>.pt`` and
    ``full_gaitbase_<stage>_<timestamp>.pt``. What is compared with the full network is the network
    that loads from the first. The comparison runs in float32 on the CPU, because a GPU may multiply
    in TF32, whose rounding is larger than ``tolerance``.

    A quantized network is compressed at whole bits, with its weights on their grids
    (`Quantization.settle`), and so is the copy of the full one that it is compared with. That
    comparison runs in float64: in float32 the two sum in different orders, and where an activation
    lies between two levels the last digit decides for a whole step. The file holds weights of more
    than 16 bits as float32; for them the comparison shows that rounding, up to 1e-7.

    Args:
        graph: what `gaitlib.prune.oto.trace` said of the model.
        model: a model with the parameters of the traced one; the traced one if None. Not changed.
        out_dir: folder to write into, made if missing; None writes nothing.
        architecture: the arguments of ``build_model`` that made the model; needed with ``out_dir``.
        stage: what made the network, for the file names.
        example: clips to compare on, ``(N, T, H, W)``; uniform noise if None.
        tolerance: largest relative difference allowed, as in GETA.
        timestamp: ``YYYY-MM-DD_HH-MM-SS`` for the file names; now if None.

    Raises:
        CompressionError: if the outputs differ by more; what was written stays for inspection.
        UserError: if ``architecture`` is missing, or does not make this model.
    """
    trained = graph.model if model is None else model
    small = settled_copy(graph.slice(trained)).eval()
    sparsity, widths = graph.group_sparsity(trained), layer_widths(small)
    full = graph.widen(trained) if graph.is_narrow(trained) else trained
    paths: list[Path | None] = [None, None, None]
    candidate = copy.deepcopy(small).cpu().float()
    if out_dir is not None:
        if architecture is None:
            raise UserError(
                f"to write into {out_dir}, pass architecture, the arguments of build_model: "
                "a network on disk is rebuilt from them"
            )
        if layer_widths(dense_outline(architecture)) != layer_widths(full):
            raise UserError(f"architecture {dict(architecture)} builds another network than this")
        path = network_path(out_dir, stage, timestamp)
        full_path = path.with_name(path.name.replace("compressed", "full", 1)).with_suffix(".pt")
        export_state_dict(full, full_path)
        state_dict_path = export_state_dict(small, path.with_suffix(".pt"))
        write_network(small, architecture, path)
        paths = [path, state_dict_path, full_path]
        candidate = load_network(path)
    originals = [full] if full is trained else [full, trained]
    error = max(_relative_error(original, candidate, example) for original in originals)
    if not error <= tolerance:  # NaN is refused too
        kept = "" if out_dir is None else f"; both networks are in {out_dir}"
        raise CompressionError(
            f"full and compressed differ by {error:.3g} of the largest output, "
            f"tolerance {tolerance:.3g}{kept}"
        )
    params, full_params = _count_parameters(small), _count_parameters(full)
    log.info("%d of %d parameters left, error %.2g", params, full_params, error)
    quantization = quantization_of(small)
    bits = None if quantization is None else quantization.bits()
    return Compressed(small, full, params, full_params, sparsity, error, widths, bits, *paths)


def drop_bnnecks(model: GaitBase) -> GaitBase:
    """Return a copy that embeds without classifying; deployed networks only compare clips."""
    twin = copy.deepcopy(model)
    if (quantization := quantization_of(twin)) is not None:
        quantization.remove("BNNecks")
    twin.BNNecks = None
    return twin


def export_embedding(path: Path | str, out_dir: Path | str, *, state_dict: bool = False) -> Path:
    """Write a network on disk again without its BNNecks; embeddings stay as they are.

    Args:
        path: of the network, as `load_network` takes it.
        out_dir: another folder, made if missing.
        state_dict: also write the weights as a plain ``state_dict``, and return that file.

    Returns:
        The new file, named as the old one with ``_embedding`` before the suffix; `load_network`
        loads it.

    Raises:
        UserError: if ``out_dir`` is the folder of ``path``, whose newest network is the run's.
    """
    path, out_dir = Path(path), Path(out_dir)
    if path.parent.resolve() == out_dir.resolve():
        raise UserError(f"{out_dir} holds the network itself; export into another folder")
    model = drop_bnnecks(load_network(path))
    architecture = describe_network(path).architecture | {"SeparateBNNecks": None}
    file = write_network(model, architecture, out_dir / f"{path.stem}_embedding{SUFFIX}")
    return export_state_dict(model, file.with_suffix(".pt")) if state_dict else file


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not of_quantizer(name))


def _relative_error(full: nn.Module, small: nn.Module, clips: Tensor | None) -> float:
    if clips is None:
        generator = torch.Generator().manual_seed(0)
        clips = torch.rand(*CLIPS, *frame_size_of(full), generator=generator)
    full, clips = settled_copy(copy.deepcopy(full).cpu().float()).eval(), clips.cpu()
    if quantization_of(full) is not None:
        full, small, clips = full.double(), copy.deepcopy(small).double(), clips.double()
    errors = []
    with torch.no_grad():
        for expected, found in zip(full(clips), small.eval()(clips), strict=True):
            if expected is not None:
                scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
                errors.append((expected - found).abs().max() / scale)
    return torch.stack(errors).max().item()
