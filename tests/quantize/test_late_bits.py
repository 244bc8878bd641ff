"""Float first, bits late: HESSO until the switch, whole bits after it."""

import copy
import io

import nets
import pytest
import torch
from nets import geta_settings, hesso_settings, traced
from torch import nn

from gaitlib.deploy.cut_network import construct_compressed_model
from gaitlib.model.network_cost import layer_table
from gaitlib.prune.hesso import build_hesso
from gaitlib.quantize import late_bits
from gaitlib.quantize.bit_budget import dense_cost, squared_error
from gaitlib.quantize.bit_control import FOLLOW_RATE, normal_clipping
from gaitlib.quantize.bit_history import bits_row
from gaitlib.quantize.bit_operations import bops_table, disk_bits
from gaitlib.quantize.geta import build_geta
from gaitlib.quantize.grid import step_size
from gaitlib.quantize.quantization import calibrate, quantize_network
from gaitlib.quantize.quantizer import Quantizer, _FakeQuantize

ARCHITECTURE = nets.resnet(4, 8, 8, embedding=6)
PRUNING = {
    "variant": "adamw",
    "lr": 0.02,
    "target_macs": 0.5,
    "start_pruning_step": 3,
    "pruning_steps": 6,
    "pruning_periods": 2,
}
#: float to step 11, ranges that follow to 14, learned ones to the end
SETTINGS = PRUNING | {
    "order": "float_first",
    "start_bits_step": 11,
    "learn_ranges_step": 14,
    "min_bit_wt": 2,
    "max_bit_wt": 6,
    "bit_reduction": 2,
    "min_bit_act": 5,
    "max_bit_act": 8,
    "lr_quant": 1e-2,
    "uniform": True,
}
TOTAL = 18


def clips(seed):
    return nets.clips(4, 2, 32, 22, seed=seed)


def build(seed=0, **settings):
    """Return a network with quantizers, its graph and its GETA."""
    model = nets.build(ARCHITECTURE, seed)
    quantization = quantize_network(model, "weights_and_activations")
    calibrate(model, quantization, [clips(100 + seed)])
    graph = traced(model)
    return model, graph, build_geta(graph, geta_settings(**SETTINGS | settings), quantization)


def train(model, optimizer, start, stop, schedule=None):
    labels = torch.tensor([0, 0, 1, 1])[:, None].expand(-1, 3)
    for step in range(start, stop):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(8 * model.train()(clips(step)).logits, labels).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
@pytest.mark.parametrize("shrink", [True, False])
def test_until_bits_begin_it_is_hesso_bit_for_bit(variant, shrink):
    model, _, ours = build(variant=variant, shrink=shrink, clipping="tensor")
    plain = nets.build(ARCHITECTURE)
    cfg = hesso_settings(**PRUNING | {"variant": variant, "shrink": shrink})
    theirs = build_hesso(traced(plain), cfg)
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
        row = bits_row(optimizer)
        bits = {kind: [v for k, v in row.items() if k.startswith(f"{kind}:")] for kind in
                ("weights", "activations")}  # fmt: skip
        if step + 1 < 11:
            assert optimizer.phase == "float" and all(v != v for v in bits["weights"])
            assert row["weights_min"] != row["weights_min"]
            continue
        # by hand: one period lowers 6 by 2 and 8 by 2
        assert bits["weights"] == pytest.approx([4] * 11, abs=1e-3)
        assert bits["activations"] == pytest.approx([6] * 9, abs=1e-3)
        assert (row["weights_min"], row["weights_max"], row["outside"]) == (4, 4, 0)
    assert optimizer.phase == "bits"
    fixed = build(bit_reduction=None, min_bit_wt=None, target_bits=3)[2]
    assert fixed.control.plan.weights.least == fixed.control.plan.weights.most == 3


def test_ranges_follow_and_are_then_learned(monkeypatch):
    monkeypatch.setattr(late_bits, "OBSERVED_STEPS", 3)
    model, _, optimizer = build()
    quantization, named = model.quantization, dict(model.named_parameters())
    inputs = list(quantization.activations.values())
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
            for n, q in quantization.weights.items()
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
    for name, q in networks[1].quantization.weights.items():
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
    model = nn.Module()
    quantizer = Quantizer(4, 0.9, uniform=t == 1.0).double()
    quantizer.t.data.fill_(t)
    quantizer.d.data.copy_(step_size(4.0, quantizer.q_m, quantizer.t))
    x, u = torch.randn(200).double(), torch.randn(200).double()
    (u * quantizer(x)).sum().backward()
    q_m, exponent = (p.detach().clone().requires_grad_() for p in (quantizer.q_m, quantizer.t))
    d = q_m**exponent / 7  # as a function of the two
    (u * _FakeQuantize.apply(x, d, q_m, exponent, True)).sum().backward()
    control = late_bits.LateBits.__new__(late_bits.LateBits)
    control.quantizers, model.q = [quantizer], quantizer
    control.complete_gradients()
    torch.testing.assert_close(quantizer.q_m.grad, q_m.grad)
    if t != 1.0:
        torch.testing.assert_close(quantizer.t.grad, exponent.grad)


@pytest.mark.parametrize("quantize", ["weights", "weights_and_activations"])
@pytest.mark.parametrize("key", ["target_bops", "target_bytes"])
def test_a_budget_for_bits_is_kept_by_the_compressed_network(key, quantize):
    floats = quantize == "weights"
    share = {"target_bops": 0.09 if floats else 0.015, "target_bytes": 0.085}[key]
    settings = {key: share, "shrink": False} | ({"quantize": quantize} if floats else {})
    model = nets.build(ARCHITECTURE)
    quantization = quantize_network(model, quantize)
    calibrate(model, quantization, [clips(100)])
    graph = traced(model)
    optimizer = build_geta(graph, geta_settings(**SETTINGS | settings), quantization)
    dense = copy.deepcopy(nets.build(ARCHITECTURE))
    table = layer_table(dense)
    macs = table.loc[table.layer.str.startswith("Backbone"), "macs"].sum()
    wanted = {"target_bops": 1024 * macs, "target_bytes": disk_bits(dense, {}) / 8}[key]
    assert dense_cost(key, dense) == wanted
    train(model, optimizer, 0, 13)
    small = construct_compressed_model(graph, model).model
    weights, inputs = quantization.grids()
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
    equal = dict.fromkeys(optimizer.control.quantization.activations.keys(), 6)
    factors = [1.0] * len(weights)
    before = budget.choose(weights, equal, factors)
    place = before.index(min(before))
    after = budget.choose(weights, equal, [1e6 if i == place else 1.0 for i in range(len(factors))])
    assert after[place] > before[place]
    # the squares that it gathers are the raw gradients'
    squares = optimizer.control.squares.clone()
    train(model, optimizer, 10, 11)
    names = list(weights)
    assert optimizer.control.whole is not None and len(squares) == len(names)
    assert (optimizer.control.squares > squares).all()
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
    def begin(seed):
        model, _, optimizer = build(seed, target_bops=0.015)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)

    model, optimizer, schedule = begin(0)
    train(model, optimizer, 0, stop, schedule)
    file = io.BytesIO()
    parts = {"optimizer": optimizer, "model": model, "schedule": schedule}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    train(model, optimizer, stop, TOTAL, schedule)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed, again = begin(5)
    resumed.load_state_dict(saved["optimizer"])  # first: channels leave with it
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["schedule"])
    train(other, resumed, stop, TOTAL, again)
    assert same(model.state_dict(), other.state_dict())
    assert torch.equal(optimizer.control.whole, resumed.control.whole)


def test_a_skipped_step_delays_the_switch_by_one():
    model, _, optimizer = build()
    train(model, optimizer, 0, 10)
    optimizer.skip_step()
    assert not optimizer.control.rounds
    train(model, optimizer, 11, 12)
    assert optimizer.control.rounds
    train(model, optimizer, 12, TOTAL)
    assert optimizer.control.outside == 0
