"""A latency table of any network, measured in torch on the network's device.

Each layer with a weight is timed alone, on an input like the one that it has in the network, at a
coarse grid of widths. `gaitlib.prune.latency_table` says what becomes of the times. The workbook
measures a GaitBase in the runtime of its choice, and keeps the table in a file.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from gaitlib.model.eval_mode import layer_calls
from gaitlib.model.examples import example_like, run_example
from gaitlib.model.float_state import quantization_of
from gaitlib.model.network_cost import median_ms
from gaitlib.model.widths import is_depthwise, resize_layer, sides_of, weight_names
from gaitlib.prune.graph import Graph
from gaitlib.prune.latency_table import (
    ROUNDS,
    LatencyTable,
    LayerLatency,
    grid_widths,
    narrowed,
)


def measure_layers(graph: Graph, divisible: int = 1) -> LatencyTable:
    """Time the layers of a network on its example, and the network itself.

    Args:
        graph: of the network; its quantizers, if it has any, are switched off.
        divisible: widths are multiples of it.
    """
    model = copy.deepcopy(graph.model).eval()
    if (quantization := quantization_of(model)) is not None:
        quantization.detach_from(model)
    first = next(model.parameters())
    example = example_like(graph.example, first)
    inputs: dict[str, list[Tensor]] = {}
    timed = tuple({type(model.get_submodule(name)) for name in weight_names(model)})
    for name, layer, given, _ in layer_calls(model, timed, copy.deepcopy(example)):
        if sides_of(layer)[1] and isinstance(given, Tensor):
            inputs.setdefault(name, []).append(given)
    small = narrowed(replace(graph, model=model), divisible)
    shrinking, layers = graph.shrinking_dims(), {}
    for name, given in inputs.items():
        layer, (tensor, sides) = model.get_submodule(name), sides_of(model.get_submodule(name))
        dims = shrinking.get(f"{name}.{tensor}", {})
        c_in, c_out = _widths(layer)
        outs = grid_widths(c_out, divisible, sides["out"] in dims)
        ins = grid_widths(c_in, divisible, sides.get("in") in dims)
        ms = [[sum(_layer_ms(layer, x, i, o) for x in given) for o in outs] for i in ins]
        layers[name] = LayerLatency(ins, outs, ms)
    totals = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for place, network in enumerate((model, small.to(first).eval())):
            again = median_ms(
                lambda network=network: run_example(network, copy.deepcopy(example)),
                first.device,
                repeats=5,
            )
            totals[place] = min(totals[place], again)
    widths = [{n: _widths(m.get_submodule(n)) for n in layers} for m in (model, small)]
    return LatencyTable(layers, *widths, *totals, {"runtime": f"torch {torch.__version__}"})


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Return what a layer's latency depends on: inputs and outputs, 1 and outputs if depthwise."""
    tensor, sides = sides_of(layer)
    shape = getattr(layer, tensor).shape
    return (1 if is_depthwise(layer) else shape[sides["in"]]), shape[sides["out"]]


@torch.no_grad()
def _layer_ms(layer: nn.Module, given: Tensor, c_in: int, c_out: int) -> float:
    """Return the milliseconds of a layer of these widths on an input of the given form."""
    tensor, sides = sides_of(layer)
    twin = copy.deepcopy(layer)
    resize_layer(twin, {"in": c_in, "out": c_out})
    shape = list(given.shape)
    shape[-1 if isinstance(layer, nn.Linear) else 1] = c_out if is_depthwise(layer) else c_in
    x = torch.rand(shape, device=given.device).to(given.dtype)
    return min(median_ms(lambda: twin(x), given.device, repeats=5) for _ in range(2))
