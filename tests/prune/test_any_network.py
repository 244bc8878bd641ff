"""Networks of many kinds: traced, pruned to a budget in a loop, cut; or refused in one sentence."""

import copy
import re

import pytest
import torch
from any_networks import NETWORKS, Apply, classify, conv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gaitlib as gl
from gaitlib.deploy.cut_network import CompressionError
from gaitlib.model.batch_norm import normalised_convolutions
from gaitlib.model.examples import difference, run_example
from gaitlib.model.network_cost import count_parameters, module_macs
from gaitlib.prune import layer_timing
from gaitlib.prune.dry_cut import TOLERANCE

#: Kinds that cannot be traced, or not pruned to 0.4 of the MACs, with what the refusal says.
REFUSED = {
    "a sum after a concatenation": "needs at least",
    "one layer twice": "needs at least",
    "tied weights": "no channel may leave",
    "attention between convolutions": "needs at least",
    "recurrent": "needs at least",
    "transformer": "2.self_attn is a MultiheadAttention",
}
IMAGES = torch.rand(2, 3, 16, 16)
KEYS = {"start_pruning_step": 2, "pruning_steps": 6, "pruning_periods": 2, "variant": "adamw"}


def built(kind):
    torch.manual_seed(1)
    return NETWORKS[kind]()


def train(model, example, optimizer, steps=10):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(output.square().mean() for output in run_example(model, example)).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in REFUSED])
def test_a_network_is_pruned_to_its_budget_and_the_cut_one_computes_the_same(kind):
    model, example = built(kind)
    graph = gl.trace(model, example)
    optimizer = gl.hesso(graph, target_macs=0.4, lr=0.01, **KEYS)
    whole = copy.deepcopy(model)
    train(model, example, optimizer)
    small, budget = gl.cut(graph), optimizer.budget()
    with torch.no_grad():
        assert difference(run_example(model, example), run_example(small, example)) <= TOLERANCE
    assert budget["reached"] == sum(module_macs(small, example).values()) <= budget["limit"]
    assert budget["dense"] == sum(module_macs(whole, example).values())
    assert count_parameters(small) < count_parameters(whole)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_pruned_so_far_is_refused_before_training(kind):
    model, example = built(kind)
    with pytest.raises(gl.UserError, match=REFUSED[kind]):
        gl.hesso(gl.trace(model, example), target_macs=0.4, lr=0.01, **KEYS)


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "transformer"])
def test_half_of_all_channels_that_may_leave_do_so_unnoticed(kind):
    model, example = built(kind)
    graph = gl.trace(model, example)
    table = graph.table()
    assert (table.prunable == (table.reason == "")).all()
    graph.zero({g.id: range(g.channels // 2) for g in graph.prunable()})
    small = gl.cut(graph)
    left = {g.id: g.channels - g.channels // 2 for g in graph.prunable()}
    for group in graph.prunable():
        tensor = small.get_parameter(group.names[0])
        assert tensor.shape[group.dims[0]] == left[group.id]


@pytest.mark.parametrize(
    "kind, group, reason",
    [
        ("layer norm over channels", "0", "cutting it changes the output"),
        ("a sigmoid between two layers", "1", "cutting it changes the output"),
        ("classes of tokens", "last", "reaches the output"),
        ("channel shuffle", "0.0", "does not run without half of it"),
        ("grouped convolutions", "0.0", "1.0.weight reads it and has inputs that cannot be cut"),
        ("one layer twice", "again.0", "shares again.1.weight with another group"),
        ("dense block", "4", "follows the channels of 0.0, 1.branches.0.2, 2.branches.0.2, 3."),
        ("split into two halves", "first.0", "branch.0.weight reads 4 channels of it"),
        ("a sum after a concatenation", "0.0", "joins channels of several groups"),
        ("a gate behind a depthwise layer", "1.layers.0.0", ""),
        ("recurrent", "first", "cells is a GRU, and recurrent layers are kept"),
    ],
)
def test_all_that_is_kept_has_a_reason(kind, group, reason):
    table = gl.trace(*built(kind)).table().set_index("group")
    assert reason in table.loc[group].reason and bool(reason) != table.loc[group].prunable


class Auxiliary(nn.Module):
    """A second head that evaluation does not run: in training, or for some inputs alone."""

    def __init__(self, runs):
        super().__init__()
        self.body, self.more = conv(3, 8), conv(8, 12)
        self.head, self.aux, self.runs = classify(12), classify(8), runs

    def forward(self, x):
        early = self.body(x)
        late = self.head(self.more(early))
        return (late, self.aux(early)) if self.runs(self, x) else late


@pytest.mark.parametrize(
    "runs, reason",
    [
        (lambda model, x: model.training, "does not train without half of it"),
        (lambda model, x: x.sum() < 0, ""),
    ],
)
def test_what_only_training_reads_is_kept_and_what_the_trace_misses_is_said(runs, reason, caplog):
    model = Auxiliary(runs)
    graph = gl.trace(model, IMAGES)
    assert "does not use aux.2.weight, aux.2.bias" in caplog.text
    table = graph.table().set_index("group")
    assert reason in table.loc["body.0"].reason and table.loc["more.0"].prunable
    if reason:
        train(model, IMAGES, gl.hesso(graph, target_macs=0.7, lr=0.01, **KEYS))
        assert len(gl.cut(graph).train()(IMAGES)) == 2


@pytest.mark.parametrize("shrink", [True, False])
def test_a_resumed_run_of_a_dense_block_goes_on_bit_for_bit(shrink):
    """Its batch norms follow the channels of several groups."""

    def begin():
        model, example = built("dense block")
        graph = gl.trace(model, example)
        return graph, example, gl.hesso(graph, target_macs=0.4, lr=0.01, shrink=shrink, **KEYS)

    graph, example, optimizer = begin()
    train(graph.model, example, optimizer, 6)
    state = copy.deepcopy((optimizer.state_dict(), graph.model.state_dict()))
    train(graph.model, example, optimizer, 6)
    again, _, resumed = begin()
    resumed.load_state_dict(state[0])
    again.model.load_state_dict(state[1])
    train(again.model, example, resumed, 6)
    expected = graph.model.state_dict()
    assert expected.keys() == again.model.state_dict().keys()
    assert all(torch.equal(expected[n], t) for n, t in again.model.state_dict().items())


def test_a_channel_behind_a_concatenation_shrinks_evenly_in_its_batch_norm_too():
    model, example = built("dense block")
    graph = gl.trace(model, example)
    keys = KEYS | {"pruning_steps": 5, "pruning_periods": 1}
    optimizer = gl.hesso(graph, target_group_sparsity=0.5, lr=1e-20, **keys)
    before = model.get_parameter("4.weight").detach().clone()
    train(model, example, optimizer, 4)
    gone, start = optimizer.pruner.redundant, 0
    for group in ("0.0", "1.branches.0.2", "2.branches.0.2", "3.branches.0.2"):
        size = optimizer.pruner.channels[group]
        factors = (model.get_parameter("4.weight") / before).detach()[start : start + size]
        for channel, factor in enumerate(factors.tolist()):
            assert factor == pytest.approx(0.5 if channel in gone[group] else 1.0)
        start += size


def test_an_unchecked_graph_is_proved_at_the_cut_which_names_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 3), nn.Sigmoid(), conv(8, 8), classify(8))
    graph = gl.trace(model, torch.rand(2, 3, 16, 16), check=False)
    graph.zero({group.id: [0, 1] for group in graph.prunable()})
    with pytest.raises(CompressionError, match="once 1 is cut"):
        gl.cut(graph)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"target_macs": 0.4, "pruning_steps": 5}, "start_pruning_step missing"),
        ({"target_macs": 0.001}, "needs at least"),
        ({"target_params": 0.2, "min_channels_share": 0.5}, "of them are in 1.0.weight: raise the"),
        ({"taget_macs": 0.4}, "unknown key 'taget_macs': choose from .*target_macs"),
        ({"target_macs": 0.4, "target_params": 0.4}, "pruned to one target"),
        ({}, "no target: say how far to prune, by one of target_group_sparsity, target_macs"),
        ({"target_macs": "40%"}, "target_macs is '40%': write a number"),
        ({"lr": "1e-3"}, "lr is '1e-3': write a number"),
        ({"variant": "AdamW"}, "variant is 'AdamW': write one of sgd, adam, adamw"),
        ({"pruning_steps": 40.5}, "pruning_steps is 40.5: write a whole number"),
        ({"start_pruning_step": "10"}, "start_pruning_step is '10': write a whole number"),
        ({"target_macs": 0.4, "start_pruning_step": -1}, "start_pruning_step is -1: write 0 or"),
        ({"shrink": 1}, "shrink is 1: write true or false"),
    ],
)
def test_a_wrong_key_is_one_sentence(keys, message):
    graph = gl.trace(*built("convolutions with batch norms"), check=False)
    given = {"start_pruning_step": 0} if "start_pruning_step missing" not in message else {}
    with pytest.raises(gl.UserError, match=message):
        gl.hesso(graph, **{"pruning_steps": 5} | given | keys)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"target_bits": 0}, "target_bits is 0: write 2 to 24"),
        ({"target_bit": 8}, "unknown key 'target_bit': choose from .*target_bits"),
        ({"order": "foo"}, "order is 'foo': write one of qasso, float_first"),
        ({"target_bops": 0.1}, "target_bops 0.1 is read only with order: float_first"),
        ({"quantize": "all"}, "quantize is 'all': write one of weights, weights_and_activations"),
    ],
)
def test_a_wrong_key_of_bits_is_one_sentence(keys, message):
    model, example = built("convolutions with batch norms")
    graph = gl.trace(model, example, check=False)
    with pytest.raises(gl.UserError, match=message):
        gl.geta(graph, [example], target_macs=0.5, **KEYS | keys)
    assert not hasattr(model, "quantization")


def test_an_operation_that_cannot_be_traced_is_named_with_its_module():
    model = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d((15, 7)), nn.Flatten())
    with pytest.raises(gl.UserError, match="cannot trace adaptive_avg_pool2d in 1: write it"):
        gl.trace(model, torch.rand(2, 3, 16, 16))


def test_a_network_that_changes_its_input_or_computes_in_bfloat16_is_proved_too():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), conv(3, 8), conv(8, 8))
    for body in (nn.Sequential(Apply(lambda x: x.add_(1)), *model), model.bfloat16()):
        graph = gl.trace(nn.Sequential(body, classify(8).to(body[-1][0].weight.dtype)), IMAGES)
        assert graph.table().prunable.sum() == 2
        graph.zero({group.id: [1, 3] for group in graph.prunable()})
    assert IMAGES.max() <= 1


class LayerScale(nn.Module):
    """A residual branch that hardly counts at first, and computes with its zeros."""

    def __init__(self, start):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 6), nn.Linear(6, 8)
        self.gamma = nn.Parameter(torch.full((8,), start))

    def forward(self, x):
        return x + self.gamma * self.outer(torch.sigmoid(self.inner(x)))


@pytest.mark.parametrize("start", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("example", [torch.zeros(4, 8), torch.rand(4, 8)])
def test_a_wrong_cut_shows_however_small_it_is_at_first(start, example):
    torch.manual_seed(0)
    model = nn.Sequential(LayerScale(start), nn.Linear(8, 3))
    nn.init.zeros_(model[1].weight)
    table = gl.trace(model, example).table().set_index("group")
    assert table.loc["0.inner"].reason == "cutting it changes the output"


def test_a_network_that_says_nothing_of_its_inputs_needs_an_example():
    with pytest.raises(gl.UserError, match="pass an example"):
        gl.trace(nn.Linear(2, 2))
    with pytest.raises(gl.UserError, match="no parameters"):
        gl.trace(nn.ReLU(), IMAGES)
    for example, said in (
        (
            torch.rand(2, 5, 16, 16),
            r"the example \(a tensor \(2, 5, 16, 16\)\): .*channels, but got 5",
        ),
        (IMAGES.numpy(), r"the example \(ndarray\)"),
        ([IMAGES], "tuple of arguments"),
    ):
        with pytest.raises(gl.UserError, match=said):
            gl.trace(conv(3, 8), example)


def test_what_comes_in_the_wrong_order_is_said():
    model, example = built("convolutions with batch norms")
    for network, said in (
        (type(model), "pass an instance"),
        (torch.compile(model), "trace it fir"),
    ):
        with pytest.raises(gl.UserError, match=said):
            gl.trace(network, example)
    for use in (gl.cut, gl.hesso, lambda graph: gl.geta(graph, [example])):
        with pytest.raises(gl.UserError, match=r"a Sequential is no graph: call .*gl.trace\(model"):
            use(model)
    graph = gl.trace(model, example)
    keys = KEYS | {"target_macs": 0.4, "target_bits": 8, "bit_reduction": None}
    for batches, said in (
        (example, "one input"),
        ([(example, 1)], r"does not run on a batch .*int"),
    ):
        with pytest.raises(gl.UserError, match=said):
            gl.geta(graph, batches, **keys)
        assert not hasattr(model, "quantization")
    optimizer = gl.hesso(graph, target_macs=0.4, **KEYS)
    with pytest.raises(gl.UserError, match="an optimizer of their own"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(gl.UserError, match="network_cost.module_macs"):
        gl.macs_per_frame(model)


@pytest.mark.parametrize(
    "target, said",
    [
        (
            {"target_macs": 0.4},
            r"target_macs is 0.4, [\d,]+ MACs of the example, and the network has",
        ),
        ({"target_group_sparsity": 0.5}, "sparsity is 0.5, 10 channels, and the network has 15"),
    ],
)
def test_a_cut_before_the_end_of_pruning_says_what_is_missing(target, said, caplog):
    model, example = built("convolutions with batch norms")
    graph = gl.trace(model, example)
    optimizer = gl.hesso(graph, lr=0.01, **target, **KEYS)
    train(model, example, optimizer, 5)
    gl.cut(graph)
    assert re.search(f"{said}.*ends at step 7, and this is 5", caplog.text)
    caplog.clear()
    train(model, example, optimizer, 2)
    gl.cut(graph)
    assert not caplog.text


@pytest.mark.parametrize("target", [{"target_macs": 0.4}, {"target_group_sparsity": 0.5}])
def test_no_channel_leaves_without_a_gradient(target):
    model, example = built("convolutions with batch norms")
    optimizer = gl.hesso(gl.trace(model, example), lr=0.01, **target, **KEYS)
    model[1] = copy.deepcopy(model[1])
    with pytest.raises(gl.UserError, match="step 3, .* gradient of 1.0, 1.1: call"):
        train(model, example, optimizer)


@pytest.mark.parametrize("kind", ["dense block", "upsampled by transposed convolutions"])
def test_a_latency_is_measured_layer_by_layer(kind, monkeypatch):
    """Each layer takes, by this clock, as many milliseconds as it has multiply-adds."""
    monkeypatch.setattr(layer_timing, "median_ms", counted_ms)
    model, example = built(kind)
    graph = gl.trace(model, example)
    optimizer = gl.hesso(graph, target_latency_ms=0.5, lr=0.01, **KEYS)
    train(model, example, optimizer)
    budget = optimizer.budget()
    assert budget["dense"] == pytest.approx(sum(module_macs(graph.widen(), example).values()))
    assert budget["reached"] <= budget["limit"]
    again = gl.hesso(gl.trace(*built(kind)), target_latency_ms=0.5, lr=0.01, **KEYS)
    again.pruner.load_state_dict(optimizer.state_dict()["hesso"])
    assert again.budget() == budget  # also where no clock says the same twice
    out_of_reach = gl.hesso(
        graph := gl.trace(*built(kind)), target_latency_ms=0.01, lr=0.01, **KEYS
    )
    with pytest.raises(gl.UserError, match="target_latency_ms 0.01 means .* needs at least"):
        train(graph.model, example, out_of_reach, 1)


def counted_ms(call, device, **keys):
    """Return the multiply-adds of a call in place of its milliseconds."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2


BITS = {
    "qasso": {"start_projection_step": 0, "projection_steps": 2, "projection_periods": 1},
    "float_first": {"clipping": "channel", "target_bytes": 0.2},
}


@pytest.mark.parametrize("order", BITS)
@pytest.mark.parametrize("kind", ["dense block", "inverted residuals", "two inputs", "perceptron"])
def test_bits_are_chosen_with_the_channels(kind, order):
    model, example = built(kind)
    graph = gl.trace(model, example)
    keys = KEYS | BITS[order] | {"order": order, "max_bit_wt": 8, "max_bit_act": 8}
    optimizer = gl.geta(graph, [example], target_macs=0.5, lr=0.01, **keys)
    train(model, example, optimizer, 14)
    small, bits = gl.cut(graph), optimizer.control.quantization.bits()  # cut proves it at 1e-4
    assert {"weights", "activations"} == set(bits["kind"]) and (bits["bits"] < 8.5).all()
    assert count_parameters(small) < count_parameters(graph.widen())


def test_only_convolutions_that_a_batch_norm_alone_reads_are_scaled():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.second, self.behind = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            x = self.first(x)
            return self.behind(self.second(x + torch.relu(self.norm(x))))

    torch.manual_seed(0)
    pairs = normalised_convolutions(Both(), torch.rand(2, 3, 8, 8))
    assert pairs == {"second": "behind"}
