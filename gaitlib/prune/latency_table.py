"""A network's latency at any widths, from a table of its layers measured on this machine.

Each convolution of the backbone is timed alone, with its batch norm and a ReLU, at a coarse grid of
input and output widths. Between them the latency is interpolated, so a width just above a multiple
of what the kernels work on looks cheaper than it is; ``group_divisible: 8`` or 16 avoids such
widths.

Layers alone are not a network: there are heads, pooling and shortcuts, and a runtime joins layers.
So the dense network and one of a quarter of its widths are timed end to end. The latency is a fixed
part plus a factor times the sum of the layers, such that it is right for these two.
"""

import copy
import hashlib
import json
import logging
import math
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gaitlib.model import BACKBONE
from gaitlib.model.batch_norm import normalised_convolutions
from gaitlib.model.eval_mode import layer_calls
from gaitlib.model.widths import layer_widths, sides_of, weight_names
from gaitlib.prune.channel_cost import ChannelCost, Term, widths_of
from gaitlib.prune.graph import Graph
from gaitlib.system.errors import UserError
from gaitlib.system.files import write_atomically

log = logging.getLogger(__name__)

#: Widths at which a layer is measured, as shares of the whole; 0 is the least.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: The widths of the second network that is timed end to end, as a share of the whole.
NARROW = 0.25
#: How often the networks and the whole grid are measured. The fastest round counts for each: other
#: work on the machine only slows, and in one round it would slow some widths and not others.
ROUNDS = 5

_FORMAT = 1  # of the file


@dataclass(frozen=True)
class ConvShape:
    """All that the latency of a convolution depends on, beside its widths.

    Attributes:
        frames: N T, the maps that it runs on together.
        height, width: of its input.
        kernel_size, stride, padding: of the convolution.
        calls: how often it runs per clip; a focal convolution runs once per strip.
        normalised: whether a batch norm follows.
    """

    frames: int
    height: int
    width: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    calls: int
    normalised: bool

    def build(self, c_in: int, c_out: int) -> nn.Sequential:
        """Build the convolution with its batch norm and a ReLU; global generators do not move."""
        with torch.random.fork_rng(devices=[]):
            layers = [
                nn.Conv2d(c_in, c_out, self.kernel_size, self.stride, self.padding, bias=False)
            ]
            if self.normalised:
                layers.append(nn.BatchNorm2d(c_out))
            return nn.Sequential(*layers, nn.ReLU(inplace=True)).eval()


#: Returns the milliseconds of one call of a convolution at ``(c_in, c_out)`` channels.
MeasureLayer = Callable[[ConvShape, int, int], float]
#: Returns a function that measures the milliseconds of a whole network, end to end.
PrepareNetwork = Callable[[nn.Module], Callable[[], float]]


@dataclass(frozen=True)
class LayerLatency:
    """The latency of one layer at any widths, from measurements at a few.

    A layer never becomes cheaper by a channel more: where the measurements say so, the larger value
    counts (a running maximum). Beyond the measured widths the nearest one counts.

    Attributes:
        ins, outs: the widths that were measured, ascending.
        ms: milliseconds, a row for each of ``ins`` and a column for each of ``outs``.

    Raises:
        UserError: if ``ms`` has another shape, or a number in it is not positive and finite.
    """

    ins: Sequence[int]
    outs: Sequence[int]
    ms: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        _require_times(self.ms, len(self.ins), len(self.outs))

    @cached_property
    def rising(self) -> list[list[float]]:
        """``ms`` without values that fall along either axis."""
        return np.maximum.accumulate(np.maximum.accumulate(self.ms, axis=1), axis=0).tolist()

    def at(self, c_in: int, c_out: int) -> float:
        """Return the bilinear interpolation at these widths."""
        i, a = _between(self.ins, c_in)
        j, b = _between(self.outs, c_out)
        rows = self.rising[i], self.rising[min(i + 1, len(self.ins) - 1)]
        low, high = (row[j] + b * (row[min(j + 1, len(row) - 1)] - row[j]) for row in rows)
        return low + a * (high - low)


def _require_times(values: Any, *shape: int) -> None:
    ms = np.array(values, float)
    if ms.shape != shape or not ((ms > 0) & (ms < math.inf)).all():
        raise UserError(f"milliseconds are {values!r:.80}: {shape} positive numbers are needed")


def _between(widths: Sequence[int], width: int) -> tuple[int, float]:
    """Return the last measured width that is at most ``width``, and the share of the way on."""
    i = max(bisect_right(widths, width) - 1, 0)
    if i == len(widths) - 1 or width <= widths[i]:
        return i, 0.0
    return i, (width - widths[i]) / (widths[i + 1] - widths[i])


@dataclass(frozen=True)
class LatencyTable:
    """What was measured of one network on one machine.

    Attributes:
        layers: of each backbone convolution, by module name: milliseconds per batch of clips.
        dense: layer -> its input and output widths in the dense network.
        narrow: the same in the network of a quarter of its widths.
        dense_ms, narrow_ms: latency of these networks, end to end.
        measured: what the numbers depend on: processor, runtime, threads and so on.

    Raises:
        UserError: if the first three hold different layers, or a time is not positive and finite.
    """

    layers: Mapping[str, LayerLatency]
    dense: Mapping[str, Sequence[int]]
    narrow: Mapping[str, Sequence[int]]
    dense_ms: float
    narrow_ms: float
    measured: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.layers or not self.layers.keys() == self.dense.keys() == self.narrow.keys():
            raise UserError("layers, dense and narrow have to hold the same layers")
        _require_times([self.dense_ms, self.narrow_ms], 2)

    def text(self) -> str:
        """Return the content of the table's file."""
        return json.dumps(asdict(self), sort_keys=True).replace("], [", "],\n [") + "\n"

    @classmethod
    def from_text(cls, text: str) -> "LatencyTable":
        """Read what `text` wrote; another text raises ValueError, TypeError or LookupError."""
        values = json.loads(text)
        layers = {name: LayerLatency(**layer) for name, layer in values["layers"].items()}
        return cls(**values | {"layers": layers})

    def cost(self, graph: Graph) -> ChannelCost:
        """Return the latency as a function of the widths of a graph's groups, in ms."""
        full, dims, factor = widths_of(graph), graph.shrinking_dims(), self._factor()
        terms = []
        for name, layer in self.layers.items():
            if shrinks := dims.get(f"{name}.weight"):
                _, places = sides_of(graph.model.get_submodule(name))
                sides = [next(s for s, d in places.items() if d == dim) for dim in shrinks]
                cost = _layer_cost(layer, *self.dense[name], sides, factor)
                terms.append(Term(name, tuple(shrinks.values()), cost))
        fixed = max(self.dense_ms - sum(term.at(full) for term in terms), 0.0)
        return ChannelCost(
            *("ms", full, terms, fixed, self.text()),
            lambda text: LatencyTable.from_text(text).cost(graph),
        )

    def _factor(self) -> float:
        """Return what multiplies the layers' sum; the fixed rest of the latency is not negative."""
        dense, narrow = (
            sum(layer.at(*widths[name]) for name, layer in self.layers.items())
            for widths in (self.dense, self.narrow)
        )
        factor = 1.0
        if self.dense_ms > self.narrow_ms and dense > narrow:
            factor = (self.dense_ms - self.narrow_ms) / (dense - narrow)
        return min(factor, self.dense_ms / dense)


def _layer_cost(
    layer: LayerLatency, c_in: int, c_out: int, sides: Sequence[str], factor: float
) -> Callable[..., float]:
    """Return a layer's cost as a function of its widths ``in``, ``out`` or both."""

    def cost(*widths: int) -> float:
        size = {"in": c_in, "out": c_out} | dict(zip(sides, widths, strict=True))
        return factor * layer.at(size["in"], size["out"])

    return cost


def grid_widths(full: int, divisible: int, shrinks: bool = True) -> tuple[int, ...]:
    """Return the widths at which a dimension is measured: multiples of ``divisible``, and all.

    Args:
        full: its channels.
        divisible: widths are multiples of it, but for ``full`` itself.
        shrinks: whether channels may leave; else only ``full`` is measured.
    """
    if not shrinks or full <= divisible:
        return (full,)
    steps = {max(1, round(share * full / divisible)) * divisible for share in SHARES}
    return (*sorted(width for width in steps if width < full), full)


def conv_shapes(graph: Graph, batch: int, frames: int) -> dict[str, ConvShape]:
    """Return the shape of each backbone convolution, by name, from a forward on one frame.

    Raises:
        UserError: for a backbone with another kind of layer that takes time.
    """
    for name in weight_names(graph.model):
        layer = graph.model.get_submodule(name)
        is_plain = isinstance(layer, nn.Conv2d) and layer.groups == 1
        if name.startswith(BACKBONE) and not is_plain:
            raise UserError(
                f"{name} is a {type(layer).__name__} of its own kind, and target_latency_ms "
                "measures ungrouped Conv2d: write target_macs"
            )
    normalised, calls = normalised_convolutions(graph.model), layer_calls(graph.model, nn.Conv2d)
    times = Counter(name for name, *_ in calls)
    return {
        name: ConvShape(
            batch * frames,
            *x.shape[2:],
            *(conv.kernel_size, conv.stride, conv.padding),
            times[name],
            name in normalised,
        )
        for name, conv, x, _ in calls
        if name.startswith(BACKBONE)
    }


def read_or_measure(
    graph: Graph,
    folder: Path,
    measured: Mapping[str, Any],
    divisible: int,
    measure_layer: MeasureLayer,
    prepare_network: PrepareNetwork,
) -> LatencyTable:
    """Return the table of a network from its file, and measure it first if there is none.

    Args:
        graph: of the network.
        folder: of the tables' files, made if missing. A file's name says what it depends on.
        measured: what the numbers depend on beside the network: ``processor``, ``runtime`` (with
            its version), ``threads``, ``batch``, ``frames``.
        divisible: widths are multiples of it.
        measure_layer: milliseconds of one call of a convolution.
        prepare_network: returns what measures a network end to end.

    Raises:
        UserError: if the file is damaged.
    """
    shapes = conv_shapes(graph, measured["batch"], measured["frames"])
    dense, dims = _sizes(graph.model, shapes), graph.shrinking_dims()
    axes = {}
    for name, (c_in, c_out) in dense.items():
        shrinks = dims.get(f"{name}.weight", {})
        outs = grid_widths(c_out, divisible, 0 in shrinks)
        axes[name] = grid_widths(c_in, divisible, 1 in shrinks), outs
    plain = {name: asdict(shape) for name, shape in shapes.items()}
    path = folder / _file_name(
        measured, [layer_widths(graph.model), graph.model.HPP.bins, plain, axes]
    )
    if not path.exists():
        small = narrowed(graph, divisible)
        networks = [prepare_network(model) for model in (graph.model, small)]
        layers, totals = _measure(shapes, axes, measure_layer, networks)
        table = LatencyTable(layers, dense, _sizes(small, shapes), *totals, measured)
        if not path.exists():  # another run may have been faster: both then use one table
            write_atomically(path, table.text())
        log.info("measured %d layers for %s", len(layers), path)
    try:
        return LatencyTable.from_text(path.read_text())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} is not a table of latencies ({error}): delete it, and it is measured anew"
        ) from error


def narrowed(graph: Graph, divisible: int) -> nn.Module:
    """Return a copy of the network in which each group has a share NARROW of its channels."""
    twin = replace(graph, model=copy.deepcopy(graph.model))
    for group in twin.prunable():
        kept = max(1, round(NARROW * group.channels / divisible)) * divisible
        twin.zero({group.id: range(min(kept, group.channels), group.channels)})
    return twin.slice()


def _sizes(model: nn.Module, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
    widths = layer_widths(model)
    return {name: (widths[name]["in"], widths[name]["out"]) for name in layers}


def _measure(
    shapes: Mapping[str, ConvShape],
    axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    measure_layer: MeasureLayer,
    networks: Sequence[Callable[[], float]],
) -> tuple[dict[str, LayerLatency], list[float]]:
    """Measure every layer at every pair of widths, equal layers once, and whole networks."""
    points = {
        (shapes[name], c_in, c_out): math.inf
        for name, (ins, outs) in axes.items()
        for c_in in ins
        for c_out in outs
    }
    totals, start = [math.inf for _ in networks], time.monotonic()
    for number in range(ROUNDS):
        totals = [min(ms, again()) for ms, again in zip(totals, networks, strict=True)]
        points = {point: min(ms, measure_layer(*point)) for point, ms in points.items()}
        totals = [min(ms, again()) for ms, again in zip(totals, networks, strict=True)]
        log.info(
            "latency table: round %d of %d over %d layers and widths, %.0f s so far",
            *(number + 1, ROUNDS, len(points), time.monotonic() - start),
        )
    layers = {}
    for name, (ins, outs) in axes.items():
        shape = shapes[name]
        ms = [[shape.calls * points[shape, i, o] for o in outs] for i in ins]
        layers[name] = LayerLatency(ins, outs, ms)
    return layers, totals


def _file_name(measured: Mapping[str, Any], network: Any) -> str:
    """Return a name that people can read, with a digest of all that the numbers depend on."""
    content = json.dumps([_FORMAT, dict(measured), network], sort_keys=True)
    words = "-".join(
        str(measured[key]) for key in ("processor", "runtime", "threads", "batch", "frames")
    )
    readable = "".join(c if c.isalnum() or c in "-." else "-" for c in words)
    return f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
