"""Float first, bits late: HESSO until the switch, whole bits after it."""

import nets
import pytest
import torch
from geta_runs import ARCHITECTURE, check_resume, clips, quantized, same, train

from gaitlib.deploy.cut_network import construct_compressed_model
from gaitlib.model.network_cost import layer_table
from gaitlib.prune.hesso import build_hesso
from gaitlib.quantize import late_bits
from gaitlib.quantize.bit_budget import budget_terms, squared_error
from gaitlib.quantize.bit_control import FOLLOW_RATE, normal_clipping
from gaitlib.quantize.bit_operations import bops_table, disk_bits
from gaitlib.quantize.grid import step_size
from gaitlib.quantize.quantizer import Quantizer, _FakeQuantize

SCHEDULE = {"start_pruning_step": 3, "pruning_steps": 6, "pruning_periods": 2}
PRUNING = SCHEDULE | {"variant": "adamw", "lr": 0.02, "target_macs": 0.5}
#: float to step 11, ranges that follow to 14, learned ones to the end
LATE = {"order": "float_first", "start_bits_step": 11, "learn_ranges_step": 14}
BITS = {"min_bit_wt": 2, "max_bit_wt": 6, "min_bit_act": 5, "max_bit_act": 8, "bit_reduction": 2}
SETTINGS = PRUNING | LATE | BITS | {"lr_quant": 1e-2, "uniform": True}
TOTAL = 18


def build(quantize="weights_and_activations", **settings):
    return quantized(quantize, **SETTINGS | settings)


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
@pytest.mark.parametrize("shrink", [True, False])
def test_until_bits_begin_it_is_hesso_bit_for_bit(variant, shrink):
    model, _, ours = build(variant=variant, shrink=shrink, clipping="tensor")
    plain = nets.build(ARCHITECTURE)
    cfg = nets.hesso_settings(**PRUNING | {"variant": variant, "shrink": shrink})
    theirs = build_hesso(nets.traced(plain), cfg)
    train(model, ours, 0, 11)
    train(plain, theirs, 0, 11)
    state = {n: v for n, v in model.state_dict().items() if not n.startswith("quantization.")}
    assert same(state, plain.state_dict())
    assert ours.importance().equals(theirs.importance()) and ours.cost_share <= 0.5
    train(model, ours, 11, 12)
    train(plain, theirs, 11, 12)
    assert not torch.equal(model.FCs.fc_bin, plain.FCs.fc_bin)


def test_bits_are_whole_from_the_switch_on_and_nothing_is_rounded_before():
    model, _, optimizer = build()
    quantization = model.quantization
    for step in range(TOTAL):
        assert all(q.enabled == (step >= 11) for q in quantization.quantizers())
        learns = {q.q_m.requires_grad for q in quantization.quantizers()}
        assert learns == {step >= 11}
        train(model, optimizer, step, step + 1)
        row, phase = optimizer.bits_row(), optimizer.control.plan.phase(step + 1)
        assert row.pop("outside") == 0
        if step + 1 < 11:
            assert phase == "float" and all(value != value for value in row.values())
            continue
        for name, bits in row.items():  # by hand: one period lowers 6 by 2 and 8 by 2
            assert bits == pytest.approx(4 if name.startswith("weights") else 6, abs=1e-3), name
    assert phase == "bits"


def test_ranges_follow_and_are_then_learned(monkeypatch):
    monkeypatch.setattr(late_bits, "OBSERVED_STEPS", 3)
    model, _, optimizer = build()
    quantization = model.quantization
    inputs = list(quantization.input_quantizers.values())
    first = [q.q_m.item() for q in inputs]
    seen = []
    for step in range(TOTAL):
        before = [q.q_m.item() for q in inputs]
        train(model, optimizer, step, step + 1)
        if step + 1 <= 8:
            assert [q.q_m.item() for q in inputs] == first  # not observed yet
            continue
        now = [q.q_m.item() for q in inputs]
        if step + 1 <= 11:  # the running mean of the steps 9, 10 and 11
            seen.append([q.seen_range().item() for q in inputs])
            mean = torch.tensor(seen).mean(0)
            torch.testing.assert_close(torch.tensor(now), mean, rtol=1e-4, atol=1e-6)
        elif step + 1 <= 14:
            moved = [
                then + FOLLOW_RATE * (q.seen_range().item() - then)
                for q, then in zip(inputs, before, strict=True)
            ]
            assert now == pytest.approx(moved, rel=2e-2)  # the optimizer moves them by 1 % first
        named = dict(model.named_parameters())
        at = [
            q.q_m.item()
            == pytest.approx(normal_clipping(named[n], torch.tensor(4.0)).item(), rel=1e-4)
            for n, q in quantization.weight_quantizers.items()
        ]
        if step + 1 >= 11:
            assert all(at) == (step + 1 <= 14)
            # Adam's step is its rate: in logarithms, the same share of any range
            learned = [abs(torch.tensor(a / b).log().item()) for a, b in zip(now, before)]  # noqa: B905
            assert step + 1 <= 14 or max(learned) < 2.5e-2


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_channels_get_like_ranges_and_the_float_network_stays(variant):
    networks, optimizers = [], []
    for clipping in ("tensor", "channel"):
        keys = {"variant": variant, "lr": 1e-3, "first_momentum": 0.9}
        model, _, optimizer = build(**keys, clipping=clipping)
        with torch.no_grad():  # channels of unlike range
            for block in (model.Backbone.forward_block.layer2[0], model.Backbone.forward_block):
                weight = next(block.conv1.parameters())
                weight.mul_(torch.logspace(-1, 0, len(weight)).reshape(-1, 1, 1, 1))
        train(model, optimizer, 0, 11)
        networks.append(model)
        optimizers.append(optimizer)
    plain, scaled = (dict(model.named_parameters()) for model in networks)
    ranges, errors = [], []
    for model in networks:
        with model.quantization.disabled():
            ranges.append(model.eval()(clips(5)).embeddings)
        errors.append((model(clips(5)).embeddings - ranges[0]).square().mean().item())
    torch.testing.assert_close(ranges[1], ranges[0], rtol=1e-3, atol=1e-4)
    assert errors[1] < errors[0]
    moments = {"sgd": {"momentum_buffer": 1}, "adamw": {"exp_avg": 1, "exp_avg_sq": 2}}[variant]
    changed = 0
    for name, q in networks[1].quantization.weight_quantizers.items():
        share = (plain[name] / scaled[name]).nan_to_num(1.0)
        changed += not torch.equal(plain[name], scaled[name])
        torch.testing.assert_close(share, share[:, :1, :1].expand_as(share), rtol=1e-3, atol=1e-5)
        four = torch.tensor(4.0)
        assert q.q_m.item() == pytest.approx(normal_clipping(scaled[name], four).item())
        for key, power in moments.items():
            ours, theirs = (
                o.state[p[name]][key] for o, p in zip(optimizers, (plain, scaled), strict=True)
            )
            torch.testing.assert_close(ours * share**power, theirs, rtol=1e-3, atol=1e-9)
    assert changed == 9  # all convolutions, no head


@pytest.mark.parametrize("t", [1.0, 1.3])
def test_gradients_of_ranges_include_the_step_that_follows_them(t):
    quantizer = Quantizer(4, 0.9, uniform=t == 1.0).double()
    quantizer.t.data.fill_(t)
    quantizer.d.data.copy_(step_size(4.0, quantizer.q_m, quantizer.t))
    x, u = torch.randn(200).double(), torch.randn(200).double()
    (u * quantizer(x)).sum().backward()
    q_m, exponent = (p.detach().clone().requires_grad_() for p in (quantizer.q_m, quantizer.t))
    d = q_m**exponent / 7  # as a function of the two
    (u * _FakeQuantize.apply(x, d, q_m, exponent, True)).sum().backward()
    control = late_bits.LateBits.__new__(late_bits.LateBits)
    control.quantizers = [quantizer]
    control.complete_gradients()
    torch.testing.assert_close(quantizer.q_m.grad, q_m.grad)
    if t != 1.0:
        torch.testing.assert_close(quantizer.t.grad, exponent.grad)


@pytest.mark.parametrize("quantize", ["weights", "weights_and_activations"])
@pytest.mark.parametrize("key", ["target_bops", "target_bytes"])
def test_a_budget_for_bits_is_kept_by_the_compressed_network(key, quantize):
    floats = quantize == "weights"
    share = {"target_bops": 0.09 if floats else 0.015, "target_bytes": 0.085}[key]
    settings = {key: share, "shrink": False}
    model, graph, optimizer = build(quantize, **settings)
    dense = nets.build(ARCHITECTURE)
    table = layer_table(dense)
    macs = table.loc[table.layer.str.startswith("Backbone"), "macs"].sum()
    wanted = {"target_bops": 1024 * macs, "target_bytes": disk_bits(dense, {}) / 8}[key]
    assert budget_terms(key, share, dense)["dense"] == wanted
    train(model, optimizer, 0, 13)
    small = construct_compressed_model(graph, model).model
    weights, inputs = model.quantization.grids()
    weight_bits = {n: g.bits for n, g in weights.items()}
    table = bops_table(layer_table(small), weight_bits, {n: g.bits for n, g in inputs.items()})
    reached = {
        "target_bops": table.loc[table.per == "frame", "bops"].sum(),
        "target_bytes": disk_bits(small, weight_bits) / 8,
    }[key]
    assert reached <= share * wanted
    assert reached > 0.93 * share * wanted and len(set(weight_bits.values())) > 1
    assert min(weight_bits.values()) >= 2 and max(weight_bits.values()) <= 6


def test_more_sensitive_weights_of_equal_cost_get_no_fewer_bits():
    model, _, optimizer = build(target_bytes=0.075)
    train(model, optimizer, 0, 10)
    weights = {n: model.get_parameter(n) for n in optimizer.control.positions}
    budget = optimizer.control.budget
    equal = dict.fromkeys(model.quantization.input_quantizers, 6)
    factors = [1.0] * len(weights)
    before = budget.choose(weights, equal, factors)
    place = before.index(min(before))
    after = budget.choose(weights, equal, [1e6 if i == place else 1.0 for i in range(len(factors))])
    assert after[place] > before[place]
    # the squares that it gathers are the raw gradients'
    squares = optimizer.control.squares.clone()
    train(model, optimizer, 10, 11)
    assert len(squares) == len(weights) and (optimizer.control.squares > squares).all()
    errors = [squared_error(next(iter(weights.values())), bits) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


def test_a_budget_out_of_reach_is_refused_or_comes_as_near_as_it_can(caplog):
    with pytest.raises(
        ValueError, match=r"target_bops 0.001 means .* needs at least .* min_bit_wt 2"
    ):
        build(target_bops=0.001)
    model, _, optimizer = build(target_bytes=100.0)  # what pruning leaves is not known before
    train(model, optimizer, 0, 11)
    assert set(optimizer.control.whole[:11].tolist()) == {2.0}
    assert "target_bytes 100 means 100 bytes, and this network has at least" in caplog.text


@pytest.mark.parametrize("stop", [4, 9, 10, 11, 13, 16])
def test_a_run_resumed_in_any_phase_is_the_uninterrupted_one_bit_for_bit(stop):
    check_resume(stop, TOTAL, **SETTINGS, target_bops=0.015)


def test_a_skipped_step_delays_the_switch_by_one():
    model, _, optimizer = build()
    train(model, optimizer, 0, 10)
    optimizer.skip_step()
    assert not optimizer.control.rounds
    train(model, optimizer, 11, 12)
    assert optimizer.control.rounds
    train(model, optimizer, 12, TOTAL)
