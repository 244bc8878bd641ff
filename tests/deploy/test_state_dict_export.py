"""Weights that torch saved: exports of this version, and what earlier versions wrote."""

import json
import os

import pytest
import torch
from former_network import write_former_network

from gaitlib.deploy.network_file import (
    NetworkFileError,
    is_network_file,
    load_dense,
    load_network,
    write_network,
)
from gaitlib.deploy.state_dict_export import export_state_dict
from gaitlib.model import build_model
from gaitlib.model.float_state import float_state
from gaitlib.model.widths import layer_widths, resize_layers
from gaitlib.quantize.quantization import calibrate, quantization_of, quantize_network

ARGUMENTS = {
    "backbone_cfg": {
        "type": "ResNet9",
        "channels": [4, 6],
        "layers": [1, 1],
        "strides": [1, 2],
        "maxpool": True,
    },
    "SeparateFCs": {"in_channels": 6, "out_channels": 5, "parts_num": 3},
    "SeparateBNNecks": {"in_channels": 5, "class_num": 7, "parts_num": 3},
    "bin_num": [2, 1],
}
CLIPS = torch.rand(2, 5, 16, 12, generator=torch.Generator().manual_seed(0))


def narrow_network():
    model = build_model(**ARGUMENTS)
    widths = layer_widths(model)
    block = "Backbone.forward_block.layer2.0"
    for name, side in (("conv1", "out"), ("bn1", "out"), ("conv2", "in")):
        widths[f"{block}.{name}"][side] = 2
    resize_layers(model, widths)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    model(CLIPS)  # statistics
    return model.eval()


def quantized_network(**options):
    model = narrow_network()
    quantization = quantize_network(model, **({"weight_bits": 4.3, "activation_bits": 6} | options))
    calibrate(model, quantization, [CLIPS])
    quantization.settle(model)
    return model


NETWORKS = {"float": narrow_network, "quantized": quantized_network}


def same_outputs(first, second):
    return all(map(torch.equal, first(CLIPS), second(CLIPS)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_export_has_the_float_networks_keys_and_loads_beside_its_network_file(kind, tmp_path):
    model = NETWORKS[kind]()
    path = export_state_dict(model, tmp_path / "a.pt")
    state = torch.load(path, weights_only=True)
    assert list(state) == list(narrow_network().state_dict())
    assert not is_network_file(path)
    with pytest.raises(FileNotFoundError, match=r"architecture.json is missing; .*a.safetensors"):
        load_network(path)
    write_network(model, ARGUMENTS, tmp_path / "a.safetensors")
    assert is_network_file(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]
    loaded = load_network(path)
    assert same_outputs(loaded, model)
    assert all(torch.equal(value, state[name]) for name, value in float_state(loaded).items())


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_an_earlier_version_wrote_loads(kind, tmp_path):
    model = NETWORKS[kind]()
    beside = write_former_network(model, ARGUMENTS, tmp_path / "a.pt")
    assert json.loads(beside.read_text())["format"] == {"float": 1, "quantized": 2}[kind]
    loaded = load_network(tmp_path / "a.pt")
    assert same_outputs(loaded, model)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.is_leaf for parameter in loaded.parameters())
    if kind == "quantized":
        assert quantization_of(loaded).grids() == quantization_of(model).grids()
    else:
        assert quantization_of(loaded) is None
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
    dense = build_model(**ARGUMENTS)
    assert layer_widths(load_dense(tmp_path / "a.pt")) == layer_widths(dense)
    assert is_network_file(tmp_path / "a.pt") and not is_network_file(tmp_path / "full.pt")


def test_weights_of_more_bits_than_are_packed_keep_their_grids_in_what_an_earlier_version_wrote(
    tmp_path,
):
    model = quantized_network(weight_bits=18)
    write_former_network(model, ARGUMENTS, tmp_path / "a.pt")
    loaded = load_network(tmp_path / "a.pt")
    assert quantization_of(loaded).grids() == quantization_of(model).grids()
    assert same_outputs(loaded, model)


def test_a_file_of_an_earlier_version_becomes_a_network_file(tmp_path):
    model = quantized_network()
    write_former_network(model, ARGUMENTS, tmp_path / "a.pt")
    first = write_network(load_network(tmp_path / "a.pt"), ARGUMENTS, tmp_path / "b.safetensors")
    second = write_network(model, ARGUMENTS, tmp_path / "c.safetensors")
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def pair(tmp_path):
    """The two files of an earlier version, of a float network."""
    path = tmp_path / "a.pt"
    return path, write_former_network(narrow_network(), ARGUMENTS, path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 99}, "format 99"),
        ({"widths": {"FCs": {"in": 3, "out": 3}}}, "in one of model and widths"),
        ({"build_model": {"backbone_cfg": {"type": "Nope"}}}, "do not fit"),
        ({"build_model": ARGUMENTS | {"bin_num": [2]}}, "makes 2 parts"),
        ({"weights": None, "widths": None}, "does not describe"),
        ({"format": 2}, "does not describe a network: KeyError.'quantization'"),
        ({"format": 2, "quantization": {"weights": []}}, "does not describe"),
    ],
)
def test_a_damaged_architecture_is_refused(change, message, pair):
    path, beside = pair
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(NetworkFileError, match=message):
        load_network(path)


def test_widths_outside_the_blueprint_are_refused(pair):
    path, beside = pair
    entries = json.loads(beside.read_text())
    for size in (0, 9, 2.5, True, "3"):
        entries["widths"]["FCs"]["out"] = size
        beside.write_text(json.dumps(entries))
        with pytest.raises(NetworkFileError, match="FCs has 'out'"):
            load_network(path)


def test_damaged_grids_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    beside = write_former_network(quantized_network(weight_bits=16), ARGUMENTS, path)
    text = beside.read_text()
    for old, new in (('"bits": 16', '"bits": 1000000000'), ("FCs.fc_bin", "FCs.nothing")):
        beside.write_text(text.replace(old, new))
        with pytest.raises(NetworkFileError, match="bits is 10000.* to 32|no 'FCs.nothing'"):
            load_network(path)


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (self.victim,)


def test_damaged_and_hostile_weights_are_refused_and_not_run(pair, tmp_path):
    path, _ = pair
    whole, victim = path.read_bytes(), tmp_path / "victim"
    victim.touch()
    state = torch.load(path, weights_only=True)
    for content in (whole[:99], b"", [1], {"FCs.fc_bin": 1}, {"FCs.fc_bin": Hostile(str(victim))}):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(state | content if isinstance(content, dict) else content, path)
        with pytest.raises(NetworkFileError, match="a.pt and .*architecture.json, which describes"):
            load_network(path)
    assert victim.exists()
    torch.save(state | {"FCs.fc_bin": torch.ones(3, 6, 4)}, path)
    with pytest.raises(NetworkFileError, match="size mismatch for FCs.fc_bin"):
        load_network(path)


def test_loading_draws_no_random_numbers(pair):
    before = torch.get_rng_state()
    load_network(pair[0])
    load_dense(pair[0])
    assert torch.equal(before, torch.get_rng_state())
