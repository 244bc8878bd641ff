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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaitlib.model.eval_mode import in_eval_mode
from gaitlib.model.widths import layer_widths
from gaitlib.prune.channel_cost import ChannelCost, Term, widths_of
from gaitlib.prune.graph import Graph
from gaitlib.system.errors import UserError
from gaitlib.system.files import write_atomically

log = logging.getLogger(__name__)

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Widths at which a layer is measured, as shares of the whole; 0 is the least.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: The widths of the second network that is timed end to end, as a share of the whole.
NARROW = 0.25
#: How often the networks and the whole grid are measured. The fastest round counts for each: other
#: work on the machine only slows, and in one round it would slow some widths and not others.
ROUNDS = 5

_FORMAT = 1  # of the file
_BACKBONE = "Backbone."


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
class Grid:
    """The latency of one layer at any widths, from measurements at a few.

    A layer never becomes cheaper by a channel more: where the measurements say so, the larger value
    counts (a running maximum). Beyond the measured widths the nearest one counts.

    Attributes:
        ins, outs: the widths that were measured, ascending.
        ms: milliseconds, a row for each of ``ins`` and a column for each of ``outs``.
    """

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    ms: tuple[tuple[Milliseconds, ...], ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.ms] != [len(self.outs)] * len(self.ins):
            raise UserError(f"ms needs {len(self.ins)} rows of {len(self.outs)} values")

    def monotone(self) -> "Grid":
        """Return the grid in which no value falls along either axis."""
        rows = [tuple(accumulate(row, max)) for row in self.ms]
        columns = [tuple(accumulate(column, max)) for column in zip(*rows, strict=True)]
        return replace(self, ms=tuple(zip(*columns, strict=True)))

    def at(self, c_in: int, c_out: int) -> float:
        """Return the bilinear interpolation at these widths."""
        i, a = _between(self.ins, c_in)
        j, b = _between(self.outs, c_out)
        rows = self.ms[i], self.ms[min(i + 1, len(self.ins) - 1)]
        low, high = (row[j] + b * (row[min(j + 1, len(row) - 1)] - row[j]) for row in rows)
        return low + a * (high - low)


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
    """

    layers: Mapping[str, Grid]
    dense: Mapping[str, tuple[int, int]]
    narrow: Mapping[str, tuple[int, int]]
    dense_ms: Milliseconds
    narrow_ms: Milliseconds
    measured: Mapping[str, Any]

    def text(self) -> str:
        """Return the content of the table's file."""
        return json.dumps(asdict(self), sort_keys=True).replace("], [", "],\n [") + "\n"

    @classmethod
    def from_text(cls, text: str) -> "LatencyTable":
        """Read what `text` wrote.

        Raises:
            UserError: if it is not such a text, or a number in it is not positive and finite.
        """
        return TypeAdapter(cls).validate_json(text)

    def __post_init__(self) -> None:
        if not self.layers or not self.layers.keys() == self.dense.keys() == self.narrow.keys():
            raise UserError("layers, dense and narrow have to hold the same layers")

    def cost(self, graph: Graph) -> ChannelCost:
        """Return the latency as a function of the widths of a graph's groups, in ms."""
        full, dims, factor = widths_of(graph), graph.shrinking_dims(), self._factor
        terms = []
        for name, grid in self.layers.items():
            if shrinks := dims.get(f"{name}.weight"):
                layer = _layer_cost(grid.monotone(), *self.dense[name], tuple(shrinks), factor)
                terms.append(Term(name, tuple(shrinks.values()), layer))
        fixed = self.dense_ms - sum(term.at(full) for term in terms)
        return ChannelCost(
            "ms",
            full,
            terms,
            max(fixed, 0.0),
            self.text(),
            lambda text: LatencyTable.from_text(text).cost(graph),
        )

    def _layers_ms(self, widths: Mapping[str, Sequence[int]]) -> float:
        """Return the sum of the layers at ``widths``."""
        return sum(grid.monotone().at(*widths[name]) for name, grid in self.layers.items())

    @property
    def _factor(self) -> float:
        """What the layers' sum is multiplied by; the fixed rest of the latency is not negative."""
        dense, narrow = self._layers_ms(self.dense), self._layers_ms(self.narrow)
        factor = 1.0
        if self.dense_ms > self.narrow_ms and dense > narrow:
            factor = (self.dense_ms - self.narrow_ms) / (dense - narrow)
        return min(factor, self.dense_ms / dense)


def _layer_cost(
    grid: Grid, c_in: int, c_out: int, dims: tuple[int, ...], factor: float
) -> Callable[..., float]:
    """Return a layer's cost as a function of the widths of its dimensions ``dims`` alone."""

    def cost(*widths: int) -> float:
        size = {0: c_out, 1: c_in} | dict(zip(dims, widths, strict=True))
        return factor * grid.at(size[1], size[0])

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
    """Return the shape of each backbone convolution, by name, from a forward on one frame."""
    model = graph.model
    inputs: dict[str, list[torch.Size]] = {}
    modules = dict(model.named_modules())
    convs = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d) and _BACKBONE in n}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: inputs.setdefault(name, []).append(given[0].shape)
        )
        for name, layer in convs.items()
    ]
    first = next(model.parameters())
    try:
        with in_eval_mode(model), torch.no_grad():
            model.embed(
                torch.zeros(1, 1, *model.frame_size, device=first.device, dtype=first.dtype)
            )
    finally:
        for handle in handles:
            handle.remove()
    normalised = {
        source for source, target in graph.edges if isinstance(modules.get(target), _BatchNorm)
    }
    return {
        name: ConvShape(
            batch * frames,
            *shapes[0][2:],
            convs[name].kernel_size,
            convs[name].stride,
            convs[name].padding,
            len(shapes),
            name in normalised,
        )
        for name, shapes in inputs.items()
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
    axes = _axes(graph, shapes, divisible)
    path = folder / _file_name(
        measured, [layer_widths(graph.model), graph.model.HPP.bins, _plain(shapes), axes]
    )
    if not path.exists():
        narrow = _narrowed(graph, divisible)
        networks = [prepare_network(model) for model in (graph.model, narrow)]
        layers, totals = _measure(shapes, axes, measure_layer, networks)
        sizes = [_sizes(model, shapes) for model in (graph.model, narrow)]
        table = LatencyTable(layers, *sizes, *totals, measured)
        if not path.exists():  # another run may have been faster: both then use one table
            write_atomically(path, table.text())
        log.info("measured %d layers for %s", len(layers), path)
    try:
        return LatencyTable.from_text(path.read_text())
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a table of latencies ({first}): delete it, and it is measured anew"
        ) from error


def _axes(
    graph: Graph, shapes: Mapping[str, ConvShape], divisible: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the input and output widths at which each layer is measured."""
    dims = graph.shrinking_dims()
    axes = {}
    for name, (c_in, c_out) in _sizes(graph.model, shapes).items():
        shrinks = dims.get(f"{name}.weight", {})
        axes[name] = (
            grid_widths(c_in, divisible, 1 in shrinks),
            grid_widths(c_out, divisible, 0 in shrinks),
        )
    return axes


def _narrowed(graph: Graph, divisible: int) -> nn.Module:
    """Return a copy of the network in which each group has a share NARROW of its channels."""
    twin = replace(graph, model=copy.deepcopy(graph.model))
    kept = {
        group.id: min(
            max(1, round(NARROW * group.channels / divisible)) * divisible, group.channels
        )
        for group in graph.prunable()
    }
    twin.zero({group.id: range(kept[group.id], group.channels) for group in graph.prunable()})
    return twin.slice()


def _sizes(model: nn.Module, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
    widths = layer_widths(model)
    return {name: (widths[name]["in"], widths[name]["out"]) for name in layers}


def _measure(
    shapes: Mapping[str, ConvShape],
    axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    measure_layer: MeasureLayer,
    networks: Sequence[Callable[[], float]],
) -> tuple[dict[str, Grid], list[float]]:
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
    layers = {
        name: Grid(
            ins,
            outs,
            tuple(
                tuple(shapes[name].calls * points[shapes[name], i, o] for o in outs) for i in ins
            ),
        )
        for name, (ins, outs) in axes.items()
    }
    return layers, totals


def _plain(shapes: Mapping[str, ConvShape]) -> dict[str, Any]:
    return {name: asdict(shape) for name, shape in shapes.items()}


def _file_name(measured: Mapping[str, Any], network: Any) -> str:
    """Return a name that people can read, with a digest of all that the numbers depend on."""
    content = json.dumps([_FORMAT, dict(measured), network], sort_keys=True)
    words = "-".join(
        str(measured[key]) for key in ("processor", "runtime", "threads", "batch", "frames")
    )
    readable = "".join(c if c.isalnum() or c in "-." else "-" for c in words)
    return f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
