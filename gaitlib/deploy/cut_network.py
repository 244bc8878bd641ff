"""Cut a sparse network small, prove that nothing changed, and write it to disk."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaitlib.deploy.network_file import (
    SUFFIX,
    describe_network,
    load_network,
    network_path,
    write_network,
)
from gaitlib.deploy.state_dict_export import export_state_dict, settled_copy
from gaitlib.model import GaitBase
from gaitlib.model.examples import Example, difference, example_like, run_example
from gaitlib.model.network_cost import count_parameters
from gaitlib.prune.graph import Graph, require_graph
from gaitlib.quantize.quantization import quantization_of
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

CLIPS = (4, 6)  # N, T of the clips that full and compressed are compared on
TOLERANCE = 1e-4  # largest difference of the outputs, relative to the largest one, as in GETA


class CompressionError(UserError):
    """The compressed network is not the sparse one."""


@dataclass(frozen=True)
class Compressed:
    """A compressed network and what was measured of it.

    Attributes:
        model: the small network, in eval mode, on the device of the full one.
        full: the sparse network that it was cut from; as given, if no channels had left that.
        group_sparsity: share of removable channels that were zero, 0..1.
        max_error: largest difference of the outputs, relative to the largest output.
        path: the network file; None where nothing was written, like the following.
        state_dict_path: the export of ``model``.
    """

    model: nn.Module
    full: nn.Module
    group_sparsity: float
    max_error: float
    path: Path | None = None
    state_dict_path: Path | None = None

    @property
    def params(self) -> int:
        """Numbers in the parameters of ``model``; the scalars of quantizers do not count."""
        return count_parameters(self.model)

    @property
    def full_params(self) -> int:
        """The same of ``full``."""
        return count_parameters(self.full)


def construct_compressed_model(
    graph: Graph,
    model: nn.Module | None = None,
    out_dir: Path | str | None = None,
    *,
    architecture: Mapping[str, Any] | None = None,
    stage: str = "geta",
) -> Compressed:
    """Remove the zero channels of ``model``, compare, and write both networks.

    Of a model that channels have left while it trained, the full network is `Graph.widen`'s copy,
    which has zeros in their place. The compressed one is compared with both.

    Writes ``compressed_gaitbase_<stage>_<time>.safetensors`` into ``out_dir``, the file that this
    package loads, and for other programs the weights of the compressed and of the full network as
    plain state_dicts: ``compressed_gaitbase_<stage>_<time>.pt`` and
    ``full_gaitbase_<stage>_<time>.pt``. What is compared with the full network is the network that
    loads from the first. The comparison runs in float32 on the CPU, because a GPU may multiply in
    TF32, whose rounding is larger than TOLERANCE.

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

    Raises:
        CompressionError: if the outputs differ by more; what was written stays for inspection.
        UserError: if ``architecture`` does not make this model.
    """
    trained = graph.model if model is None else model
    small = settled_copy(graph.slice(trained)).eval()
    full = graph.widen(trained) if graph.is_narrow(trained) else trained
    path = state_dict_path = None
    candidate = copy.deepcopy(small).cpu().float()
    if out_dir is not None:
        path = write_network(small, architecture, network_path(out_dir, stage))
        state_dict_path = export_state_dict(small, path.with_suffix(".pt"))
        full_name = state_dict_path.name.replace("compressed", "full", 1)
        export_state_dict(full, path.with_name(full_name))
        candidate = load_network(path)
    originals = [full] if full is trained else [full, trained]
    example = graph.example
    if hasattr(trained, "frame_size"):
        example = torch.rand(
            *CLIPS, *trained.frame_size, generator=torch.Generator().manual_seed(0)
        )
    error = max(_relative_error(original, candidate, example) for original in originals)
    if not error <= TOLERANCE:  # NaN is refused too
        where = _wrong_group(graph, trained, full, example)
        raise CompressionError(
            f"full and compressed differ by {error:.3g} of the largest output, more than "
            f"{TOLERANCE}{where and f', once {where} is cut'}"
            f"{'' if out_dir is None else f'; both networks are in {out_dir}'}"
        )
    found = Compressed(small, full, graph.group_sparsity(trained), error, path, state_dict_path)
    log.info("%d of %d parameters left, error %.2g", found.params, found.full_params, error)
    return found


def cut(graph: Graph) -> nn.Module:
    """Return a copy of a trained network without its zero channels, proved equal to it.

    A cut before the last step of pruning misses its target, which is logged as a warning.

    Args:
        graph: what `gaitlib.prune.oto.trace` said of the network.

    Raises:
        CompressionError: if the outputs on the traced example differ; it names the layer.
    """
    require_graph(graph)
    if missing := graph.unfinished():
        log.warning("this cut comes before the end of pruning: %s", missing)
    return construct_compressed_model(graph).model


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


def _wrong_group(graph: Graph, model: nn.Module, full: nn.Module, example: Example) -> str:
    """Return the first group whose cut alone changes the output; empty if it takes several."""
    for group in graph.prunable():
        one = settled_copy(graph.slice(model, only=group.id)).cpu().float().eval()
        if not _relative_error(full, one, example) <= TOLERANCE:
            return group.id
    return ""


def _relative_error(full: nn.Module, small: nn.Module, example: Example) -> float:
    full = settled_copy(copy.deepcopy(full).cpu().float()).eval()
    if quantization_of(full) is not None:
        full, small = full.double(), copy.deepcopy(small).double()
    example = example_like(example, next(full.parameters()))
    with torch.no_grad():
        expected = run_example(full, copy.deepcopy(example))
        return difference(expected, run_example(small.eval(), copy.deepcopy(example)))
