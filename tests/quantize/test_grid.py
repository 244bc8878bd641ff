import math

import pytest
import torch

from gaitlib.quantize.grid import Grid, bit_width, step_size


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits, q_m, t", [(2, 0.3, 1.0), (4.7, 1.5, 0.8), (16, 0.02, 1.3)])
def test_step_and_bits_are_inverse_for_numbers_and_tensors(bits, q_m, t, signed):
    d = step_size(bits, q_m, t, signed)
    assert bit_width(d, q_m, t, signed) == pytest.approx(bits)
    values = [torch.tensor([v], dtype=torch.double) for v in (bits, q_m, t)]
    step = step_size(*values, torch.tensor([float(signed)]))
    assert step.item() == pytest.approx(d)
    assert bit_width(step, *values[1:], torch.tensor([float(signed)])).item() == pytest.approx(bits)


def test_by_hand():
    assert step_size(2, 0.5, 1) == 0.5  # ternary: -0.5, 0, 0.5
    assert step_size(1, 0.5, 1, signed=False) == 0.5  # 0 and 0.5
    assert step_size(3, 2.0, 2.0) == pytest.approx(4 / 3)  # q_m^t over three levels
    assert bit_width(0.25, 1.0, 1) == pytest.approx(1 + math.log2(5))
    grid = Grid(d=0.5, q_m=1.5, t=1.0, bits=3, signed=True)
    x = torch.tensor([-9.0, -0.8, -0.2, 0.0, 0.24, 0.26, 1.4])
    assert grid.quantize(x).tolist() == [-3, -2, 0, 0, 0, 1, 3]
    assert grid.fake(x).tolist() == [-1.5, -1.0, 0.0, 0.0, 0.0, 0.5, 1.5]
    squared = Grid(d=0.75, q_m=1.5, t=2.0, bits=3, signed=True)  # levels 0.75, 1.5, 2.25
    assert squared.quantize(torch.tensor([-1.0, 0.5, 1.5])).tolist() == [-1, 0, 3]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("t", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_few_values_and_an_error_of_half_a_step(bits, t, signed):
    q_m = 0.8
    grid = Grid(step_size(bits, q_m, t, signed), q_m, t, bits, signed)
    x = 2 * torch.rand(5000) * q_m - (q_m if signed else 0)
    fake = grid.fake(x)
    assert len(fake.unique()) <= 2**bits - signed
    assert grid.quantize(x).abs().max() == grid.levels
    bent = x.sign() * x.abs().clamp(max=q_m) ** t
    assert (fake - bent).abs().max() <= grid.d / 2 * (1 + 1e-5)
    assert grid.fake(torch.zeros(1)) == 0


@pytest.mark.parametrize("signed", [True, False])
def test_with_exponent_1_it_is_torchs_fake_quantize(signed):
    bits, d = 5, 2.0**-4
    levels = 2 ** (bits - signed) - 1
    x = torch.randn(4000) * 1.5
    grid = Grid(d, levels * d, 1.0, bits, signed)
    lowest = -levels if signed else 0
    expected = torch.fake_quantize_per_tensor_affine(x, d, 0, lowest, levels)
    assert torch.equal(grid.fake(x), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bits": 1}, "bits is 1; .* 2 to 32"),
        ({"bits": 10**9}, "bits is 1000000000; .* 2 to 32"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"d": 0.0}, "d=0.0.*must be positive"),
        ({"q_m": math.inf}, "q_m=inf"),
        ({"t": -1.0}, "t=-1.0"),
    ],
)
def test_what_is_no_grid_is_refused(change, message):
    arguments = {"d": 0.1, "q_m": 0.7, "t": 1.0, "bits": 4, "signed": True}
    with pytest.raises(ValueError, match=message):
        Grid(**arguments | change)
    with pytest.raises(ValueError, match="give no level"):
        step_size(1, 0.5, 1)
