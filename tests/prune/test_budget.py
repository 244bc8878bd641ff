"""A budget: the cost at given widths, the importance that ranks channels, and which ones leave."""

from functools import partial

import pytest
import torch
from nets import build, clips, hesso_section, hesso_settings, plain, resnet, run_steps, traced
from pydantic import ValidationError

from gaitlib.model import build_losses
from gaitlib.model.network_cost import count_parameters, macs_per_frame
from gaitlib.prune.channel_cost import ChannelCost, Product, Term, macs_cost, params_cost
from gaitlib.prune.channel_groups import Segment, group_tensors
from gaitlib.prune.channel_rules import TOLERANCE, BudgetRule
from gaitlib.prune.hesso import HESSO, build_hesso
from gaitlib.prune.taylor import TaylorSums, scored_tensors

#: Three periods of four steps, after two steps of training.
BUDGET = {"start_pruning_step": 2, "pruning_steps": 12, "pruning_periods": 3}
COUNT = {macs_cost: macs_per_frame, params_cost: count_parameters}


def residual(width=8):
    return build(resnet(width, width, 2 * width))


def with_biases():
    return build(plain("FC-4-2", "BC-8", "M", "FC-8-3", "BC-12"))


# --- costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [residual, with_biases])
@pytest.mark.parametrize("cost", [macs_cost, params_cost])
def test_a_cost_at_any_widths_is_that_of_the_cut_network(make, cost):
    model = make()
    graph = traced(model)
    found, count = cost(graph), COUNT[cost]
    assert found.total(found.full) == pytest.approx(count(model))
    widths = dict(found.full)
    generator = torch.Generator().manual_seed(0)
    for group in graph.prunable():
        gone = int(torch.randint(0, group.channels, (), generator=generator))
        saved = found.saving(widths, group.id, gone)
        before = found.total(widths)
        widths[group.id] -= gone
        assert before - found.total(widths) == pytest.approx(saved)
        graph.zero({group.id: range(gone)})
    assert found.total(widths) == pytest.approx(count(graph.slice()))


# --- importance -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [residual, with_biases])
def test_the_importance_is_the_squared_first_order_change_of_the_loss(make):
    """Sum ``x * dL/dx`` over all tensors of a channel, here one by one, and square the sum.

    The convolutions in front of a batch norm may be left out: what they add is rounding.
    """
    model = make().double().train()
    graph = traced(model)
    sums = TaylorSums(scored_tensors(graph))
    groups = [g for g in graph.param_groups() if g["is_prunable"]]
    losses = build_losses([{"type": "CrossEntropyLoss", "log_prefix": "softmax"}])
    expected = []
    for step in range(2):
        model.zero_grad()
        total, _ = losses(model(clips(4, 2, seed=step).double()), torch.arange(4))
        total.backward()
        sums.add(groups, partial(group_tensors, groups=groups, left={}))
        changes = []
        for group in groups:
            tensors = list(zip(group["params"], group["p_dims"], strict=True))
            for c in range(group["num_groups"]):
                parts = [(p.select(d, c) * p.grad.select(d, c)).sum().item() for p, d in tensors]
                changes.append(sum(parts) ** 2)
        expected.append(changes)
    mean = torch.tensor(expected).mean(dim=0)
    torch.testing.assert_close(sums.means(groups), mean.float(), rtol=2e-3, atol=1e-12)


def test_only_batch_norms_count_where_there_is_one():
    scored = scored_tensors(traced(residual()))
    assert all(".bn" in n or "downsample.1" in n for names in scored.values() for n in names)
    names = [n for names in scored_tensors(traced(with_biases())).values() for n in names]
    assert any(name.endswith("weight") and ".bn" not in name for name in names)


# --- the choice -------------------------------------------------------------------------------

A, B = (Segment("a", 4),), (Segment("b", 6),)
#: Two groups in a chain, a of 4 channels and b of 6: cost 10 a + 2 a b + 5 b.
CHAIN = ChannelCost(
    "units",
    {"a": 4, "b": 6},
    [
        Term("first", (A,), Product(10.0)),
        Term("second", (A, B), Product(2.0)),
        Term("third", (B,), Product(5.0)),
    ],
    fixed=7.0,
)


def chosen_within(budget, scores, cost=CHAIN, removed=None, **keys):
    rule = BudgetRule(hesso_settings(target_macs=budget, **keys), cost)
    return rule.choose(scores, removed or {id_: [] for id_ in scores}, period=0)


@pytest.mark.parametrize("importance", ["taylor", "hesso"])
def test_bundles_leave_in_the_order_of_importance_per_saving(importance):
    # all cost 125; a channel of a saves 10 + 2 b = 22, one of b saves 5 + 2 a = 13
    scores = {"a": [8.0, 3.0, 9.0, 9.5], "b": [2.0, 1.0, 7.0, 8.0, 9.0, 6.0]}
    # b1 (1/13 = .077) leaves first: 112. Then a1 is at 3/20 = .15 and b0 at 2/13 = .154, so a1
    # leaves: 92. Now b saves 5 + 2 * 3 = 11: b0 (.18) leaves before b5 (.55) and a0 (.4): 81.
    chosen = chosen_within(81.0, scores, importance=importance)
    assert chosen == {"a": [1], "b": [1, 0]} and CHAIN.total({"a": 3, "b": 4}) == 81


def test_a_bundle_too_coarse_for_the_budget_waits_for_finer_ones():
    scores = {"a": [1.0, 9.0, 9.0, 9.0], "b": [8.0] * 6}
    # a0 is the cheapest loss, but would end at 103 of 112; a channel of b ends at 112
    assert chosen_within(112.0, scores) == {"a": [], "b": [0]}
    # no bundle ends within 1 % of 124: the one that ends nearest below leaves
    assert chosen_within(124.0, scores)["b"] == [0]


@pytest.mark.parametrize("importance", ["taylor", "hesso"])
@pytest.mark.parametrize(
    "budget, gone",
    [
        (40.0, {"a": [0], "b": []}),
        (35.0, {"a": [0], "b": [0]}),
        (1.0, {"a": [0, 1, 2], "b": [0]}),  # out of reach: it ends at the floors
    ],
)
def test_a_bundle_that_saves_nothing_leaves_only_when_it_is_the_last_resort(
    importance, budget, gone
):
    flat = Term("first", (A,), lambda a: 10.0 * max(a, 3))  # as a measured layer may be
    cost = ChannelCost("ms", {"a": 4, "b": 2}, [flat, Term("second", (B,), Product(5.0))])
    scores = {"a": [0.0, 1.0, 2.0, 3.0], "b": [8.0, 9.0]}
    # all cost 50; a0 saves 10, and after it a saves nothing more: b has to leave, down to its floor
    found = chosen_within(budget, scores, cost, importance=importance, min_channels_share=0.0)
    assert found == gone


@pytest.mark.parametrize(
    "divisible, share, widths, least",
    [(1, 0.25, (1, 4, 6, 64), [1, 1, 2, 16]), (4, 0.3, (3, 4, 6, 30, 32), [3, 4, 4, 12, 12])],
)
def test_groups_keep_their_floor_and_a_multiple_of_the_divisor(divisible, share, widths, least):
    settings = hesso_settings(target_macs=1.0, group_divisible=divisible, min_channels_share=share)
    cost = ChannelCost("units", dict(enumerate(widths)), [])
    assert list(BudgetRule(settings, cost).least_widths().values()) == least


def test_a_choice_ends_at_the_floors_of_its_groups():
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    removed = {"a": [], "b": [5]}
    keys = {"group_divisible": 2, "min_channels_share": 0.5}
    chosen = chosen_within(1.0, scores, removed=removed, **keys)
    assert chosen == {"a": [0, 1], "b": [0]}  # b: 5 to 4 channels, and 2 are below its floor of 3


# --- the run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("importance", ["taylor", "hesso"])
@pytest.mark.parametrize("target", ["target_macs", "target_params"])
def test_a_run_ends_at_its_budget_or_just_below(variant, importance, target):
    model = residual(width=16)
    graph = traced(model)
    keys = {target: 0.4, "importance": importance, "variant": variant}
    optimizer = build_hesso(graph, hesso_settings(**BUDGET, **keys))
    run_steps(optimizer, model, 14)
    count = COUNT[{"target_macs": macs_cost, "target_params": params_cost}[target]]
    whole = count(residual(width=16))
    share = count(graph.slice()) / whole
    assert 0.4 * (1 - 1.5 * TOLERANCE) <= share <= 0.4  # a bundle is 1 % of so small a network
    assert optimizer.cost_share == pytest.approx(share)
    assert optimizer.target_share == pytest.approx(0.4, rel=1e-3)  # whole multiply-adds
    budgets = [optimizer.pruner.rule.budget_of(period) / whole for period in range(3)]
    assert budgets == pytest.approx([0.8, 0.6, 0.4])
    scores = optimizer.importance()
    assert scores["period"].max() == 2 and scores["score"].ge(0).all()


def test_a_budget_out_of_reach_is_refused_before_training(caplog):
    graph = traced(residual())
    cfg = hesso_settings(**BUDGET, target_macs=0.05, min_channels_share=0.5)
    reach = r"target_macs 0.05 means .* needs at least [\d,]+ of [\d,]+, a share of 0\.\d+; .*layer"
    with pytest.raises(ValueError, match=reach):
        build_hesso(graph, cfg)
    with pytest.raises(
        ValueError, match=r"target_macs 1 means 1 MACs .*a number below 1 is a share"
    ):
        build_hesso(graph, hesso_settings(**BUDGET, target_macs=1.0))
    build_hesso(graph, hesso_settings(**BUDGET, target_macs=1e9))
    assert "no channel leaves" in caplog.text
    with pytest.raises(ValueError, match="network_budget"):
        HESSO(graph.param_groups(), hesso_settings(**BUDGET, target_macs=0.5))
    with pytest.raises(ValueError, match="target_latency_ms needs layers that were measured"):
        build_hesso(graph, hesso_settings(**BUDGET, target_latency_ms=0.5))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"target_macs": 0.2, "target_group_sparsity": 0.5}, "leave one of them"),
        ({"target_macs": 0.2, "target_params": 0.5}, "target_macs 0.2, target_params 0.5"),
        ({"importance": "taylor"}, "read only with a budget"),
        ({"min_channels_share": 0.2, "target_group_sparsity": 0.5}, "min_channels_share 0.2"),
        ({"target_macs": 0.2, "implementation": "only_train_once"}, "knows no target_macs"),
        ({"target_macs": 0.0}, "target_macs is 0.0: write a number above 0"),
        ({"target_macs": 0.2, "importance": "magnitude"}, "'taylor' or 'hesso'"),
        ({"latency": {"batch": 2}}, "read only with target_latency_ms: give that, or"),
        ({"target_macs": 0.2, "latency": {}}, "give that instead of target_macs"),
        ({"target_latency_ms": 0.2, "target_macs": 0.2}, "leave one of them"),
        ({"target_latency_ms": 0.2, "latency": {"runtime": "tflite"}}, "'torch' or 'onnxruntime'"),
        ({"target_latency_ms": 0.2, "latency": {"device": "cpu"}}, "unknown key 'device'"),
        ({"target_latency_ms": 2, "implementation": "only_train_once"}, "knows no target_latency"),
    ],
)
def test_sections_that_ask_for_two_things_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        hesso_section(**keys)


def test_defaults_follow_the_target():
    assert hesso_section().target == ("target_group_sparsity", 0.5)
    found = hesso_section(target_macs=0.25, target_group_sparsity=None)
    assert found.target == ("target_macs", 0.25)
    assert (found.importance, found.min_channels_share, found.latency) == ("taylor", 0.1, None)
    timed = hesso_section(target_latency_ms=0.25).latency
    assert (timed.runtime, timed.batch) == ("torch", 1)
