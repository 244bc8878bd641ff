"""Write a gait network as ONNX, in float or in integers, and run it in ONNX Runtime.

The graph is built node by node, 40 to 70 of them, from float32 silhouettes ``(N, T, H, W)`` to
embeddings ``(N, C, P)``; N and T are free. Batch norms are folded into the convolutions, and
BNNecks are left out: a deployed network only compares clips.

A quantized tensor is ``sgn(k) d |k|`` with whole k (`gaitlib.quantize.grid`). The input of a layer
passes QuantizeLinear and DequantizeLinear, or the same arithmetic in float if its grid has more
than 8 bits. A weight is a constant of integers before DequantizeLinear: int8 up to 8 bits, int16 up
to 16, int32 beyond. The batch norm changes its step alone, one for each output channel, so that
nothing is rounded twice. This is ONNX Runtime's QDQ form
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html): any runtime can
compute it in float, and one with integer kernels finds where they fit.

torch's own exporter (``dynamo=True`` in torch 2.13, onnxscript 0.7.2, the quantizer as a custom op)
was tried and passes the tests of this module, with the same integer kernels and a latency within
6 %. It is not used: the code was no shorter (471 lines, not 462), an export of GaitBase took 5 to
7 s of CPU time instead of 0.2 to 0.8 s, and the exporter merges equal constants, a file that ONNX
Runtime refuses with the exact kernels for x86 without VNNI until they are separated again.

A network with a backbone of one's own, or any other network, is written by torch's older exporter,
in float alone.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from gaitlib.deploy.network_description import refuse_unsigned
from gaitlib.model import GaitBase, GaitOutput
from gaitlib.model.backbones import BasicConv2d, FocalConv2d, Plain, ResidualUnit, ResNet9
from gaitlib.model.examples import Example, difference, run_example
from gaitlib.model.heads import SeparateFCs
from gaitlib.quantize.grid import Grid
from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing

try:
    import onnx
    import onnxruntime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"ONNX files need the package {error.name}; install it with: pip install 'gaitlib[onnx]'",
        name=error.name,
    ) from error

Grids = tuple[Mapping[str, Grid], Mapping[str, Grid]]  # of weights and of inputs
VERSION = f"onnxruntime {onnxruntime.__version__}"
OPSET = 21  # the first whose DequantizeLinear takes int16
INPUT, OUTPUT = "silhouettes", "embeddings"
INTEGER_BITS = 8  # the widest numbers that integer kernels multiply
OWN_TOLERANCE = 1e-4  # largest difference of any network in ONNX Runtime, of the largest output
TORCH_OPSET = 18  # of torch's exporter
_LARGEST_BIAS = 2**30  # in steps: kernels add biases as int32


def export_onnx(
    model: GaitBase,
    path: Path | str,
    grids: Grids = ({}, {}),
    calibration: Tensor | None = None,
) -> Path:
    """Write a network that embeds clips.

    Without ``calibration`` the file says exactly what the quantized network computes. ONNX Runtime
    then multiplies in integers only where an input of few bits follows the layer. It does not where
    the output is added to a shortcut or bent by a LeakyReLU first: the last convolution of a
    residual block, its projection, those of a Plain. With ``calibration`` these outputs are rounded
    to 8 bits too. On one core with VNNI and at 8 bits, GaitBase is then 3.4 times as fast as in
    float, and 1.2 times without; the price is an error of the size of the quantization's own.

    Args:
        model: the network; its batch norms use their running statistics whatever its mode. Its
            weights are those before quantization: for t other than 1, quantizing twice is not
            quantizing once.
        path: of the file, which replaces one that is there.
        grids: of each quantized weight, by parameter name (``FCs.fc_bin``), and of each quantized
            input, by layer name (``FCs``), as `Quantization.grids`.
        calibration: clips ``(N, T, H, W)`` like those to come. The range of a rounded output is
            the largest magnitude that it has on them.

    Returns:
        ``path``.

    Raises:
        UserError: if a grid is of nothing in the model, or a weight's has no sign.
    """
    refuse_unsigned(grids[0])
    names = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if strangers := sorted({*grids[0], *grids[1]} - names):
        raise UserError(f"{strangers} have grids, but nothing in the model is called so")
    if not has_integers(model):
        return _export_own(model, path, grids)
    ranges = {} if calibration is None else _embedding(model, grids, {}).measure(calibration)
    content = _embedding(model, grids, ranges).proto()
    onnx.checker.check_model(content, full_check=True)
    with replacing(path) as part:
        part.write_bytes(content.SerializeToString(deterministic=True))
    return Path(path)


def has_integers(model: GaitBase) -> bool:
    """Return whether a network has a form in ONNX's integers."""
    return isinstance(model.Backbone.forward_block, ResNet9 | Plain)


def require_integers(model: GaitBase) -> None:
    """Raise ``UserError`` if a network has no form in ONNX's integers."""
    if not has_integers(model):
        raise UserError(
            f"a {type(model.Backbone.forward_block).__name__} has no form in ONNX's integers: only "
            "ResNet9 and Plain have; write it in float, as format onnx"
        )


def write_onnx(model: nn.Module, example: Example, path: Path | str) -> Path:
    """Write any network by torch's own exporter, and compare it in ONNX Runtime.

    Inputs are ``input0``, ``input1`` and so on, in the order of the example; their first dimension
    may have any size, if the network's own code allows that. Outputs are ``output0`` and so on.

    Args:
        model: float or quantized, which then rounds in float; run in eval mode, and not changed.
        example: inputs to run it on, as `gaitlib.prune.oto.trace` takes them.
        path: of the file, which replaces one that is there.

    Returns:
        ``path``.

    Raises:
        UserError: if the exporter does not know an operation, or ONNX Runtime computes something
            else; nothing is written.
    """
    tensors, form = tree_flatten(example)
    twin = copy.deepcopy(model).cpu().eval()
    tensors = [tensor.cpu() for tensor in tensors]
    with torch.no_grad():
        expected = run_example(twin, tree_unflatten(tensors, form))
    given = {f"input{i}": tensor for i, tensor in enumerate(tensors)}

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_example(twin, tree_unflatten(inputs, form)))

    returned = [f"output{i}" for i in range(len(expected))]
    with replacing(path) as part:
        _torch_export(twin, forward, given, returned, part, {name: {0: "N"} for name in given})
        found = _session(str(part), None).run(returned, {n: _array(t) for n, t in given.items()})
        error = difference(expected, [torch.from_numpy(output) for output in found])
        if not error <= OWN_TOLERANCE:
            raise UserError(
                f"ONNX Runtime differs from torch by {error:.3g} of the largest output, more than "
                f"{OWN_TOLERANCE}; nothing was written"
            )
    return Path(path)


def _torch_export(
    model: nn.Module,
    forward: Callable[..., Any],
    given: Mapping[str, Tensor],
    returned: Sequence[str],
    path: Path,
    dynamic: Mapping[str, Mapping[int, str]],
) -> None:
    """Write what a function of a network computes; ``dynamic`` names the sizes that vary."""
    traced = nn.Module()
    traced.model = model
    traced.forward = forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the older exporter, and of traced sizes
        try:
            torch.onnx.export(
                traced.eval(),
                tuple(given.values()),
                str(path),
                input_names=list(given),
                output_names=list(returned),
                dynamic_axes=dict(dynamic),
                opset_version=TORCH_OPSET,
                dynamo=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            said = str(error).strip().splitlines()[0]
            raise UserError(f"torch cannot write this network as ONNX: {said}") from error


def _export_own(model: GaitBase, path: Path | str, grids: Grids) -> Path:
    """Write a network with a backbone of one's own, in float."""
    if any(grids):
        require_integers(model)
    twin = copy.deepcopy(model).cpu().eval()
    clips = torch.zeros(2, 3, *model.frame_size)
    with replacing(path) as part:
        dynamic = {INPUT: {0: "N", 1: "T"}, OUTPUT: {0: "N"}}
        _torch_export(twin, twin.embed, {INPUT: clips}, [OUTPUT], part, dynamic)
    return Path(path)


def _embedding(model: GaitBase, grids: Grids, ranges: Mapping[str, float]) -> _Graph:
    """Return the graph of a network up to its embeddings."""
    parts, _, width = model.FCs.fc_bin.shape
    layers = {module: name for name, module in model.named_modules()}
    shapes = ["N", "T", *model.frame_size], ["N", width, parts]
    graph = _Graph(layers, *shapes, grids, ranges)
    size = graph.integers(-1, 1, *model.frame_size)
    frames = graph.add("Reshape", INPUT, size)  # (N T, 1, H, W)
    maps = graph.backbone(frames, model.Backbone.forward_block)  # (N T, C', H', W')
    clips = graph.add("Shape", INPUT, end=2)  # N, T
    features = graph.add("Shape", maps, start=1)  # C', H', W'
    maps = graph.add("Reshape", maps, graph.add("Concat", clips, features, axis=0))
    maps = graph.add("ReduceMax", maps, graph.integers(1), keepdims=0)  # (N, C', H', W')
    graph.fcs(graph.pyramid(maps, model.HPP.bins), model.FCs)
    return graph


class OnnxNetwork(nn.Module):
    """A network in ONNX Runtime on the CPU, called like the torch network that it came from.

    Args:
        path: file of `export_onnx`.
        threads: how many work on one operator; None is one for each core.

    Shape:
        sils: float silhouettes in 0..1, ``(N, T, H, W)``; with ``seqL``, N is 1 and clips of
            these lengths are joined along T
        returns: `GaitOutput` with embeddings ``(N, C, P)`` on the CPU and without logits

    Raises:
        UserError: the file is damaged, or another kind of network.
    """

    def __init__(self, path: Path | str, threads: int | None = None) -> None:
        super().__init__()
        try:
            self.session = _session(str(path), threads)
        except Exception as error:  # ONNX Runtime has a class for each fault, and none for all
            raise UserError(
                f"{path} is no network that ONNX Runtime loads: {error}; `gaitlib export` it again"
            ) from error
        tensors = {
            t.name: t.shape for t in (*self.session.get_inputs(), *self.session.get_outputs())
        }
        if list(tensors) != [INPUT, OUTPUT] or len(tensors[INPUT]) != 4:
            raise UserError(
                f"{path} has the tensors {tensors}, where `gaitlib export` writes {INPUT} "
                f"(N, T, H, W) and {OUTPUT}: give a file of it"
            )
        self.frame_size = tuple(tensors[INPUT][2:])

    def embed(self, sils: Tensor) -> Tensor:
        """Return the embeddings of clips of one length."""
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: _array(sils.float())})[0])

    def forward(self, sils: Tensor, seqL: Tensor | Sequence[int] | None = None) -> GaitOutput:  # noqa: N803
        """Embed clips."""
        if seqL is None:
            return GaitOutput(self.embed(sils), None)
        clips = sils.split(torch.as_tensor(seqL).tolist(), dim=1)
        return GaitOutput(torch.cat([self.embed(clip) for clip in clips]), None)


class OnnxConvolution(nn.Module):
    """One float convolution with what follows it, in ONNX Runtime on the CPU, to be timed alone.

    Args:
        layers: a convolution without bias, its batch norm (optional) and a ReLU; in eval mode.
        threads: as in `OnnxNetwork`.

    Shape:
        x: float32 ``(N, C, H, W)`` on the CPU
        returns: what ``layers`` returns
    """

    def __init__(self, layers: nn.Sequential, threads: int | None = None) -> None:
        super().__init__()
        conv, *norms, _ = layers
        given, returned = ["N", conv.in_channels, "H", "W"], ["N", conv.out_channels, "H'", "W'"]
        graph = _Graph({conv: "conv"}, given, returned, ({}, {}), {})
        graph.add("Relu", graph.convolution(INPUT, conv, *norms), output=OUTPUT)
        self.session = _session(graph.proto().SerializeToString(), threads)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: _array(x)})[0])


def check_onnx(path: Path | str, model: GaitBase, clips: Tensor) -> float:
    """Return how far ONNX Runtime is from torch: the largest difference over the largest output.

    Args:
        path: file of `export_onnx`.
        model: what the file should compute, in eval mode; if the file has grids, a network that
            quantizes its weights and inputs by them.
        clips: ``(N, T, H, W)``, on the device of ``model``.

    Raises:
        onnx.checker.ValidationError: if the file is not valid ONNX.
    """
    onnx.checker.check_model(str(path), full_check=True)
    with torch.inference_mode():
        expected = model.embed(clips).float().cpu()
    return difference([expected], [OnnxNetwork(path).embed(clips)])


class _Graph:
    """An ONNX graph. Tensors are known by their names.

    Args:
        names: of the layers; they begin the names of the weights.
        given, returned: shapes of `INPUT` and `OUTPUT`.
        grids: as in `export_onnx`.
        ranges: largest magnitude of each output to round to 8 bits, by layer name.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        given: Sequence[int | str],
        returned: Sequence[int | str],
        grids: Grids,
        ranges: Mapping[str, float],
    ) -> None:
        self.names, self.given, self.returned = names, given, returned
        self.weight_grids, self.activation_grids = grids
        self.ranges = ranges
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.on_grids: dict[tuple[str, Grid], str] = {}
        self.float_outputs: dict[str, str] = {}  # that ranges may round, by layer name

    def proto(self) -> onnx.ModelProto:
        """Return the graph as a model from `INPUT` to `OUTPUT`."""
        inputs, outputs = [_described(INPUT, self.given)], [_described(OUTPUT, self.returned)]
        return _model(
            onnx.helper.make_graph(self.nodes, "gaitlib", inputs, outputs, self.constants)
        )

    def measure(self, clips: Tensor) -> dict[str, float]:
        """Return the largest magnitude of each of ``float_outputs`` on clips, by layer name."""
        if not self.float_outputs:
            return {}
        model = self.proto()
        model.graph.output.extend(_described(tensor) for tensor in self.float_outputs.values())
        session = _session(model.SerializeToString(), as_written=True)
        ranges = dict.fromkeys(self.float_outputs, 0.0)
        for clip in clips.split(1):  # one by one: the outputs are large
            outputs = session.run(list(self.float_outputs.values()), {INPUT: _array(clip)})
            for layer, output in zip(ranges, outputs, strict=True):
                ranges[layer] = max(ranges[layer], float(np.abs(output).max()))
        return ranges

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def split(self, x: str, pieces: int, axis: int) -> list[str]:
        """Cut a tensor into equal pieces."""
        names = [f"{x}_{i}" for i in range(pieces)]
        self.nodes.append(onnx.helper.make_node("Split", [x], names, axis=axis, num_outputs=pieces))
        return names

    def constant(self, value: Any, name: str | None = None) -> str:
        """Store an array or a tensor and return its name."""
        value = _array(value) if isinstance(value, Tensor) else np.asarray(value)
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        """Store a float32."""
        return self.constant(np.float32(value))

    def integers(self, *values: int) -> str:
        """Store a vector of int64."""
        return self.constant(np.array(values, np.int64))

    def backbone(self, x: str, module: ResNet9 | Plain) -> str:
        """Add a backbone."""
        if isinstance(module, Plain):
            for layer in module.feature:
                x = self.plain(x, layer)
            return x
        x = self.add("Relu", self.convolution(x, module.conv1.conv, module.bn1))
        if module.maxpool is not None:
            x = self.pool(x, module.maxpool)
        for i in range(module.num_blocks):
            for unit in module.get_submodule(f"layer{i + 1}"):
                x = self.residual(x, unit)
        return x

    def residual(self, x: str, unit: ResidualUnit) -> str:
        """Add a residual unit."""
        y = x
        *inner, last = unit.layers()
        for layers in inner:
            y = self.add("Relu", self.convolution(y, *layers))
        y = self.rounded(self.convolution(y, *last), last[0])
        if unit.downsample is not None:
            x = self.rounded(self.convolution(x, *unit.downsample), unit.downsample[0])
        return self.add("Relu", self.add("Add", y, x))

    def plain(self, x: str, layer: nn.MaxPool2d | nn.LeakyReLU | BasicConv2d) -> str:
        """Add one layer of a Plain."""
        if isinstance(layer, nn.MaxPool2d):
            return self.pool(x, layer)
        if isinstance(layer, nn.LeakyReLU):
            return self.add("LeakyRelu", x, alpha=layer.negative_slope)
        strips = layer.strips if isinstance(layer, FocalConv2d) else 1
        return self.rounded(self.convolution(x, layer.conv, strips=strips), layer.conv)

    def pool(self, x: str, pool: nn.MaxPool2d) -> str:
        """Add a max pooling."""
        size, stride, padding = ([n, n] for n in (pool.kernel_size, pool.stride, pool.padding))
        return self.add("MaxPool", x, kernel_shape=size, strides=stride, pads=2 * padding)

    def convolution(
        self, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, strips: int = 1
    ) -> str:
        """Add a convolution, on each of ``strips`` strips by itself, with its batch norm."""
        layer = self.names[conv]
        x = self.layer_input(x, layer)
        if norm is None:
            parameters = [self.weight(conv.weight, f"{layer}.weight")]
        else:
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = norm.bias - factor * norm.running_mean
            grid = self.activation_grids.get(layer)
            step = bias.abs() / (_LARGEST_BIAS * grid.d) if grid else torch.zeros_like(bias)
            parameters = [
                self.weight(conv.weight, f"{layer}.weight", factor, step),
                self.constant(bias, f"{layer}.bias"),
            ]
        if strips > 1:  # one convolution for all: strips become frames
            x = self.add("Concat", *self.split(x, strips, axis=2), axis=0)
        size, stride, padding = conv.kernel_size, conv.stride, 2 * conv.padding
        y = self.add("Conv", x, *parameters, kernel_shape=size, strides=stride, pads=padding)
        return y if strips == 1 else self.add("Concat", *self.split(y, strips, axis=0), axis=2)

    def pyramid(self, x: str, bins: Sequence[int]) -> str:
        """Add the horizontal pooling."""
        channels = self.add("Shape", x, end=2)  # N, C'
        levels = []
        for b in bins:
            shape = self.add("Concat", channels, self.integers(b, -1), axis=0)
            strips = self.add("Reshape", x, shape)  # (N, C', b, H'/b W')
            mean = self.add("ReduceMean", strips, self.integers(3), keepdims=0)
            largest = self.add("ReduceMax", strips, self.integers(3), keepdims=0)
            levels.append(self.add("Add", mean, largest))  # (N, C', b)
        return levels[0] if len(levels) == 1 else self.add("Concat", *levels, axis=2)

    def fcs(self, x: str, fcs: SeparateFCs) -> None:
        """Add the linear maps of the parts."""
        layer = self.names[fcs]
        name = f"{layer}.fc_bin"
        x = self.layer_input(self.add("Transpose", x, perm=[2, 0, 1]), layer)  # (P, N, C')
        weight, grid = fcs.fc_bin, self.weight_grids.get(name)
        if fcs.norm and grid is None:
            weight = F.normalize(weight, dim=1)
        y = self.add("MatMul", x, self.weight(weight, name))  # (P, N, C)
        if fcs.norm and grid is not None:
            lengths = grid.fake(weight).norm(dim=1, keepdim=True).clamp_min(1e-12)  # (P, 1, C)
            y = self.add("Div", y, self.constant(lengths))
        self.add("Transpose", y, perm=[1, 2, 0], output=OUTPUT)  # (N, C, P)

    def weight(
        self,
        value: Tensor,
        name: str,
        factor: Tensor | None = None,
        smallest_step: Tensor | None = None,
    ) -> str:
        """Add a weight, each output channel (axis 0) multiplied by ``factor``.

        ONNX Runtime rounds a bias to a multiple of the weight's step times the input's, and cuts it
        off at 2^31 of them. So grids of few bits are stored as multiples of k that fill int8, with
        a smaller step, and no channel has less than ``smallest_step``: one whose batch norm has
        almost vanished would lose its bias.
        """
        grid = self.weight_grids.get(name)
        if grid is None:
            return self.constant(value if factor is None else value * _by_channel(factor), name)
        kind = torch.int8 if grid.bits <= 8 else torch.int16 if grid.bits <= 16 else torch.int32
        values = grid.dequantize(grid.quantize(value)).double()
        step = torch.tensor(grid.d / max(1, 127 // grid.levels), dtype=torch.float64)
        axis = {}
        if factor is not None:
            values = values * _by_channel(factor)
            step = torch.maximum(step * factor.abs(), smallest_step)
            step = torch.where(step == 0, 1.0, step)  # a channel of zeros
            axis = {"axis": 0}
        k = (values / (_by_channel(step) if axis else step)).round().to(kind)
        zeros = torch.zeros_like(step, dtype=kind)  # without them ONNX Runtime refuses a vector
        inputs = self.constant(k, name), self.constant(step.float()), self.constant(zeros)
        return self.add("DequantizeLinear", *inputs, **axis)

    def layer_input(self, x: str, layer: str) -> str:
        """Add the quantization of a layer's input, once for layers that share both."""
        grid = self.activation_grids.get(layer)
        if grid is None:
            return x
        if (x, grid) not in self.on_grids:
            self.on_grids[x, grid] = self.on_grid(x, grid)
        return self.on_grids[x, grid]

    def on_grid(self, x: str, grid: Grid) -> str:
        """Add ``sgn(x) d round(min(|x|, q_m)^t / d)``."""
        if grid.t != 1:
            size = self.add("Abs", x) if grid.signed else x
            size = self.add("Clip", size, self.number(0), self.number(grid.q_m))
            bent = self.add("Pow", size, self.number(grid.t))
            x = self.add("Mul", self.add("Sign", x), bent) if grid.signed else bent
        largest = int(grid.quantize(torch.tensor(grid.q_m)))
        smallest = -largest if grid.signed else 0
        step = self.number(grid.d)
        if grid.bits > INTEGER_BITS:
            k = self.add("Round", self.add("Div", x, step))
            k = self.add("Clip", k, self.number(smallest), self.number(largest))
            return self.add("Mul", k, step)
        kind = np.int8 if grid.signed else np.uint8
        zero = self.constant(kind(0))
        k = self.add("QuantizeLinear", x, step, zero)
        if (smallest, largest) != (0, 255):  # after rounding: the layer before it may then round
            k = self.add("Clip", k, self.constant(kind(smallest)), self.constant(kind(largest)))
        return self.add("DequantizeLinear", k, step, zero)

    def rounded(self, x: str, conv: nn.Conv2d) -> str:
        """Round the output of a convolution of few bits, if its range is known."""
        layer = self.names[conv]
        grids = self.weight_grids.get(f"{layer}.weight"), self.activation_grids.get(layer)
        if any(grid is None or grid.bits > INTEGER_BITS for grid in grids):
            return x
        self.float_outputs[layer] = x
        if layer not in self.ranges:
            return x
        step, zero = self.number(self.ranges[layer] / 127 or 1.0), self.constant(np.int8(0))
        k = self.add("QuantizeLinear", x, step, zero)
        return self.add("DequantizeLinear", k, step, zero)


def _session(
    model: str | bytes, threads: int | None = None, as_written: bool = False
) -> onnxruntime.InferenceSession:
    """Open a file or its content; ``as_written`` computes node by node, in float."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif _products_overflow():  # exact kernels, which take twice the time where they do not
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def _products_overflow() -> bool:
    """Say whether this processor cuts sums of int8 products off at 16 bits, as x86 before VNNI."""
    graph = onnx.parser.parse_graph(
        "products (uint8[64, 64] inputs) => (int32[64, 64] sums) "
        "{ sums = MatMulInteger(inputs, weights) }"
    )
    weights = onnx.numpy_helper.from_array(np.full((64, 64), 127, np.int8), "weights")
    graph.initializer.append(weights)
    session = onnxruntime.InferenceSession(
        _model(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"inputs": np.full((64, 64), 255, np.uint8)})
    return bool((found != 64 * 255 * 127).any())


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    ir_version = onnx.helper.find_min_ir_version_for(opsets)
    return onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, producer_name="gaitlib"
    )


def _described(name: str, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _by_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None, None]
