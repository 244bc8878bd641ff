import copy
import os

import pytest
import torch
from geta_runs import ARCHITECTURE, LABELS, check_resume, clips, network, same, train
from geta_runs import quantized as quantized_with
from nets import fill_gradients, geta_settings, traced
from torch import nn

from gaitlib.deploy.cut_network import construct_compressed_model, export_embedding
from gaitlib.deploy.network_file import load_network
from gaitlib.model.float_state import quantization_of
from gaitlib.prune.base_optimizer import next_move
from gaitlib.prune.hesso import HESSO
from gaitlib.quantize.bit_control import normal_clipping
from gaitlib.quantize.bit_settings import ProjectionSchedule
from gaitlib.quantize.geta import build_geta
from gaitlib.quantize.grid import Grid, bit_width, step_size
from gaitlib.quantize.quantization import quantize_network

VARIANTS = ["sgd", "adam", "adamw"]
#: warm-up to step 3, projection to 9, joint to 17, cool-down to 20
BASE = {"variant": "sgd", "lr": 0.05, "first_momentum": 0.9, "weight_decay": 5e-4}
PRUNING = {"start_pruning_step": 9, "pruning_steps": 8, "pruning_periods": 2}
PROJECTION = {"start_projection_step": 3, "projection_steps": 4, "projection_periods": 2}
BITS = {"min_bit_wt": 4, "max_bit_wt": 12, "min_bit_act": 5, "max_bit_act": 10, "bit_reduction": 3}
SETTINGS = BASE | PRUNING | PROJECTION | BITS | {"target_group_sparsity": 0.5, "lr_quant": 1e-3}
TOTAL = 20


def quantized(quantize="weights_and_activations", **settings):
    return quantized_with(quantize, **SETTINGS | settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_scalars_each_move_as_torchs_optimizer_at_their_own_rate(variant):
    settings = {"variant": variant, "target_group_sparsity": 0.0, "lr_quant": 1e-5}
    model, _, optimizer = quantized(bits=6, **settings, start_projection_step=5)
    twin = copy.deepcopy(model)
    named = dict(twin.named_parameters())
    scalars = [p for name, p in named.items() if name.startswith("quantization.")]
    weights = [p for name, p in named.items() if not name.startswith("quantization.")]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[variant]
    common = {"momentum": 0.9} if variant == "sgd" else {}
    plain = kind(weights, lr=0.05, weight_decay=5e-4, **common)
    constant = kind(scalars, lr=1e-5, weight_decay=0.0, **common)
    schedules = [torch.optim.lr_scheduler.MultiStepLR(o, [2, 4], 0.1) for o in (optimizer, plain)]
    for step in range(5):
        for m in (model, twin):
            fill_gradients(m, step, 1e-3)
        optimizer.step()
        plain.step()
        constant.step()
        for schedule in schedules:
            schedule.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=1e-5, atol=1e-8, msg=name)


# --- bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_keeps_its_interval_at_every_step(variant):
    model = network()  # two of its weights, in one group, differ a thousandfold in range
    model.Backbone.forward_block.layer2[0].downsample[0].weight.data.mul_(1e-3)
    _, _, optimizer = quantized(model=model, variant=variant)
    quantization = model.quantization
    # by hand: projection 4..9 shrinks at its steps 2 and 4, down to 12 - 2 * 3 and max(10 - 6, 5)
    upper = {**dict.fromkeys((4,), (12, 10)), **dict.fromkeys((5, 6), (9, 7))}
    phases = ["warm-up"] * 3 + ["projection"] * 6 + ["joint"] * 8 + ["cool-down"] * 3
    for step in range(1, TOTAL + 1):
        train(model, optimizer, step, step + 1)
        assert optimizer.control.plan.phase(optimizer.num_steps) == phases[step - 1]
        table = quantization.bits()
        if step <= 3:
            continue
        most = upper.get(step, (6, 5))
        for kind, low, high in (("weights", 4, most[0]), ("activations", 5, most[1])):
            bits = table[table.kind == kind].bits
            assert bits.min() >= low - 1e-3 and bits.max() <= high + 1e-3, (step, kind)
        if step > 17:
            assert (table.bits - table.bits.round()).abs().max() < 1e-3
        assert (table[["d", "q_m", "t"]] > 0).all(axis=None)


def test_bits_shrink_at_the_end_of_each_period():
    schedule = ProjectionSchedule(start=3, steps=10, periods=5)
    assert [schedule.shrinks_by(k) for k in (3, 4, 5, 12, 13, 14, 99)] == [0, 0, 1, 4, 5, 5, 5]
    assert ProjectionSchedule(0, 11, 4).shrinks_by(8) == 4  # a remainder is left at the end


def test_target_bits_is_where_all_weights_end():
    keys = {"min_bit_wt": None, "bit_reduction": None, "target_bits": 3}
    model, _, optimizer = quantized(**keys)
    train(model, optimizer, 0, 7)
    table = model.quantization.bits()
    assert table[table.kind == "weights"].bits.tolist() == pytest.approx([3] * 11, abs=1e-3)
    assert table[table.kind == "activations"].bits.max() > 9  # whose bounds stay
    train(model, optimizer, 7, TOTAL)
    weights, activations = model.quantization.grids()
    assert {g.bits for g in weights.values()} == {3}
    assert all(5 <= g.bits <= 10 for g in activations.values())


def test_whole_bits_are_the_nearest_and_a_skipped_step_does_not_lose_them():
    model, _, optimizer = quantized()
    train(model, optimizer, 0, 17)
    before = quantization_of(model).bits().bits
    assert (before - before.round()).abs().max() > 0.01
    optimizer.skip_step()  # the first of cool-down
    train(model, optimizer, 18, TOTAL)
    after = quantization_of(model).bits().bits
    assert after.tolist() == pytest.approx(before.round().tolist(), abs=1e-3)


def test_scalars_stay_positive_under_any_gradient():
    for sign in (1, -1):
        model, _, optimizer = quantized(lr_quant=1e2)
        for step in range(TOTAL):
            fill_gradients(model, step)
            for quantizer in quantization_of(model).quantizers():
                for scalar in (quantizer.d, quantizer.q_m, quantizer.t):
                    scalar.grad.fill_(sign * 1e3)
            optimizer.step()
            values = quantization_of(model).bits()[["bits", "d", "q_m", "t"]].to_numpy()
            assert (values > 0).all() and (values < float("inf")).all()
            assert values[:, 0].min() > 0.999 and values[:, 0].max() < 24.001


# --- pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("quantize", ["weights", "weights_and_activations"])
def test_exactly_k_channels_are_zero_at_the_end(variant, quantize):
    model, graph, optimizer = quantized(quantize, variant=variant, target_group_sparsity=0.3)
    expected = int(graph.num_channels * 0.3) / graph.num_channels
    train(model, optimizer, 0, 17)
    assert optimizer.group_sparsity() == expected == graph.group_sparsity()
    train(model, optimizer, 17, TOTAL)
    assert optimizer.group_sparsity() == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_redundant_channels_move_by_s_and_all_others_by_the_base_step(variant):
    model, graph, optimizer = quantized(variant=variant, lr_quant=1e-9)
    train(model, optimizer, 0, 9)
    fill_gradients(model, 9)
    named = dict(model.named_parameters())
    quantizers = quantization_of(model).weight_quantizers
    before = {name: p.detach().clone() for name, p in named.items()}
    old_d = {name: q.d.item() for name, q in quantizers.items()}
    moves = {
        name: next_move(p, group, optimizer.state.get(p, {}), variant)
        for group in optimizer.param_groups
        for name, p in zip(group["p_names"], group["params"], strict=True)
    }
    decay = 1 - 0.05 * 5e-4 if variant == "adamw" else 1.0
    optimizer.step()
    shrunk = 0
    for group in graph.prunable():
        redundant = optimizer.pruner.redundant[group.id]
        gammas = []
        for name in group.names:
            loss = decay * before[name] - 0.05 * moves[name] - named[name].detach()
            important = sorted(set(range(group.channels)) - set(redundant))
            assert loss[important].abs().max() < 1e-6, name
            if not redundant:
                continue
            x = before[name][redundant]
            if name in quantizers:
                q = quantizers[name]
                c = x.abs().clamp(max=q.q_m.item()) ** q.t.item()
                residual = (c / old_d[name]).round() - c / old_d[name]
                x = x.sign() * (c + q.d.item() * residual)
            gammas.append((loss[redundant] * x).sum() / x.square().sum())
            torch.testing.assert_close(loss[redundant], gammas[-1] * x, rtol=1e-3, atol=1e-5)
            shrunk += 1
        assert all(g == pytest.approx(gammas[0].item(), abs=1e-3) for g in gammas)
        assert not gammas or 0 <= gammas[0] <= 1 / 3 + 1e-3  # three steps are left
    assert shrunk


def test_a_group_without_quantized_layers_shrinks_as_in_hesso():
    model, graph, _ = quantized()
    quantization_of(model).remove("Backbone")
    assert list(quantization_of(model).weight_quantizers) == ["FCs.fc_bin", "BNNecks.fc_bin"]
    optimizer = build_geta(graph, geta_settings(**SETTINGS | {"lr": 1e-9}), quantization_of(model))
    train(model, optimizer, 0, 9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, 9, 10)
    row = optimizer.importance().query("state == 'chosen'").iloc[0]
    weight = f"{row.group}.weight"
    now = model.get_parameter(weight).detach()[row.channel]
    torch.testing.assert_close(now, 2 / 3 * before[weight][row.channel], rtol=1e-4, atol=1e-6)
    train(model, optimizer, 10, TOTAL)
    assert optimizer.group_sparsity() == 0.5


def test_parameters_without_a_gradient_are_forgotten_too():
    model, _, optimizer = quantized()
    for step in range(TOTAL):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model.train()(clips(step)).logits, LABELS).backward()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.grad = None
        optimizer.step()
    assert optimizer.group_sparsity() == 0.5


# --- ranges that follow ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_numbers_are_clipped_where_their_rounding_error_is_least(bits):
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    errors = {}
    for q_m in torch.linspace(1.0, 4.5, 71).tolist():
        grid = Grid(step_size(bits, q_m, 1.0), q_m, 1.0, bits, True)
        errors[q_m] = (grid.fake(weight) - weight).square().mean().item()
    chosen = normal_clipping(weight, torch.tensor(float(bits))).item()
    nearest = min(errors, key=lambda q_m: abs(q_m - chosen))
    assert errors[nearest] < 1.01 * min(errors.values())
    with_zeros = torch.cat([weight, torch.zeros_like(weight)])
    assert normal_clipping(with_zeros, torch.tensor(float(bits))).item() == pytest.approx(chosen)
    few = torch.tensor([1.0, -1.0])
    assert normal_clipping(few, torch.tensor(float(bits))).item() == 1.0  # never above max |w|


@pytest.mark.parametrize("target", [{}, {"target_group_sparsity": None, "target_macs": 0.5}])
def test_ranges_follow_until_pruning_ends_and_are_learned_afterwards(target):
    """Those of the inputs follow as in test_late_bits."""
    model, _, optimizer = quantized(variant="adamw", ranges="follow", **target)
    quantizers = quantization_of(model).weight_quantizers
    for step in range(1, TOTAL + 1):
        with torch.no_grad():
            for layer in (model.Backbone, model.FCs):  # weights that grow beyond their first range
                for p in layer.parameters():
                    p.mul_(1.1)
        size = sum(p.numel() for p in model.parameters())
        train(model, optimizer, step - 1, step)
        if sum(p.numel() for p in model.parameters()) < size:
            continue  # channels have left, and with them entries of the weights that read them
        bits = quantization_of(model).bits()["bits"].tolist()
        at = [
            q.q_m.item()
            == pytest.approx(normal_clipping(model.get_parameter(n), torch.tensor(b)).item(), 1e-2)
            for (n, q), b in zip(quantizers.items(), bits, strict=False)
        ]
        assert all(at) == (step <= SETTINGS["start_pruning_step"] + SETTINGS["pruning_steps"])


# --- resuming and scaling --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "variant", "ranges"),
    [
        *[(stop, variant, "learned") for stop in (2, 5, 8, 11, 15, 18) for variant in VARIANTS],
        *[(stop, "adamw", "follow") for stop in (2, 15, 18)],
    ],
)
def test_a_run_resumed_in_any_phase_is_the_uninterrupted_one_bit_for_bit(stop, variant, ranges):
    check_resume(stop, TOTAL, **SETTINGS | {"variant": variant, "ranges": ranges})


def test_a_state_with_other_bits_is_refused():
    model, _, optimizer = quantized()
    other = quantized(min_bit_act=6)[2]
    with pytest.raises(ValueError, match="of another bit plan.*'min_bit_act': .5, 6"):
        other.load_state_dict(optimizer.state_dict())


def test_a_grad_scaler_unscales_the_scalars_and_sees_their_infinities():
    runs = []
    for scaled in (False, True):
        model, _, optimizer = quantized()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        scale = scaler.scale(torch.ones(()))
        for step in range(3):
            fill_gradients(model, step)
            for p in model.parameters():
                p.grad.mul_(scale)
            scaler.step(optimizer)
            scaler.update()
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], msg=name)
    fill_gradients(model, 9)
    quantization_of(model).weight_quantizers["FCs.fc_bin"].q_m.grad.fill_(torch.inf)
    scaler.step(optimizer)
    assert optimizer.num_steps == 3 and same(runs[1], model.state_dict())


def _rank(rank, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meeting", rank=rank, world_size=2
    )
    model, _, optimizer = quantized(variant="adam")
    for step in range(TOTAL):
        fill_gradients(model, 1000 * rank + step)  # each rank sees its own
        optimizer.step()
    quantizers = quantization_of(model).quantizers()
    decided = {
        "pruned": optimizer.pruner.pruned,
        "whole": optimizer.control.whole.tolist(),
        "d": [q.d.item() for q in quantizers],
        "q_m": [q.q_m.item() for q in quantizers],
    }
    torch.save(decided, path / f"{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads have been seen to abort a process at its ordinary end


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_all_ranks_do_what_rank_0_decides(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert sum(map(len, first["pruned"].values())) > 0
    assert all(first[name] == second[name] for name in ("pruned", "whole", "d"))
    assert first["q_m"] != second["q_m"]  # what DDP's averaged gradients would make equal


# --- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [TOTAL, 12])
def test_full_equals_compressed_and_loads_again(steps, tmp_path):
    model, graph, optimizer = quantized(variant="adam", lr=0.01)
    train(model, optimizer, 0, steps)
    state = copy.deepcopy(model.state_dict())
    result = construct_compressed_model(graph, model, tmp_path, architecture=ARCHITECTURE)
    assert same(state, model.state_dict())
    assert result.max_error < 1e-10 and (steps < TOTAL or result.group_sparsity == 0.5)
    assert result.full_params == sum(p.numel() for p in network().parameters())
    bits = quantization_of(result.model).bits().bits
    assert bits.tolist() == pytest.approx(bits.round().tolist(), abs=1e-3)
    x = clips(7)
    loaded = load_network(result.path)
    assert torch.equal(loaded(x).embeddings, result.model(x).embeddings)
    if steps == TOTAL:  # bits are whole: training computed just this
        full = model.eval().double()
        torch.testing.assert_close(
            result.model.double()(x.double()).embeddings, full(x.double()).embeddings
        )
    grids = quantization_of(loaded).grids()[0]
    assert grids.keys() == quantization_of(model).grids()[0].keys()
    for name, grid in grids.items():
        weight = loaded.get_parameter(name)
        assert torch.equal(grid.fake(weight), weight), name
    raw = torch.load(next(tmp_path.glob("full_*.pt")), weights_only=True)
    network().load_state_dict(raw)  # float keys alone
    path = export_embedding(result.path, tmp_path / "embedding")
    small = load_network(path)
    assert torch.equal(small(x).embeddings, loaded(x).embeddings)
    assert "BNNecks.fc_bin" not in quantization_of(small).weight_quantizers


def test_quantizers_and_settings_belong_together():
    assert type(build_geta(traced(network()), geta_settings())) is HESSO
    model, cfg = network(), geta_settings(**SETTINGS)
    quantization = quantize_network(model)
    for graph, settings, given in (
        (traced(network()), cfg, None),
        (traced(network()), cfg, quantization),
        (traced(model), geta_settings(), quantization),
    ):
        with pytest.raises(ValueError, match="quantizers and keys of bits go together"):
            build_geta(graph, settings, given)
    with pytest.raises(ValueError, match=r"quantize_network\(model, 'weights'\)"):
        build_geta(traced(model), geta_settings(**SETTINGS, quantize="weights"), quantization)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_ends_at_its_targets():
    model, _, optimizer = quantized(model=network().cuda(), variant="adamw")
    scaler = torch.amp.GradScaler("cuda")
    for step in range(TOTAL):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            logits = model.train()(clips(step).cuda()).logits
        scaler.scale(nn.functional.cross_entropy(logits.float(), LABELS.cuda())).backward()
        taken = optimizer.num_steps
        scaler.step(optimizer)
        scaler.update()
        if optimizer.num_steps == taken:
            optimizer.skip_step()
    assert optimizer.group_sparsity() == 0.5
    bits = bit_width(*model.quantization.scalars())
    torch.testing.assert_close(bits, bits.round(), rtol=0, atol=1e-3)
    assert construct_compressed_model(traced(model), model).max_error < 1e-10
