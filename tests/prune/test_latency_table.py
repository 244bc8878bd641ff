"""A latency budget: the table of measured layers, and a run that ends at the budget."""

import copy
import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from nets import build, fill_gradients, hesso_section, hesso_settings, plain, resnet, traced

from gaitlib.model.widths import layer_widths
from gaitlib.prune import latency_table
from gaitlib.prune.hesso import build_hesso
from gaitlib.prune.latency_table import (
    LayerLatency,
    conv_shapes,
    grid_widths,
    read_or_measure,
)
from workbook.steps import budgets

HERE = {"processor": "abacus", "runtime": "beads 1", "threads": 1, "batch": 2, "frames": 3}


def residual(seed=0):
    return build(resnet(16, 16, 32), seed)


def with_strips():
    return build(plain("BC-8", "M", "FC-16-1", "FC-16-2"))


def by_area(shape, c_in, c_out):
    """Milliseconds of a layer on a machine that does nothing but count."""
    return 1e-4 * (c_in + 2) * (c_out + 1) * shape.frames * shape.height / shape.stride[0]


def whole_ms(graph, model, rest=5.0, factor=1.5):
    """Milliseconds of a network there: a rest, and its layers, which run slower side by side."""
    shapes = conv_shapes(dataclasses.replace(graph, model=model), 2, 3)
    widths = layer_widths(model)
    layers = (s.calls * by_area(s, widths[n]["in"], widths[n]["out"]) for n, s in shapes.items())
    return rest + factor * sum(layers)


def measured(graph, folder, divisible=1, **rest):
    """Return the table of a graph on that machine."""
    return read_or_measure(
        graph, folder, HERE, divisible, by_area, lambda net: lambda: whole_ms(graph, net, **rest)
    )


# --- the table --------------------------------------------------------------------------------


def test_between_measured_widths_a_layer_is_interpolated_and_never_cheaper_when_wider():
    grid = LayerLatency((2, 4), (1, 5), ((1.0, 3.0), (2.0, 8.0)))
    assert grid.at(2, 1) == 1.0 and grid.at(4, 5) == 8.0
    assert grid.at(3, 2) == 2.5  # 1.5 at (2, 2), 3.5 at (4, 2)
    assert grid.at(1, 9) == 3.0  # beyond the ends the nearest counts
    spikes = LayerLatency((1, 2, 3), (1, 2), ((4.0, 2.0), (1.0, 5.0), (6.0, 3.0)))
    assert spikes.rising == [[4.0, 4.0], [4.0, 5.0], [6.0, 6.0]]
    assert LayerLatency((1,), (3,), ((7.0,),)).at(5, 2) == 7.0


def test_widths_are_measured_at_multiples_of_the_divisor():
    assert grid_widths(64, 1) == (1, 16, 32, 48, 64)
    assert grid_widths(64, 16) == (16, 32, 48, 64)
    assert grid_widths(30, 8) == (8, 16, 24, 30)
    assert grid_widths(6, 8) == (6,) and grid_widths(64, 1, shrinks=False) == (64,)


@pytest.mark.parametrize("make", [residual, with_strips])
def test_the_cost_at_any_widths_is_the_time_of_the_cut_network(make, tmp_path):
    """The machine's times are bilinear in the widths, so interpolating them loses nothing."""
    model = make()
    graph = traced(model)
    table = measured(graph, tmp_path)
    cost = table.cost(graph)
    assert cost.total(cost.full) == pytest.approx(whole_ms(graph, model))
    generator = torch.Generator().manual_seed(0)
    widths = dict(cost.full)
    for group in graph.prunable():
        gone = int(torch.randint(0, group.channels, (), generator=generator))
        widths[group.id] -= gone
        graph.zero({group.id: range(gone)})
    cut = graph.slice()
    assert cost.total(widths) == pytest.approx(whole_ms(graph, cut))


@pytest.mark.parametrize("dense_ms, narrow_ms", [(10.0, 12.0), (0.01, 0.001), (1e3, 1.0)])
def test_the_fixed_part_is_never_negative_whatever_was_measured(dense_ms, narrow_ms, tmp_path):
    graph = traced(residual())

    def prepare(network):
        return lambda: dense_ms if network is graph.model else narrow_ms

    cost = read_or_measure(graph, tmp_path, HERE, 4, by_area, prepare).cost(graph)
    assert cost.fixed >= 0 and cost.total(cost.full) == pytest.approx(dense_ms)
    assert 0 <= cost.total(dict.fromkeys(cost.full, 4)) <= dense_ms


def test_a_table_is_measured_once_and_its_file_says_for_what(tmp_path, caplog):
    graph = traced(residual())
    random_state = torch.get_rng_state()
    first = measured(graph, tmp_path)
    assert torch.equal(random_state, torch.get_rng_state())

    def refuse(*_):
        raise AssertionError("measured again")

    assert read_or_measure(graph, tmp_path, HERE, 1, refuse, refuse) == first
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("abacus-beads-1-1-2-3-")
    for other in (HERE | {"threads": 2}, HERE | {"frames": 4}):
        read_or_measure(graph, tmp_path, other, 1, by_area, lambda _: lambda: 1.0)
    measured(graph, tmp_path, divisible=8)
    assert len(list(tmp_path.iterdir())) == 4
    content = json.loads(file.read_text())
    layer = next(iter(content["layers"]))
    short = {"ins": [8, 16], "outs": [8], "ms": [[1.0]]}
    damaged = [
        "{}",
        "null",
        json.dumps(content | {"layers": {}}),
        json.dumps(content | {"dense_ms": "x"}),
        json.dumps(content | {"dense_ms": float("nan")}),
        json.dumps(content | {"layers": content["layers"] | {layer: short}}),
    ]
    for text in damaged:
        file.write_text(text)
        with pytest.raises(ValueError, match="delete it, and it is measured anew"):
            measured(graph, tmp_path)


# --- the run ----------------------------------------------------------------------------------

BUDGET = {"start_pruning_step": 2, "pruning_steps": 12, "pruning_periods": 3}


def run(optimizer, model, start, stop):
    for step in range(start, stop):
        fill_gradients(model, step)
        optimizer.step()


def test_a_resumed_run_goes_on_with_the_table_it_began_with(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = residual()
    graph = traced(model)
    mine = measured(graph, tmp_path / "a", factor=10.0).cost(graph)
    asked = 0.6 * mine.total(mine.full)  # the other machine is too slow for it
    cfg = hesso_settings(**BUDGET, target_latency_ms=asked, lr=0.01)
    optimizer = build_hesso(graph, cfg, mine)
    run(optimizer, model, 0, 7)
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    torch.save(state, tmp_path / "state.pt")
    weights, saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = residual(seed=1)
    other = measured(traced(second), tmp_path / "b", rest=0.1, factor=7000.0).cost(traced(second))
    too_slow = build_hesso(traced(second), cfg, other)
    with pytest.raises(ValueError, match="target_latency_ms .* needs at least"):
        run(too_slow, second, 0, 1)
    resumed = build_hesso(traced(second), cfg, other)
    resumed.load_state_dict(saved)
    second.load_state_dict(weights)
    assert "it keeps the latter" in caplog.text
    run(optimizer, model, 7, 16)
    run(resumed, second, 7, 16)
    assert resumed.pruner.pruned == optimizer.pruner.pruned
    assert resumed.budget() == optimizer.budget()
    found = optimizer.budget()
    assert 0.98 * found["limit"] <= found["reached"] <= found["limit"] == asked
    assert found["reached"] == pytest.approx(whole_ms(graph, graph.slice(), factor=10.0))


def test_a_table_that_misses_by_a_tenth_is_a_warning(caplog):
    found = {"asked": 0.5, "dense": 10.0, "reached": 4.9, "measured_dense_ms": 20.0}
    with caplog.at_level(logging.WARNING):
        budgets._check_latency(found | {"measured_ms": 10.7})  # twice as slow, and so is the dense
        assert not caplog.records
        budgets._check_latency(found | {"measured_ms": 10.8})
        budgets._check_latency(found | {"asked": 4.9, "measured_ms": 10.0})
    assert len(caplog.records) == 2 and "10.8 ms measured, 9.8 expected (+10 %)" in caplog.text


def test_a_bundle_coarser_than_the_tolerance_is_said(tmp_path, caplog):
    def end_at(reached, limit):
        found = {"key": "target_macs", "asked": 0.5, "limit": limit, "reached": reached}
        found |= {"dense": 1000.0, "unit": "MACs per frame"}
        caplog.clear()
        with caplog.at_level(logging.INFO):
            budgets.write_budget(SimpleNamespace(budget=lambda: found), tmp_path)
        assert json.loads((tmp_path / "budget.json").read_text()) == found
        return caplog.text

    assert end_at(496.0, 500.0) == ""
    assert "ends at 480 MACs per frame, 4.0 % below its budget of 500" in end_at(480.0, 500.0)
    assert end_at(1000.0, 1200.0) == ""
    budgets.write_budget(SimpleNamespace(budget=lambda: None), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_this_machine_measures_a_table(runtime, tmp_path, monkeypatch):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(latency_table, "ROUNDS", 1)
    graph = traced(residual())
    latency = {"runtime": runtime}
    cfg = hesso_section(target_latency_ms=0.9, group_divisible=8, latency=latency)
    cost = budgets.latency_cost(cfg, graph)
    (file,) = (tmp_path / "data" / "latency").iterdir()
    content = json.loads(file.read_text())
    assert content["measured"]["runtime"].startswith(runtime)
    assert cost.total(cost.full) == pytest.approx(content["dense_ms"]) and cost.fixed >= 0
    narrow = cost.total(dict.fromkeys(cost.full, 8))
    assert 0 < narrow <= cost.total(cost.full)
