import copy
import functools
import io

import pytest
import torch
from nets import (
    EXAMPLE,
    build,
    fill_gradients,
    hesso_section,
    hesso_settings,
    plain,
    resnet,
    run_steps,
    traced,
)

from gaitlib.prune import oto
from gaitlib.prune.base_optimizer import next_move
from gaitlib.prune.channel_rules import SparsityRule
from gaitlib.prune.hesso import HESSO, build_hesso
from gaitlib.prune.importance import PROXIES, proxies, weigh
from gaitlib.prune.schedules import PruningSchedule


def network(*layers, seed=0):
    return build(plain(*(layers or ("FC-4-2", "BC-8", "M", "FC-8-3", "BC-12"))), seed)


def residual(seed=0):
    return build(resnet(8, 8, 8), seed)


def begin(make=network, **keys):
    """Return a network and the optimizer that prunes it."""
    model = make()
    return model, build_hesso(traced(model), hesso_settings(**{"lr": 0.05} | keys))


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# --- against only_train_once -----------------------------------------------------------------


def fill_kind_gradients(model, start, step):
    """Noise, and a pull along the first weights: every cosine proxy of a living channel is > 1.

    A removed channel's is 1, so it has the lowest scores, and the package's cut by index (D16)
    removes the same channels as a cut by score.
    """
    fill_gradients(model, step)
    for p, first in zip(model.parameters(), start, strict=True):
        p.grad.mul_(0.1).add_(first, alpha=0.1)


@pytest.mark.parametrize("make, momentum", [(network, 0.0), (residual, 0.9)])
@pytest.mark.parametrize(
    "start, steps, periods", [(0, 12, 3), (2, 13, 3), (3, 4, 1), (2, 4, 2), (0, 3, 3), (3, 3, 3)]
)
def test_sgd_is_the_packages_step_for_step(make, momentum, start, steps, periods):
    keys = {"lr": 0.1, "weight_decay": 5e-4, "first_momentum": momentum}
    keys |= {"start_pruning_step": start, "pruning_steps": steps, "pruning_periods": periods}
    cfg = hesso_settings(target_group_sparsity=0.25, **keys)
    ours, theirs = make(), make()
    for model in (ours, theirs):  # no layer is chosen whole, where the package cuts by index too
        next(model.parameters()).data.mul_(3)
    first = [p.detach().clone() for p in ours.parameters()]
    optimizer = build_hesso(traced(ours), cfg)
    package = oto.package_hesso(traced(theirs), cfg)
    for step in range(start + steps + 3):
        for model, opt in ((ours, optimizer), (theirs, package)):
            if step == start + 3:
                for group in opt.param_groups:
                    group["lr"] *= 0.1
            fill_kind_gradients(model, first, step)
            opt.step()
        for id_, channels in optimizer.pruner.pruned.items():
            assert sorted(channels) == sorted(package.pruned_idxes[id_]), step
            active = package.active_redundant_idxes[id_]
            assert sorted(optimizer.pruner.redundant[id_]) == sorted(active), step
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert optimizer.group_sparsity() == pytest.approx(package.curr_group_sparsity)
    assert optimizer.pruner.num_pruned == package.target_num_redundant_groups > 0


# --- the optimizer underneath ----------------------------------------------------------------

VARIANTS = {
    "sgd": (torch.optim.SGD, {"first_momentum": 0.9}, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}, {}),
    "adamw": (torch.optim.AdamW, {}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_sparsity_it_is_torchs_optimizer(variant):
    kind, settings, theirs = VARIANTS[variant]
    common = {"lr": 0.01, "weight_decay": 0.02}
    model, optimizer = begin(variant=variant, target_group_sparsity=0.0, **common, **settings)
    twin = copy.deepcopy(model)
    plain = kind(twin.parameters(), **common, **theirs)
    for opt, m in ((optimizer, model), (plain, twin)):
        schedule = torch.optim.lr_scheduler.MultiStepLR(opt, [2, 4])
        for step in range(6):
            opt.zero_grad(set_to_none=True)
            fill_gradients(m, step)
            opt.step()
            schedule.step()
    assert same_weights(model, twin)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_next_move_is_what_the_step_then_does(variant):
    kind, _, theirs = VARIANTS[variant]
    weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.double))
    decay = 0.02
    optimizer = kind([weight], lr=0.1, weight_decay=decay, **theirs)
    for _ in range(3):
        weight.grad = torch.randn(5, 3, dtype=torch.double)
        before = weight.detach().clone()
        group = optimizer.param_groups[0]
        move = next_move(weight, group, optimizer.state.get(weight, {}), variant)
        optimizer.step()
        start = before * (1 - 0.1 * decay) if variant == "adamw" else before
        torch.testing.assert_close(weight.detach(), start - 0.1 * move)


def test_a_closure_runs_with_gradients_and_its_loss_comes_back():
    model, optimizer = begin()

    def closure():
        optimizer.zero_grad()
        loss = model(EXAMPLE[:, :, 0].expand(2, -1, -1, -1)).embeddings.square().mean()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second < first


# --- what is pruned --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_exactly_k_channels_are_zero_at_the_end_and_stay_so(variant, sparsity):
    settings = {"pruning_steps": 7, "pruning_periods": 3, "target_group_sparsity": sparsity}
    model, optimizer = begin(variant=variant, **settings)
    run_steps(optimizer, model, 7)
    expected = int(32 * sparsity) / 32
    assert optimizer.group_sparsity() == expected == traced(model).group_sparsity()
    run_steps(optimizer, model, 3, start=7)
    assert optimizer.group_sparsity() == expected == optimizer.pruner.num_pruned / 32
    assert all(
        len(c) < g["num_groups"]
        for c, g in zip(optimizer.pruner.pruned.values(), optimizer.pruner.groups, strict=True)
    )


@pytest.mark.parametrize("divisible", [2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_group_divisible_leaves_multiples_and_almost_all_of_the_quota(divisible, sparsity):
    settings = {"pruning_steps": 6, "pruning_periods": 3, "target_group_sparsity": sparsity}
    make = functools.partial(network, "BC-10", "BC-16", "M", "BC-16", "BC-6")
    model, optimizer = begin(make, group_divisible=divisible, **settings)
    run_steps(optimizer, model, 6)
    for group in optimizer.pruner.groups:
        n = group["num_groups"]
        pruned = len(optimizer.pruner.pruned[group["id"]])
        assert pruned == 0 or (n - pruned) % divisible == 0 and n - pruned >= divisible
    target = optimizer.pruner.rule.count
    assert target - divisible < optimizer.pruner.num_pruned <= target


def test_a_redundant_channel_shrinks_evenly_to_zero():
    settings = {"start_pruning_step": 2, "pruning_steps": 5, "target_group_sparsity": 0.1}
    model, optimizer = begin(lr=1e-9, **settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run_steps(optimizer, model, 2)
    assert optimizer.importance().empty
    for left in (3 / 4, 2 / 4, 1 / 4, 0):  # steps 3 to 6
        run_steps(optimizer, model, 1)
        row = optimizer.importance().query("state == 'chosen'").iloc[0]
        name = f"{row.group}.weight"
        now = dict(model.named_parameters())[name][row.channel]
        torch.testing.assert_close(now, left * before[name][row.channel], atol=1e-6, rtol=1e-5)
    assert optimizer.pruner.num_pruned == 3 and optimizer.num_steps == 6


@pytest.mark.parametrize("skipped", [2, 4, 5, 7])
def test_a_step_that_was_skipped_is_made_up_for(skipped):
    model, optimizer = begin(start_pruning_step=1, pruning_steps=6, pruning_periods=2)
    run_steps(optimizer, model, skipped - 1)
    optimizer.skip_step()
    run_steps(optimizer, model, 9 - skipped)
    assert optimizer.group_sparsity() == 0.5


# --- records and resuming --------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [4, 5, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(variant, stop):
    keys = {"variant": variant, "first_momentum": 0.9, "target_group_sparsity": 0.6}
    keys |= {"start_pruning_step": 1, "pruning_steps": 9, "pruning_periods": 3}
    model, optimizer = begin(**keys)
    run_steps(optimizer, model, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    run_steps(optimizer, model, 12 - stop, start=stop)

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed, second = begin(functools.partial(network, seed=5), **keys)
    resumed.load_state_dict(weights)
    second.load_state_dict(state)
    run_steps(second, resumed, 12 - stop, start=stop)
    assert same_weights(model, resumed)
    assert second.importance().equals(optimizer.importance())
    assert second.pruner.pruned == optimizer.pruner.pruned


def test_the_lowest_scores_are_chosen():
    model, optimizer = begin(pruning_steps=6, pruning_periods=2)
    run_steps(optimizer, model, 6)
    table = optimizer.importance()
    chosen = table[table.state == "chosen"]
    assert len(table) == 2 * 32 and len(chosen) == 16
    assert list(chosen.step) == [1] * 8 + [4] * 8
    for period, part in table.groupby("period"):
        assert (part.state == "pruned").sum() == 8 * period
        chosen = part[part.state == "chosen"].score
        assert chosen.max() <= part[part.state == "kept"].score.min()
    assert table.score.tolist() == pytest.approx(table[list(PROXIES)].sum(axis=1).tolist())


@pytest.mark.parametrize(
    "make, keys, message",
    [
        (network, {"pruning_steps": 5}, r"'pruning_steps': \(4, 5\)"),
        (network, {"variant": "adam"}, r"'variant': \('sgd', 'adam'\)"),
        (network, {"target_macs": 0.5}, r"other settings.*'budget'"),
        (residual, {}, "another network"),
    ],
)
def test_a_state_of_another_network_or_of_other_settings_is_refused(make, keys, message):
    _, optimizer = begin(pruning_steps=4)
    _, other = begin(make, **{"pruning_steps": 4} | keys)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="no entry 'hesso'"):
        other.load_state_dict(torch.optim.SGD(make().parameters()).state_dict())


# --- the arithmetic --------------------------------------------------------------------------


def test_proxies_agree_with_a_loop_over_channels():
    a, b = torch.randn(3, 2, 2), torch.randn(4, 3)  # channels along 0 and along 1
    va, vb = torch.randn(3, 2, 2), torch.randn(4, 3)
    found = proxies([a, b], [va, vb], [0, 1])
    for c in range(3):
        x = torch.cat([a[c].flatten(), b[:, c]])
        v = torch.cat([va[c].flatten(), vb[:, c]])
        inner = x @ v
        cosine = 1 + inner / (x.norm() * v.norm())
        expected = torch.stack([x.norm(), x.norm() / 8, cosine, inner.abs(), inner**2 / 2])
        torch.testing.assert_close(found[:, c], expected, rtol=1e-4, atol=1e-5)


def test_weighing_gives_each_proxy_its_share():
    raw = torch.rand(5, 7)
    criteria = dict.fromkeys(PROXIES, 0.0) | {"magnitude": 0.2, "taylor_first_order": 0.5}
    weighed = weigh(raw, criteria)
    assert weighed.norm(dim=1).tolist() == pytest.approx([0.2, 0, 0, 0.5, 0], abs=1e-6)


def chosen(scores, count, divisible=1, removed=((), ())):
    """Return the channels of two groups that `SparsityRule` chooses to remove ``count`` in all."""
    groups = [{"id": i, "num_groups": len(values)} for i, values in enumerate(scores)]
    share = (count + 0.5) / sum(map(len, scores))
    settings = hesso_settings(target_group_sparsity=share, group_divisible=divisible)
    found = SparsityRule(groups, settings).choose(dict(enumerate(scores)), removed, period=0)
    return list(found.values())


def test_choosing_by_hand():
    scores, pairs = [[3.0, 1.0, 2.0], [0.5, 0.5, 9.0, 9.0]], [[0.1, 0.2], [5.0, 6.0]]
    assert chosen(scores, 3) == [[1], [0, 1]]
    assert chosen(scores, 4, removed=([1], [0])) == [[2], [1]]
    assert chosen(pairs, 2) == chosen(pairs, 3) == [[0], [0]]  # one channel stays
    # bundles that leave multiples of 2: {1} leaves 2 of 3, {0, 1} leaves 2 of 4
    assert chosen(scores, 3, divisible=2) == [[1], [0, 1]]
    assert chosen(scores, 1, divisible=2) == [[1], []]
    assert chosen(scores, 5, divisible=4) == [[], []]


def test_schedule_by_hand():
    schedule = PruningSchedule(start=2, steps=8, periods=2)
    assert (schedule.duration, schedule.first, schedule.last) == (4, 3, 9)
    assert [schedule.due(k) for k in range(1, 11)] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    inside = [k for k in range(1, 12) if schedule.shrinks(k)]
    assert inside == [3, 4, 5, 7, 8, 9]
    assert [schedule.factor(k) for k in (3, 4, 5)] == pytest.approx([2 / 3, 1 / 2, 0])
    assert [schedule.removed_by(p, 5) for p in (0, 1)] == [2, 5]
    assert schedule.spans() == [(2, 6), (6, 10)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pruning_steps": 3, "pruning_periods": 4}, "pruning_steps 3 .* pruning_periods 4"),
        (
            {"pruning_steps": 80, "start_pruning_step": 30},
            r"30 \+ pruning_steps 80 = 110 exceeds trainer_cfg.total_iter 100",
        ),
        ({"target_group_sparsity": 1.0}, "target_group_sparsity is 1.0: write 0 or more, below 1"),
        ({"target_group_sparsity": -0.1}, "target_group_sparsity is -0.1"),
        ({"target_group_sparsity": 0.95}, "30 of 32 channels, .* at most 28"),
        ({"group_divisible": 0}, r"group_divisible\n.*greater than or equal to 1"),
        ({"variant": "lion"}, r"variant\n.*'sgd', 'adam' or 'adamw' .*'lion'"),
        ({"importance_score_criteria": {"size": 1.0}}, "unknown key 'size'"),
    ],
)
def test_what_cannot_reach_its_target_is_refused_before_training(settings, message):
    graph = traced(network())
    with pytest.raises(ValueError, match=message):
        cfg = hesso_section(**settings)
        cfg.check_fits(100)
        build_hesso(graph, cfg.settings)


def test_nothing_prunable_is_an_ordinary_optimizer_or_refused():
    model = network()
    model.Backbone.requires_grad_(False)
    groups = traced(model).param_groups()
    assert HESSO(groups, hesso_settings(target_group_sparsity=0.0)).group_sparsity() == 0
    with pytest.raises(ValueError, match="no channel may leave"):
        HESSO(groups, hesso_settings(target_group_sparsity=0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_same_channels_go():
    chosen = []
    for device in ("cpu", "cuda"):
        make = functools.partial(torch.nn.Module.to, network(), device)
        model, optimizer = begin(make, pruning_steps=6, pruning_periods=2)
        run_steps(optimizer, model, 6)
        chosen.append(optimizer.pruner.pruned)
    assert chosen[0] == chosen[1]
