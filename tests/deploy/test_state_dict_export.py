"""Weights that torch saved, beside the network file that says which network they are of."""

import os

import nets
import pytest
import torch

from gaitlib.deploy.network_file import (
    NetworkFileError,
    is_network_file,
    load_network,
    write_network,
)
from gaitlib.deploy.state_dict_export import export_state_dict
from gaitlib.model.float_state import float_state
from gaitlib.model.widths import layer_widths, resize_layers
from gaitlib.quantize.quantization import calibrate, quantize_network

ARGUMENTS = nets.resnet(4, 6, maxpool=True, embedding=5, classes=7)
CLIPS = nets.clips(2, 5, 16, 12)


def narrow_network():
    model = nets.build(ARGUMENTS)
    widths = layer_widths(model)
    block = "Backbone.forward_block.layer2.0"
    for name, side in (("conv1", "out"), ("bn1", "out"), ("conv2", "in")):
        widths[f"{block}.{name}"][side] = 2
    resize_layers(model, widths)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    model(CLIPS)  # statistics
    return model.eval()


def quantized_network():
    model = narrow_network()
    quantization = quantize_network(model, weight_bits=4.3, activation_bits=6)
    calibrate(model, quantization, [CLIPS])
    quantization.settle(model)
    return model


@pytest.mark.parametrize("make", [narrow_network, quantized_network])
def test_an_export_has_the_float_networks_keys_and_loads_beside_its_network_file(make, tmp_path):
    model = make()
    path = export_state_dict(model, tmp_path / "a.pt")
    state = torch.load(path, weights_only=True)
    assert list(state) == list(narrow_network().state_dict())
    assert not is_network_file(path)
    with pytest.raises(FileNotFoundError, match=r"a.safetensors is missing: .* a.pt is of"):
        load_network(path)
    write_network(model, ARGUMENTS, tmp_path / "a.safetensors")
    assert is_network_file(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]
    loaded = load_network(path)
    assert all(map(torch.equal, loaded(CLIPS), model(CLIPS)))
    assert all(torch.equal(value, state[name]) for name, value in float_state(loaded).items())


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (self.victim,)


def test_damaged_and_hostile_weights_are_refused_and_not_run(tmp_path):
    model = narrow_network()
    path, victim = export_state_dict(model, tmp_path / "a.pt"), tmp_path / "victim"
    write_network(model, ARGUMENTS, tmp_path / "a.safetensors")
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    victim.touch()
    for content in (whole[:99], b"", [1], {"FCs.fc_bin": 1}, {"FCs.fc_bin": Hostile(str(victim))}):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(state | content if isinstance(content, dict) else content, path)
        with pytest.raises(NetworkFileError, match="a.pt is no network that can be loaded"):
            load_network(path)
    assert victim.exists()
    torch.save(state | {"FCs.fc_bin": torch.ones(3, 6, 4)}, path)
    with pytest.raises(NetworkFileError, match="size mismatch for FCs.fc_bin"):
        load_network(path)
