"""An experiment's budget: the latency that it may limit, and at the end how well it was met."""

import copy
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.model.network_cost import measure_latency, median_ms
from gaitlib.prune.channel_cost import ChannelCost
from gaitlib.prune.channel_rules import TOLERANCE
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso import COSTS, HESSO, build_hesso
from gaitlib.prune.latency_table import ROUNDS, ConvShape, LatencyTable, read_or_measure
from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_settings import FloatFirst
from gaitlib.system import distributed
from gaitlib.system.device import device_name
from gaitlib.system.files import read_json, write_atomically
from workbook.config.compression_cfg import HessoCfg, LatencyCfg
from workbook.runs import data_folder

log = logging.getLogger(__name__)

FILE = "budget.json"
FRAMES = 30  # of the clips that are timed
#: A network may be this share slower or faster than its table says before a warning reports it.
LATENCY_TOLERANCE = 0.1


def describe_budget(cfg: HessoCfg, graph: Graph) -> dict[str, Any] | None:
    """Return what a budget allows, before anything is trained.

    Args:
        cfg: the compression section.
        graph: of the dense network.

    Returns:
        ``key``, ``asked``, ``limit``, ``dense`` and ``unit`` as `HESSO.budget`, and ``least``: what
        the floors of the layers can reach. None without a budget, and for ``target_latency_ms``,
        whose layers are measured when training begins.

    Raises:
        UserError: if the floors keep the network above the budget.
    """
    if cfg.target[0] not in COSTS:
        return None
    optimizer = build_hesso(graph, cfg.settings)
    rule = optimizer.pruner.rule
    found = optimizer.budget() | {"least": math.ceil(rule.cost.total(rule.least_widths()))}
    del found["reached"]  # nothing is removed yet
    return found


def describe_bit_budget(cfg: HessoCfg, graph: Graph) -> dict[str, Any] | None:
    """Return what a budget for bits means, before anything is trained.

    Args:
        cfg: the compression section.
        graph: of the dense network.

    Returns:
        As `gaitlib.quantize.bit_budget.budget_terms`; None without such a budget.

    Raises:
        UserError: if no network that ``cfg`` asks for can be within it.
    """
    bits = cfg.settings.bits if cfg.quantizes else None
    if not isinstance(bits, FloatFirst) or bits.budget is None:
        return None
    return BitBudget(graph, cfg.settings).terms


def latency_cost(cfg: HessoCfg, graph: Graph) -> ChannelCost | None:
    """Return the latency of a network as a function of its widths; None if ``cfg`` limits none.

    The layers are measured on first use, which takes seconds for the quickstart's network and
    minutes for GaitBase on a CPU. The table is kept in ``data/latency`` of the workspace, for all
    runs of this network on this machine. In a distributed job every process calls it, and rank 0
    measures.

    Args:
        cfg: the compression section.
        graph: of the dense network.
    """
    if cfg.latency is None:
        return None
    text = _table(cfg, graph).text() if distributed.is_main() else ""
    return LatencyTable.from_text(distributed.broadcast(text)).cost(graph)


def _table(cfg: HessoCfg, graph: Graph) -> LatencyTable:
    clock = _Clock(cfg.latency, graph.model)
    return read_or_measure(
        graph,
        data_folder() / "latency",
        clock.conditions(),
        cfg.group_divisible,
        clock.layer_ms,
        clock.stopwatch,
    )


class _Clock:
    """Times layers and networks in the runtime that a latency budget is about.

    Args:
        cfg: runtime and batch.
        model: torch computes on its device.
    """

    def __init__(self, cfg: LatencyCfg, model: nn.Module) -> None:
        self.cfg = cfg
        self.onnx = None
        self.device = next(model.parameters()).device
        if cfg.runtime == "onnxruntime":
            from gaitlib.deploy import onnx_export  # an extra: pip install gaitlib[onnx]

            self.onnx, self.device = onnx_export, torch.device("cpu")
        self.inputs: dict[tuple[int, ...], torch.Tensor] = {}

    def conditions(self) -> dict[str, Any]:
        """Return what a table depends on beside the network."""
        return {
            "processor": device_name(self.device),
            "runtime": self.onnx.VERSION if self.onnx else f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "batch": self.cfg.batch,
            "frames": FRAMES,
        }

    def prepare(self, model: GaitBase) -> nn.Module:
        """Return a float copy of a network in the runtime; it has the method ``embed``."""
        twin = copy.deepcopy(model).to(self.device).eval()
        if (quantization := quantization_of(twin)) is not None:
            quantization.detach_from(twin)
        if self.onnx is None:
            return twin
        with tempfile.TemporaryDirectory() as folder:
            path = self.onnx.export_onnx(twin, Path(folder) / "network.onnx")
            return self.onnx.OnnxNetwork(path, torch.get_num_threads())

    def stopwatch(self, model: GaitBase) -> Callable[[], float]:
        """Return a function that measures a network's latency, the median of 3."""
        network = self.prepare(model)
        return lambda: measure_latency(network, self.cfg.batch, FRAMES, repeats=3, warmup=1)

    def layer_ms(self, shape: ConvShape, c_in: int, c_out: int) -> float:
        """Return the latency of one call: the median of 1 to 10, for about 4 ms."""
        layers: nn.Module = shape.build(c_in, c_out).to(self.device)
        if self.onnx is not None:
            layers = self.onnx.OnnxConvolution(layers, torch.get_num_threads())
        x = self._input(shape.frames, c_in, shape.height, shape.width)
        with torch.inference_mode():
            once = median_ms(lambda: layers(x), self.device, repeats=1, warmup=0)
            repeats = min(max(1, round(4 / once)), 10)
            return median_ms(lambda: layers(x), self.device, repeats=repeats, warmup=0)

    def _input(self, *size: int) -> torch.Tensor:
        if size not in self.inputs:
            self.inputs.clear()  # one at a time: a batch of maps is large
            generator = torch.Generator().manual_seed(0)
            self.inputs[size] = torch.rand(size, generator=generator).to(self.device)
        return self.inputs[size]


def write_budget(optimizer: HESSO, folder: Path) -> None:
    """Write ``budget.json`` of a trained stage, if it had a budget; see `HESSO.budget`."""
    found = optimizer.budget()
    if found is None:
        return
    write_atomically(folder / FILE, json.dumps(found, indent=1) + "\n")
    below = 1 - found["reached"] / found["limit"]
    if found["reached"] < found["dense"] and below > TOLERANCE:
        log.info(
            "the network ends at %g %s, %.1f %% below its budget of %g: one bundle of channels is "
            "coarser than %g %%",
            *(found["reached"], found["unit"], 100 * below, found["limit"], 100 * TOLERANCE),
        )


def read_budget(cfg: HessoCfg, folder: Path, dense: GaitBase, small: GaitBase) -> dict[str, Any]:
    """Return ``{"budget": ...}`` for results.json; empty without a budget.

    The entries are those of `HESSO.budget`. With a latency, both networks are measured end to end
    here, in turn, the fastest of ROUNDS: ``measured_ms`` and ``measured_dense_ms``. A warning says
    if the small one is more than LATENCY_TOLERANCE off what the table says: off its milliseconds,
    or, if a share was asked for, off its share of the dense network.

    Args:
        cfg: the compression section.
        folder: of the stage; `write_budget` wrote there.
        dense: the network before its channels were cut out.
        small: the compressed network.
    """
    if not (folder / FILE).exists():
        return {}
    found = read_json(folder / FILE)
    if cfg.latency is not None:
        clock = _Clock(cfg.latency, dense)
        watches = clock.stopwatch(dense), clock.stopwatch(small)
        rounds = [[measure() for measure in watches] for _ in range(ROUNDS)]
        whole, ms = (min(times) for times in zip(*rounds, strict=True))
        found |= {"measured_ms": ms, "measured_dense_ms": whole}
        _check_latency(found)
    return {"budget": found}


def _check_latency(found: dict[str, Any]) -> None:
    ms, whole = found["measured_ms"], found["measured_dense_ms"]
    expected = found["reached"] * (whole / found["dense"] if found["asked"] < 1 else 1)
    off = ms / expected - 1
    level = logging.WARNING if abs(off) > LATENCY_TOLERANCE else logging.INFO
    log.log(
        level,
        "latency: %.3g ms measured, %.3g expected (%+.0f %%); the dense network takes %.3g ms now, "
        "%.3g in the table",
        *(ms, expected, 100 * off, whole, found["dense"]),
    )
