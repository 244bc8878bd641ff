import nets
import pytest
import torch

from gaitlib.model.batch_norm import normalised_convolutions
from gaitlib.model.float_state import quantization_of
from gaitlib.quantize.grid import Grid
from gaitlib.quantize.ptq import Rounding, best_clippings, round_after_training

CLIPS = [nets.clips(3, 2, 32, 22, seed=s) for s in range(2)]
CHANNEL, TENSOR = (Rounding(clipping=c) for c in ("channel", "tensor"))


@pytest.fixture
def model():
    """A network whose channels differ a hundredfold, one of them zero."""
    model = nets.with_statistics(nets.build(nets.resnet(4, 8, embedding=6)))
    with torch.no_grad():
        for name in normalised_convolutions(model):
            weight = model.get_submodule(name).weight
            weight.mul_(torch.logspace(-2, 0, len(weight))[:, None, None, None])
        model.Backbone.forward_block.conv1.conv.weight[1] = 0
    return model.eval()


def rounded(model, bits, cfg, inputs=True, more=()):
    weights = [n for n, p in model.named_parameters() if p.dim() > 1]
    layers = [n.rpartition(".")[0] for n in weights]
    inputs = {n: 12 for n in layers[1:] if n != "BNNecks"} if inputs else {}
    return round_after_training(model, dict.fromkeys(weights, bits), inputs, CLIPS, cfg, more)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_a_row_is_clipped_where_its_rounding_error_is_least(bits):
    rows = torch.randn(3, 200) * torch.tensor([[1e-3], [1.0], [50.0]])
    found = best_clippings(torch.cat([rows, torch.zeros(1, 200)]), bits)
    assert found[3] == 0
    for row, q_m in zip(rows, found.tolist(), strict=False):
        errors = {}
        for share in torch.linspace(0.3, 1.0, 71).tolist():
            clip = share * row.abs().max().item()
            grid = Grid(clip / (2 ** (bits - 1) - 1), clip, 1.0, bits, True)
            errors[clip] = (grid.fake(row) - row).square().sum().item()
        assert q_m == pytest.approx(min(errors, key=errors.get), rel=1e-5)


def test_a_grid_per_channel_costs_nothing_and_rounds_each_where_its_error_is_least(model):
    exact, small = rounded(model, 16, CHANNEL, inputs=False), rounded(model, 4, CHANNEL)
    torch.testing.assert_close(  # at 16 bits: batch norms take the scales of channels up
        exact(CLIPS[0]).embeddings, model(CLIPS[0]).embeddings, rtol=1e-2, atol=1e-2
    )
    for conv, norm in normalised_convolutions(model).items():
        weight = model.get_submodule(conv).weight.detach().flatten(1)
        scale = model.get_submodule(norm).running_mean / small.get_submodule(norm).running_mean
        found = small.get_submodule(conv).weight.detach().flatten(1) * scale[:, None]
        best = best_clippings(weight, 4)
        for row, now, q_m in zip(weight, found, best.tolist(), strict=True):
            q_m = q_m or 1.0  # of a channel that is zero
            grid = Grid(q_m / 7, q_m, 1.0, 4, True)
            torch.testing.assert_close(now, grid.fake(row), rtol=1e-3, atol=1e-6)
    assert {g.bits for g in quantization_of(small).grids()[0].values()} == {4}


def test_channels_of_unlike_range_lose_less_by_a_grid_each(model):
    wanted = model(CLIPS[0]).embeddings
    errors = [
        (rounded(model, 4, cfg)(CLIPS[0]).embeddings - wanted).square().mean().item()
        for cfg in (CHANNEL, TENSOR)
    ]
    assert errors[0] < 0.75 * errors[1]


def test_batch_norms_are_measured_on_the_rounded_network(model):
    plain, measured = rounded(model, 3, TENSOR), rounded(model, 3, TENSOR, more=CLIPS)
    for name, value in plain.named_parameters():
        assert torch.equal(value, measured.get_parameter(name)), name
    norm = "Backbone.forward_block.bn1.running_mean"
    first = measured.Backbone.forward_block.conv1  # its weights are rounded for good
    with torch.no_grad():
        means = [first(clip.flatten(0, 1)[:, None]).mean((0, 2, 3)) for clip in CLIPS]
    torch.testing.assert_close(measured.get_buffer(norm), torch.stack(means).mean(0))
    assert not torch.equal(plain.get_buffer(norm), measured.get_buffer(norm))
