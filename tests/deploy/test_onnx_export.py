import copy
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from any_networks import NETWORKS as ANY
from nets import plain, resnet
from torch import nn

import gaitlib as gl
from gaitlib.evaluate import collect, embed_batches
from gaitlib.model import GaitBase, build_model
from gaitlib.model.heads import SeparateFCs
from gaitlib.prune import oto
from gaitlib.quantize.grid import Grid, step_size
from gaitlib.system.errors import UserError

ort = pytest.importorskip("onnxruntime", reason="ONNX files need pip install 'gaitlib[onnx]'")
onnx = pytest.importorskip("onnx", reason="ONNX files need pip install 'gaitlib[onnx]'")

from gaitlib.deploy.onnx_export import (  # noqa: E402
    OnnxConvolution,
    OnnxNetwork,
    check_onnx,
    export_onnx,
)

NETWORKS = {
    "resnet": partial(resnet, 4, 8, 8, layers=(1, 2, 1)),
    "bottleneck": partial(resnet, 4, 4, block="Bottleneck", maxpool=True),
    "plain": partial(plain, "BC-4", "M", "BC-8", "M", "BC-8"),
    "focal": partial(plain, "BC-4", "M", "FC-8-2", "M", "FC-8-3"),
}


def network(name, norm=False, bins=(16, 8, 1)):
    """A small network in eval mode; its batch norms have seen something."""
    model = build_model(**NETWORKS[name](embedding=6, bins=bins, norm=norm))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 1)
            module.weight.data[0] *= -1
    return model.eval()


def clips(n, t):
    return torch.rand(n, t, 64, 44)


def found_grids(model, weight_bits, input_bits, t=1.0):
    """Grids as wide as the weights, and as the inputs on two clips."""
    weights, inputs = {}, {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | SeparateFCs)
    }

    def look(name):
        def hook(layer, args):
            low, high = args[0].min().item(), args[0].abs().max().item()
            seen = inputs.get(name)
            signed, q_m = low < 0, high
            if seen:
                signed, q_m = signed or seen.signed, max(q_m, seen.q_m)
            step = step_size(input_bits, q_m, t, signed)
            inputs[name] = Grid(step, q_m, t, input_bits, signed)

        return hook

    for name, layer in layers.items():
        kind = "weight" if isinstance(layer, nn.Conv2d) else "fc_bin"
        q_m = getattr(layer, kind).detach().abs().max().item()
        step = step_size(weight_bits, q_m, t)
        weights[f"{name}.{kind}"] = Grid(step, q_m, t, weight_bits, True)
    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.embed(clips(2, 3))
    for handle in handles:
        handle.remove()
    return weights, inputs


def quantized(model, weights, inputs):
    """The same network in torch, every weight and every input put on its grid."""
    model = copy.deepcopy(model)
    for name, grid in weights.items():
        parameter = model.get_parameter(name)
        parameter.data = grid.fake(parameter)
    for name, grid in inputs.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, grid=grid: (grid.fake(args[0]),)
        )
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", [False, True])
def test_float_file_computes_what_torch_does_for_any_clips(name, norm, tmp_path):
    model = network(name, norm)
    path = export_onnx(model, tmp_path / "new" / "float.onnx")
    assert [p.name for p in path.parent.iterdir()] == ["float.onnx"]
    for n, t in ((1, 1), (3, 5)):
        assert check_onnx(path, model, clips(n, t)) < 1e-4


def test_slimmed_network_is_exported_with_its_widths(tmp_path):
    model = network("resnet")
    graph = oto.trace(model, torch.rand(1, 2, 1, 64, 44))
    for group in graph.prunable():
        graph.zero({group.id: list(range(1 + group.channels // 2))})
    slim = graph.slice(model).eval()
    path = export_onnx(slim, tmp_path / "slim.onnx")
    assert check_onnx(path, slim, clips(2, 3)) < 1e-4
    assert check_onnx(path, model.eval(), clips(2, 3)) < 1e-4
    assert path.stat().st_size < export_onnx(model, tmp_path / "full.onnx").stat().st_size


def test_clips_and_frames_are_free_and_all_else_is_fixed(tmp_path):
    graph = onnx.load(export_onnx(network("resnet"), tmp_path / "float.onnx")).graph

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert [(v.name, shape(v)) for v in graph.input] == [("silhouettes", ["N", "T", 64, 44])]
    assert [(v.name, shape(v)) for v in graph.output] == [("embeddings", ["N", 6, 25])]
    assert not any("BNNecks" in c.name for c in graph.initializer)
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.parametrize(
    ("name", "weight_bits", "input_bits", "t", "tolerance"),
    [
        # computed in float: only the order of sums differs
        ("plain", 8, 4, 1, 1e-5),
        ("focal", 3, 5, 1, 1e-5),
        ("plain", 6, 4, 0.9, 1e-5),
        ("resnet", 4, 4, 1.1, 1e-5),
        # so many levels that another order of sums changes some
        ("plain", 20, 12, 1, 1e-3),
        ("resnet", 5, 12, 0.9, 1e-3),
        # ONNX Runtime rounds biases to int32, which changes some of 255 levels
        ("resnet", 8, 8, 1, 1e-2),
        ("resnet", 12, 8, 1, 1e-2),
        ("bottleneck", 4, 8, 1, 1e-2),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_quantized_file_computes_the_quantized_network(
    name, weight_bits, input_bits, t, tolerance, norm, tmp_path
):
    model = network(name, norm)
    weights, inputs = found_grids(model, weight_bits, input_bits, t)
    path = export_onnx(model, tmp_path / "q.onnx", grids=(weights, inputs))
    twin = quantized(model, weights, inputs)
    errors = [check_onnx(path, twin, clips(1, 1)) for _ in range(4)]
    errors += [check_onnx(path, twin, clips(2, 3))]
    assert np.median(errors) < tolerance  # a number right between two levels may go either way
    assert max(errors) < max(tolerance, 0.1)


@pytest.mark.parametrize("name", ["resnet", "bottleneck", "plain", "focal"])
def test_calibration_rounds_every_output_and_stays_near(name, tmp_path):
    model, sample = network(name), clips(2, 3)
    weights, inputs = found_grids(model, 8, 8)
    path = export_onnx(
        model,
        tmp_path / "q.onnx",
        grids=(weights, inputs),
        calibration=sample,
    )
    assert check_onnx(path, quantized(model, weights, inputs), clips(2, 4)) < 0.05
    nodes = onnx.load(path).graph.node
    readers = {name: node.op_type for node in nodes for name in node.input}
    skipped = {"Split", "Concat"} if name == "focal" else set()
    after = {readers[node.output[0]] for node in nodes if node.op_type == "Conv"} - skipped
    assert after <= {"Relu", "QuantizeLinear"}


@pytest.mark.parametrize(
    ("bits", "kind", "fill"),
    [(2, np.int8, 127), (4, np.int8, 18), (8, np.int8, 1), (9, np.int16, 1), (17, np.int32, 1)],
)
def test_weights_are_stored_as_integers_of_the_least_width(bits, kind, fill, tmp_path):
    model = network("plain")
    weights, _ = found_grids(model, bits, 8)
    path = export_onnx(model, tmp_path / "q.onnx", grids=(weights, {}))
    stored = {c.name: onnx.numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer}
    for name, grid in weights.items():
        k = grid.quantize(model.get_parameter(name)).numpy()
        assert stored[name].dtype == kind and np.array_equal(stored[name], fill * k)
    assert check_onnx(path, quantized(model, weights, {}), clips(1, 2)) < 1e-5


@pytest.mark.parametrize("gamma", [1e-3, 1e-6, 1e-12, 0.0, -1e-6])
def test_channel_whose_batch_norm_vanished_keeps_its_bias(gamma, tmp_path):
    """ONNX Runtime's int32 biases overflow, without a word, where steps are that small."""
    model = network("resnet")
    norm = model.Backbone.forward_block.layer2[0].bn1
    norm.weight.data[:4] = gamma
    norm.bias.data[:4] = torch.tensor([1.0, 0.5, 0.3, 0.9])
    weights, inputs = found_grids(model, 8, 8)
    path = export_onnx(model, tmp_path / "q.onnx", grids=(weights, inputs))
    assert check_onnx(path, quantized(model, weights, inputs), clips(2, 3)) < 1e-2


def test_large_integers_do_not_overflow_on_any_processor(tmp_path):
    """x86 processors before VNNI add two int8 products in 16 bits, unless told not to."""
    model = network("resnet")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.fill_(0.1)
    bright = 1 - clips(2, 3) / 100
    weights, inputs = found_grids(model, 8, 8)
    path = export_onnx(
        model,
        tmp_path / "q.onnx",
        grids=(weights, inputs),
        calibration=bright,
    )
    assert check_onnx(path, quantized(model, weights, inputs), bright) < 0.05


def test_network_in_onnx_runtime_is_evaluated_like_one_in_torch(tmp_path):
    model = network("plain")
    onnx_network = OnnxNetwork(export_onnx(model, tmp_path / "float.onnx"), threads=1)
    together, joined = clips(2, 3), clips(1, 5)
    batches = [
        SimpleNamespace(clips=together, seqL=None, indices=torch.tensor([2, 0])),
        SimpleNamespace(clips=joined, seqL=torch.tensor([1, 4]), indices=torch.tensor([3, 1])),
    ]
    expected, found = (
        collect(*embed_batches(m, batches, lambda sils: sils)) for m in (model, onnx_network)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norms", [[nn.BatchNorm2d(3)], []])
def test_a_convolution_alone_is_the_one_in_torch(norms):
    conv = nn.Conv2d(2, 3, (3, 1), (2, 1), (1, 0), bias=False)
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    layers = nn.Sequential(conv, *norms, nn.ReLU()).eval()
    x = torch.rand(4, 2, 8, 6)
    with torch.no_grad():
        torch.testing.assert_close(OnnxConvolution(layers, threads=1)(x), layers(x))


def test_grids_of_the_classifier_that_is_left_out_do_no_harm(tmp_path):
    model = network("plain")
    grid = Grid(0.1, 0.7, 1, 4, True)
    grids = {"BNNecks.fc_bin": grid}, {"BNNecks": grid}
    plain = export_onnx(model, tmp_path / "plain.onnx")
    assert export_onnx(model, tmp_path / "q.onnx", grids).read_bytes() == plain.read_bytes()


def test_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "gaitlib.deploy.onnx_export")
    with pytest.raises(ModuleNotFoundError, match=r"onnxruntime.*gaitlib\[onnx\]"):
        import gaitlib.deploy.onnx_export  # noqa: F401


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    model = network("resnet")
    grid, unsigned = Grid(0.1, 0.7, 1, 4, True), Grid(0.1, 1.5, 1, 4, False)
    path = tmp_path / "q.onnx"
    with pytest.raises(ValueError, match="FCs.weight"):
        export_onnx(model, path, grids=({"FCs.weight": grid}, {}))
    with pytest.raises(ValueError, match="FCs.fc_bin.*no sign"):
        export_onnx(model, path, grids=({"FCs.fc_bin": unsigned}, {}))
    assert not list(tmp_path.iterdir())


class Depthwise(nn.Sequential):
    """A backbone of one's own."""

    out_channels = 8

    def __init__(self, pool=None):
        first = [nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()]
        last = [nn.Conv2d(4, 8, 1), nn.ReLU(), pool or nn.MaxPool2d(2)]
        super().__init__(*first, nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), *last)


def test_a_backbone_of_ones_own_is_written_in_float_for_any_clips(tmp_path):
    torch.manual_seed(0)
    fcs = SeparateFCs(in_channels=8, out_channels=4, parts_num=16)
    model = GaitBase(Depthwise(), fcs, None, bins=[16]).eval()
    path = export_onnx(model, tmp_path / "own.onnx")
    for n, t in ((1, 5), (3, 2)):
        assert check_onnx(path, model, torch.rand(n, t, 64, 44)) <= 1e-5
    weights = {"FCs.fc_bin": Grid(0.1, 0.7, 1, 4, True)}
    with pytest.raises(UserError, match="Depthwise has no form in ONNX's integers"):
        export_onnx(model, tmp_path / "int.onnx", grids=(weights, {}))


@pytest.mark.parametrize(
    "kind", ["dense block", "inverted residuals", "two inputs", "convolutions over time"]
)
def test_any_cut_network_is_written_and_compared(kind, tmp_path):
    torch.manual_seed(0)
    model, example = ANY[kind]()
    graph = gl.trace(model, example)
    graph.zero({group.id: range(0, group.channels, 2) for group in graph.prunable()})
    assert gl.write_onnx(gl.cut(graph), example, tmp_path / "any.onnx").stat().st_size > 1000


def test_what_torch_cannot_write_leaves_nothing(tmp_path):
    model = Depthwise(nn.AdaptiveMaxPool2d((15, 7)))
    with pytest.raises(UserError, match="torch cannot write .* as ONNX: .*adaptive") as caught:
        gl.write_onnx(model, torch.rand(1, 1, 64, 44), tmp_path / "any.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
