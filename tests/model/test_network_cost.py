import nets
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gaitlib.model import build_model
from gaitlib.model.network_cost import (
    block_table,
    count_parameters,
    file_bytes,
    layer_table,
    macs_per_frame,
    measure_latency,
    training_macs,
)


@pytest.fixture(scope="module")
def gaitbase():
    return build_model({"type": "ResNet9"}, {}, {}, [16])


def plain(words, bins, width, out=256):
    parts = sum(bins)
    return build_model(
        {"type": "Plain", "layers_cfg": words.split()},
        {"parts_num": parts, "in_channels": width, "out_channels": out},
        {"parts_num": parts, "in_channels": out, "class_num": 74},
        bins,
    )


def test_gaitbase_costs_what_was_published(gaitbase):
    assert count_parameters(gaitbase) == 7_305_408
    assert macs_per_frame(gaitbase) == 1_178_124_288


def test_baseline_costs_what_was_published():
    model = plain("BC-64 BC-64 M BC-128 BC-128 M BC-256 BC-256", [16, 8, 4, 2, 1], 256)
    assert count_parameters(model) == 3_779_136
    assert macs_per_frame(model) == 419_741_696


def test_blocks_hold_every_parameter_and_mac_once(gaitbase):
    table = block_table(gaitbase).set_index("block")
    assert list(table.index) == ["conv1", *(f"layer{i}" for i in (1, 2, 3, 4)), "FCs", "BNNecks"]
    assert table["params"].sum() == count_parameters(gaitbase)
    assert table.query("per == 'frame'")["macs"].sum() == macs_per_frame(gaitbase)
    assert table.loc["FCs", "macs"] == 16 * 512 * 256
    assert table.loc["BNNecks", "macs"] == 16 * 256 * 74
    assert table.loc["layer4", "macs"] / macs_per_frame(gaitbase) == pytest.approx(0.548, abs=5e-4)


def test_layers_are_counted_as_channels_times_kernel_times_positions(gaitbase):
    table = layer_table(gaitbase)
    convs = table[table["macs"].notna() & ~table["layer"].isin(["FCs", "BNNecks"])]
    kernels = [1 if "downsample" in name else 9 for name in convs["layer"]]
    params = convs["in_channels"] * convs["out_channels"] * kernels
    assert (convs["params"] == params).all()
    assert (convs["macs"] == params * convs["height"] * convs["width"]).all()
    assert convs["macs"].sum() == macs_per_frame(gaitbase)
    last = table.set_index("layer").loc["Backbone.forward_block.layer4.0.conv2"]
    assert last[["block", "in_channels", "out_channels", "height", "width"]].tolist() == [
        "layer4", 512, 512, 16, 11,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [nets.resnet(4, 8, 8), nets.plain("BC-4", "M", "FC-8-2", "BC-8")]
)
def test_a_training_step_costs_what_torch_counts_of_its_two_passes(arguments):
    model = nets.build(arguments).train()
    per_frame, per_clip = training_macs(model)
    clips, frames = 3, 2
    with FlopCounterMode(display=False) as counter:
        output = model(torch.rand(clips, frames, 64, 44))
        (output.embeddings.sum() + output.logits.sum()).backward()
    counted = counter.get_total_flops() // 2
    assert clips * (frames * per_frame + per_clip) == counted


def test_a_focal_convolution_costs_what_a_plain_one_does():
    costs = [macs_per_frame(plain(f"BC-4 M {word}", [1], 8, 8)) for word in ("BC-8", "FC-8-2")]
    assert costs[0] == costs[1] == (25 * 4 * 64 * 44) + (9 * 4 * 8 * 32 * 22)
    table = layer_table(plain("BC-4 M FC-8-2", [1], 8, 8)).set_index("block")
    assert table.loc["feature.3", ["height", "width"]].tolist() == [32, 22]


def test_profiling_leaves_the_model_as_it_was():
    model = plain("BC-4 M", [2, 1], 4, 8).train()
    model.BNNecks.eval()  # frozen
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert measure_latency(model, batch=2, frames=3, repeats=3, warmup=1) > 0
    block_table(model)
    assert model.training and not model.BNNecks.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_bytes_of_a_file_and_of_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.bin").write_bytes(b"1234")
    (tmp_path / "deep" / "b.bin").write_bytes(b"12")
    assert file_bytes(tmp_path / "a.bin") == 4 and file_bytes(tmp_path) == 6
