import pandas as pd
import pytest
import torch
from nets import resnet

from gaitlib.model import build_model
from gaitlib.model.network_cost import layer_table
from gaitlib.prune.oto import trace
from gaitlib.quantize.bit_operations import average_bits, bops_table, disk_bits, relative_bops

CONV = "Backbone.forward_block.conv1.conv"
FRAME = (16, 12)
ARGUMENTS = resnet(4, 6, embedding=5, classes=7, bins=(4,)) | {"frame_size": FRAME}


@pytest.fixture
def model():
    return build_model(**ARGUMENTS)


@pytest.fixture
def layers(model):
    return layer_table(model)


def all_weights(model, bits):
    return {name: bits for name, p in model.named_parameters() if p.dim() > 1}


def test_one_convolution_worked_by_hand(model, layers):
    table = bops_table(layers, {f"{CONV}.weight": 4}, {CONV: 8}).set_index("layer")
    macs = 4 * 1 * 9 * 16 * 12  # out * in * 3 * 3 at each position
    assert table.loc[CONV].to_dict() == {
        "per": "frame",
        "macs": macs,
        "weights": 4 * 9,
        "weight_bits": 4,
        "activation_bits": 8,
        "bops": macs * 4 * 8,
    }
    rest = table.drop(CONV)
    assert (rest["bops"] == rest["macs"] * 1024).all()
    assert table.loc["FCs", ["per", "weights"]].tolist() == ["clip", 4 * 6 * 5]
    weights = {n.rpartition(".")[0]: p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    assert table["weights"].to_dict() == weights


def test_pruning_and_quantization_multiply(model, layers):
    graph = trace(model, torch.rand(1, 1, 1, *FRAME))
    graph.zero({group.id: range(group.channels // 2) for group in graph.prunable()})
    small = layer_table(graph.slice(model))
    table = bops_table(small, all_weights(model, 8), dict.fromkeys(small["layer"], 8))
    backbone = [df[df["layer"].str.startswith("Backbone")]["macs"].sum() for df in (small, layers)]
    assert backbone[0] < 0.5 * backbone[1]
    assert relative_bops(table, layers) == pytest.approx(100 / 16 * backbone[0] / backbone[1])


def test_average_bits_worked_by_hand():
    columns = ["per", "macs", "weights", "weight_bits", "activation_bits"]
    rows = [("frame", 100, 10, 8, 32), ("frame", 300, 30, 4, 4), ("clip", 50, 60, 2, 2)]
    table = pd.DataFrame(rows, columns=columns)
    assert average_bits(table) == {
        "weights": (10 * 8 + 30 * 4 + 60 * 2) / 100,
        "activations": (100 * 32 + 300 * 4) / 400,
    }


def test_bits_on_disk_worked_by_hand(model):
    numbers = sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    assert disk_bits(model, {}) == 32 * numbers
    # 36 numbers of 5 bits are 180, which end on byte 23
    assert disk_bits(model, {f"{CONV}.weight": 5}) == 32 * (numbers - 36) + 8 * 23
    assert disk_bits(model, {f"{CONV}.weight": 12}) == 32 * (numbers - 36) + 16 * 36
    assert disk_bits(model, {f"{CONV}.weight": 20}) == 32 * numbers
