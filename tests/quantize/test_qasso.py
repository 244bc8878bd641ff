import itertools

import pytest
import torch

from gaitlib.quantize.grid import step_size
from gaitlib.quantize.qasso import BETA, ETA, XI, choose_rate_and_steps

ALPHA = 0.1


def choose(contents, residuals, moves, *rest):
    return choose_rate_and_steps(list(zip(contents, residuals, moves, strict=True)), *rest)


def slices(sign_c, sign_r, ranges=(0.3, 30.0), seed=0):
    """Return C, Rs and g of a batch norm and two weights; <g, C> and <g, Rs> have given signs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    contents = [draw(5)] + [r * draw(5, 9).clamp(-1, 1) for r in ranges]
    residuals = [None] + [draw(5, 9).clamp(-2, 2) / 4 for _ in ranges]
    moves = []
    for c, r in zip(contents, residuals, strict=True):
        g = draw(*c.shape)
        basis = [(c, sign_c)] if r is None else [(c, sign_c), (r, sign_r)]
        axes, _ = torch.linalg.qr(torch.stack([b.flatten() for b, _ in basis], dim=1))
        g = g.flatten() - axes @ (axes.T @ g.flatten())  # at right angles to C and Rs
        wanted = torch.tensor([s * 0.3 * b.norm() for b, s in basis], dtype=torch.double)
        matrix = torch.stack([b.flatten() for b, _ in basis])
        moves.append((g + torch.linalg.pinv(matrix) @ wanted).reshape(c.shape))
    return contents, residuals, moves


def bounds(ranges, fewest=4.0, most=16.0):
    """Return the finest and the coarsest steps."""
    return tuple(
        torch.tensor([step_size(b, r, 1.0) for r in ranges], dtype=torch.double)
        for b in (most, fewest)
    )


def plain(contents, residuals, moves, alpha, even, finest, coarsest):
    """Restate the formulas: cosines, a loop for the safeguard, numbers instead of tensors."""
    flat = torch.cat([c.flatten() for c in contents])
    g = torch.cat([m.flatten() for m in moves])
    cosine = (flat @ g / (flat.norm() * g.norm())).item()
    if flat.abs().mean() <= 1e-8:
        gamma = 0.0
    elif cosine >= 0:
        gamma = even
    else:
        gamma = min(even, -(1 - ETA) * alpha * g.norm().item() / (cosine * flat.norm().item()))
    pairs = [(r, m) for r, m in zip(residuals, moves, strict=True) if r is not None]

    def steps(gamma):
        result = []
        for (r, m), high in zip(pairs, coarsest.tolist(), strict=True):
            cosine = ((r * m).sum() / (r.norm() * m.norm())).item()
            free = cosine >= 0 or gamma == 0
            top = -XI * ETA * alpha * m.norm().item()
            result.append(high if free else top / (gamma * cosine * r.norm().item()))
        return result

    while any(d < low for d, low in zip(steps(gamma), finest.tolist(), strict=True)):
        gamma *= BETA
    return gamma, [min(d, h) for d, h in zip(steps(gamma), coarsest.tolist(), strict=True)]


@pytest.mark.parametrize("sign_c, sign_r", list(itertools.product([-1, 1], [-1, 1])))
@pytest.mark.parametrize("most", [16.0, 4.0])
@pytest.mark.parametrize("even", [0.05, 1.0])
def test_it_descends_and_every_layer_keeps_its_own_interval(sign_c, sign_r, most, even):
    ranges = (0.3, 30.0)
    finest, coarsest = bounds(ranges, most=most)
    for seed in range(20):
        contents, residuals, moves = slices(sign_c, sign_r, ranges, seed)
        gamma, d = choose(contents, residuals, moves, ALPHA, even, finest, coarsest)
        assert 0 < gamma <= even
        assert (finest <= d).all() and (d <= coarsest).all()
        expected = plain(contents, residuals, moves, ALPHA, even, finest, coarsest)
        assert gamma.item() == pytest.approx(expected[0])
        assert d.tolist() == pytest.approx(expected[1])
        steps = iter(d)
        inner = length = 0.0
        for c, r, g in zip(contents, residuals, moves, strict=True):
            quantized = c if r is None else c + next(steps) * r
            inner += (g * (-ALPHA * g - gamma * quantized)).sum().item()
            length += g.square().sum().item()
        assert inner <= -(1 - XI) * ETA * ALPHA * length * (1 - 1e-9)


def test_nothing_to_forget_nothing_to_move_and_no_learning_rate():
    finest, coarsest = bounds((0.3, 30.0))
    contents, residuals, moves = slices(-1, -1)
    empty = [torch.zeros_like(c) for c in contents]
    gamma, d = choose(empty, residuals, moves, ALPHA, 0.2, finest, coarsest)
    assert gamma == 0 and torch.equal(d, coarsest)
    for still in ([torch.zeros_like(m) for m in moves], [None, None, None]):
        gamma, d = choose(contents, residuals, still, ALPHA, 0.2, finest, coarsest)
        assert gamma == 0.2 and torch.equal(d, coarsest)
    gamma, d = choose(contents, residuals, moves, 0.0, 0.2, finest, coarsest)
    assert gamma == 0 and torch.equal(d, coarsest)


def test_a_barely_negative_angle_does_not_throw_channels_past_zero():
    finest, coarsest = bounds((1.0,))
    content = torch.ones(1, 4, dtype=torch.double)
    move = torch.tensor([[1.0, -1.0, 1.0, -1.0 - 1e-12]], dtype=torch.double)
    gamma, _ = choose([content], [torch.zeros_like(content)], [move], ALPHA, 0.25, finest, coarsest)
    assert gamma == 0.25
