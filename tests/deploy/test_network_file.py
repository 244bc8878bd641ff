import copy
import json
from pathlib import Path

import nets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gaitlib.deploy.cut_network import drop_bnnecks
from gaitlib.deploy.network_file import (
    NetworkFileError,
    is_network_file,
    load_dense,
    load_network,
    write_network,
)
from gaitlib.model import build_model
from gaitlib.model.float_state import quantization_of
from gaitlib.model.network_cost import stored_bytes
from gaitlib.model.widths import layer_widths, resize_layers
from gaitlib.quantize.bit_operations import disk_bits
from gaitlib.quantize.grid import Grid, step_size
from gaitlib.quantize.packing import pack, unpack
from gaitlib.quantize.quantization import attach_grids, calibrate, quantize_network
from workbook.config import read_yaml

PARAMS = Path(__file__).resolve().parents[2] / "params"
HEADS = ("FCs", "BNNecks")
ARGUMENTS = nets.resnet(4, 6, maxpool=True, embedding=5, classes=7)


def grid(tensor, bits, signed=True, t=1.0):
    q_m = float(tensor.detach().abs().max())
    return Grid(step_size(bits, q_m, t, signed), q_m, t, bits, signed)


def weights_of(model):
    """Return the weights that multiply, by name: every tensor of two axes or more."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def grids_of(model, widths=(2, 3, 5, 8, 9, 16, 20, 4), t=0.9):
    names = weights_of(model)
    weights = {
        name: grid(p, widths[i % len(widths)], t=t) for i, (name, p) in enumerate(names.items())
    }
    layers = [name.rpartition(".")[0] for name in names]
    inputs = {layer: Grid(0.05, 0.05 * 255, 1.0, 8, False) for layer in layers[1:-2]}
    return weights, inputs | {"FCs": Grid(0.02, 0.02 * 31, 1.0, 6, True)}


def with_grids(model, weight_grids, input_grids):
    """Return a copy with these quantizers."""
    twin = copy.deepcopy(model)
    attach_grids(twin, weight_grids, input_grids)
    return twin


def fake_quantized(model, weight_grids, activation_grids):
    """Return the network in float: each weight and each layer's input rounded by the formula."""

    def rounded(x, g):
        lowest = -g.q_m if g.signed else 0
        c = x.clamp(lowest, g.q_m)
        return c.sign() * g.d * (c.abs() ** g.t / g.d).round()

    def hook(g):
        return lambda layer, inputs: (rounded(inputs[0], g),)

    twin = copy.deepcopy(model).eval()
    for name, g in weight_grids.items():
        twin.get_parameter(name).data = rounded(twin.get_parameter(name).data, g)
    for layer, g in activation_grids.items():
        twin.get_submodule(layer).register_forward_pre_hook(hook(g))
    return twin


def quickstart(cut=1.0):
    arguments = read_yaml(PARAMS / "quickstart.yaml")["model_cfg"]
    del arguments["model"]
    model = build_model(**arguments)
    widths = layer_widths(model)
    fixed = {"Backbone.forward_block.conv1.conv": "in", "FCs": "out"}
    for name, width in widths.items():
        for side, size in width.items():
            if not name.startswith("BNNecks") and fixed.get(name) != side:
                width[side] = max(1, round(size * cut))
    resize_layers(model, widths)
    for parameter in weights_of(model).values():
        torch.nn.init.normal_(parameter)
    return arguments, model


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 3, 1), (7, 11), (0,)])
def test_unpacking_gives_back_what_was_packed(bits, shape):
    largest = 2 ** (bits - 1) - 1
    k = torch.randint(-largest, largest + 1, shape, dtype=torch.int32)
    k.view(-1)[:2] = torch.tensor([-largest, largest], dtype=torch.int32)[: k.numel()]
    data = pack(k, bits)
    assert data.dtype == torch.uint8 and len(data) == stored_bytes(k.numel(), bits)
    assert len(data) == -(-k.numel() * (bits if bits <= 8 else 16) // 8)
    back = unpack(data, bits, shape)
    assert back.dtype == torch.int32 and torch.equal(back, k)


def test_bytes_worked_by_hand():
    # 3 bits: 1 = 001, -1 = 111, 3 = 011, -3 = 101; lowest bit first: 100 111 110 101
    assert pack(torch.tensor([[1, -1], [3, -3]]), 3).tolist() == [0b11111001, 0b1010]
    assert pack(torch.tensor([7, -7, 1]), 4).tolist() == [0x97, 0x01]
    assert pack(torch.tensor([1, -1, 0, 1, -1]), 2).tolist() == [0b01001101, 0b11]
    assert pack(torch.tensor([-2, 300]), 10).tolist() == [0xFE, 0xFF, 0x2C, 0x01]


def test_unpacking_refuses_what_was_not_packed():
    for bits in (1, 17, 0):
        with pytest.raises(ValueError, match=f"bits is {bits}; integers of 2 to 16"):
            unpack(torch.zeros(1, dtype=torch.uint8), bits, (1,))
    with pytest.raises(ValueError, match="as large as 8; 4 bits"):
        unpack(torch.tensor([0x08], dtype=torch.uint8), 4, (1,))


@pytest.mark.parametrize("bnnecks", [True, False])
@pytest.mark.parametrize("t", [1.0, 0.9])
def test_the_loaded_network_is_the_fake_quantized_one(bnnecks, t, tmp_path):
    model, arguments = build_model(**ARGUMENTS).eval(), ARGUMENTS
    model(torch.rand(4, 3, 16, 12))
    if not bnnecks:
        model, arguments = drop_bnnecks(model), ARGUMENTS | {"SeparateBNNecks": None}
    quantized = with_grids(model, *grids_of(model, t=t))
    path = write_network(quantized, arguments, tmp_path / "new" / "a.safetensors")
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    loaded = load_network(path)
    expected = fake_quantized(model, *quantization_of(quantized).grids())
    clips = torch.rand(2, 5, 16, 12)
    for found, wanted in zip(loaded(clips), expected(clips), strict=True):
        if wanted is None:
            assert found is None and not bnnecks
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(loaded(clips)[0], model(clips)[0], rtol=1e-3)
    assert path.read_bytes() == write_network(quantized, arguments, path).read_bytes()
    assert not any(module.training for module in loaded.modules())


def test_a_trained_network_loads_with_its_quantizers(tmp_path):
    model = build_model(**ARGUMENTS).eval()
    quantization = quantize_network(model, weight_bits=4.3, activation_bits=6.6)
    clips = torch.rand(2, 5, 16, 12)
    calibrate(model, quantization, [clips])
    for quantizer in quantization.quantizers():
        quantizer.t.data.fill_(1.1)
    first = load_network(write_network(model, ARGUMENTS, tmp_path / "before.safetensors"))
    quantization.settle(model)
    second = load_network(write_network(model, ARGUMENTS, tmp_path / "after.safetensors"))
    for loaded in (first, second):
        torch.testing.assert_close(loaded(clips), model(clips), rtol=1e-5, atol=1e-5)
        bits = quantization_of(loaded).bits()
        assert bits["layer"].tolist() == quantization.bits()["layer"].tolist()
        assert bits["bits"].round().tolist() == 8 * [4] + 6 * [7]
    again = load_network(write_network(second, ARGUMENTS, tmp_path / "again.safetensors"))
    torch.testing.assert_close(again(clips), model(clips), rtol=1e-5, atol=1e-5)
    assert disk_bits(second, {}) == disk_bits(build_model(**ARGUMENTS), {})


@pytest.mark.parametrize("cut", [1.0, 0.4])
def test_a_float_network_loads_as_it_was(cut, tmp_path):
    arguments, model = quickstart(cut)
    clips = torch.rand(2, 3, 64, 44)
    model(clips)  # statistics
    path = write_network(model.eval(), arguments, tmp_path / "a.safetensors")
    loaded = load_network(path)
    assert quantization_of(loaded) is None
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        counts_steps = name.endswith("num_batches_tracked")
        assert torch.equal(tensor, model.state_dict()[name]) or counts_steps
    for found, wanted in zip(loaded(clips), model(clips), strict=True):
        assert torch.equal(found, wanted)
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["network"])
    assert set(header["weight_bits"]) == set(header["input_bits"]) == {32}
    assert load_file(path)["integers"].numel() == load_file(path)["grids"].numel() == 0
    assert path.stat().st_size == pytest.approx(disk_bits(model, {}) / 8, rel=0.05)
    assert layer_widths(load_dense(path)) == layer_widths(build_model(**arguments))
    assert is_network_file(path)


@pytest.mark.parametrize("cut, bits", [(1.0, 8), (1.0, 4), (1.0, 2), (0.4, 8), (0.4, 4)])
def test_a_file_is_as_large_as_its_numbers(cut, bits, tmp_path):
    arguments, model = quickstart(cut)
    weights = {name: grid(p, bits) for name, p in weights_of(model).items()}
    path = write_network(with_grids(model, weights, {}), arguments, tmp_path / "a.safetensors")
    quantized = sum(-(-p.numel() * bits // 8) for p in weights_of(model).values())
    floats = sum(
        t.numel() for n, t in model.state_dict().items() if t.dim() == 1 and n not in weights
    )
    assert disk_bits(model, dict.fromkeys(weights, bits)) == 8 * (quantized + 4 * floats)
    assert path.stat().st_size == pytest.approx(quantized + 4 * floats, rel=0.05)
    clips = torch.rand(1, 2, 64, 44)
    torch.testing.assert_close(
        load_network(path)(clips)[0], fake_quantized(model, weights, {})(clips)[0]
    )


def test_writing_refuses_what_it_cannot_hold(tmp_path):
    model, path = build_model(**ARGUMENTS), tmp_path / "a.safetensors"
    weights, inputs = grids_of(model)
    for grids, message in (
        (({"FCs.fc_bin": Grid(1.0, 1.0, 1.0, 4, False)}, inputs), "have no sign"),
        ((weights, {"FCs": grid(torch.ones(1), 25)}), "more bits than float32"),
    ):
        with pytest.raises(ValueError, match=message):
            write_network(with_grids(model, *grids), ARGUMENTS, path)
    other = ARGUMENTS | {"backbone_cfg": ARGUMENTS["backbone_cfg"] | {"channels": [3, 6]}}
    with pytest.raises(ValueError, match="has 'out' 4: write an integer in 1..3"):
        write_network(with_grids(model, weights, inputs), other, path)
    quantized = with_grids(model, weights, inputs)
    quantized.FCs.fc_bin.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="FCs.fc_bin holds numbers that are not finite"):
        write_network(quantized, ARGUMENTS, path)
    assert not path.exists()


def rewritten(path, tensors=None, **changes):
    """Write the file again with other tensors or another description."""
    with safe_open(path, "pt") as file:
        text = file.metadata()["network"]
    description = json.dumps(json.loads(text) | changes)
    save_file(load_file(path) | (tensors or {}), path, {"network": description})


WIDER = [list(width.values()) for width in layer_widths(build_model(**ARGUMENTS)).values()]
WIDER[1] = [5]
MANY = ARGUMENTS["SeparateBNNecks"] | {"class_num": 10**7}
DEEP = ARGUMENTS["backbone_cfg"] | {"layers": [5000, 5000]}


@pytest.fixture
def written(tmp_path):
    model = build_model(**ARGUMENTS)
    quantized = with_grids(model, *grids_of(model))
    return write_network(quantized, ARGUMENTS, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"build_model": None}, ""),
        ({"build_model": ARGUMENTS | {"bin_num": [2]}}, r"bin_num \[2\] sums to 2"),
        ({"build_model": ARGUMENTS | {"bin_num": 3}}, ""),
        ({"build_model": ARGUMENTS | {"backbone_cfg": {"type": "Plain", "layers_cfg": [5]}}}, ""),
        ({"build_model": ARGUMENTS | {"bin_num": [10**9]}}, "its architecture is too large"),
        ({"build_model": ARGUMENTS | {"SeparateBNNecks": MANY}}, "its architecture is too large"),
        ({"build_model": ARGUMENTS | {"backbone_cfg": DEEP}}, "its architecture is too large"),
        ({"widths": [[1, 4]]}, "zip"),
        ({"widths": [[1, 9], *14 * [[4]]]}, "zip"),
        ({"widths": WIDER}, r"bn1 has 'out' 5: write an integer in 1\.\.4"),
        ({"weight_bits": 8 * [4]}, r"the bits call for \(14, 3\)"),
        ({"weight_bits": [32, *7 * [4]]}, "integers is "),
        ({"weight_bits": 7 * [4]}, "zip"),
        ({"weight_bits": [32, *7 * [4.0]]}, "bits is 4.0"),
        ({"input_bits": [32, *6 * [0], 32]}, "bits is 0"),
        ({"tensors": {"grids": torch.full((13, 3), torch.nan)}}, "d=nan"),
        ({"tensors": {"grids": torch.ones(39)}}, r"grids is \(39,\)"),
        ({"tensors": {"grids": torch.ones(2, 3)}}, r"grids is \(2, 3\), the bits call"),
        ({"tensors": {"floats": torch.ones(3)}}, r"floats is \(3,\), the network needs"),
        ({"tensors": {"floats": torch.ones(3, dtype=torch.float64)}}, "it needs the metadata"),
        ({"tensors": {"more": torch.ones(3)}}, "it needs the metadata"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(changes, message, written):
    rewritten(written, **changes)
    with pytest.raises(NetworkFileError, match=f"a.safetensors is no network that .*: .*{message}"):
        load_network(written)


def test_a_network_of_the_20000_classes_of_grew_is_read(tmp_path):
    arguments = nets.plain("BC-1", embedding=1, classes=20_000, bins=(1,))
    path = write_network(build_model(**arguments), arguments, tmp_path / "a.safetensors")
    assert load_network(path).BNNecks.fc_bin.shape == (1, 1, 20_000)


def test_a_file_that_claims_to_be_huge_is_refused_without_the_memory(written):
    huge = json.loads(json.dumps(ARGUMENTS))
    huge["SeparateFCs"]["out_channels"] = huge["SeparateBNNecks"]["in_channels"] = 10**4
    widths = [list(w.values()) for w in layer_widths(build_model(**ARGUMENTS)).values()]
    rewritten(written, build_model=huge)
    load_network(written)  # the widths say how much of it is there
    rewritten(written, widths=[[10**4 if s == 5 else s for s in w] for w in widths])
    with pytest.raises(NetworkFileError, match="the network needs"):
        load_network(written)


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:30], lambda b: b"", bytes.upper])
def test_half_a_file_is_refused(damage, written):
    written.write_bytes(damage(written.read_bytes()))
    with pytest.raises(NetworkFileError, match="a.safetensors is no network"):
        load_network(written)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "a.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{path} is no file"):
            load_network(path)


def test_loading_draws_no_random_numbers(written):
    before = torch.get_rng_state()
    load_network(written)
    assert torch.equal(before, torch.get_rng_state())
