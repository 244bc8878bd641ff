"""One point of a study: it goes on after a stop, and other settings' files are moved aside."""

from dataclasses import replace

import pytest
import torch
import yaml
from small_experiment import QUANTIZED, small_experiment, write_experiment

from gaitlib.model import network_cost
from workbook import runs
from workbook.config import ConfigError, read_yaml
from workbook.study import expand, point_table, read_plan, read_point, run_point
from workbook.study.points import load_point, prepare, state_of

CPU = torch.device("cpu")


class StopError(Exception):
    """What ends the training in a test."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the file of the small experiment."""
    folder = tmp_path_factory.mktemp("small")
    return write_experiment(small_experiment(folder / "walkers"), folder / "base.yaml")


@pytest.fixture
def study(base, tmp_path, workspace, monkeypatch):
    """Return a function that gives the points of a study of the small experiment."""
    monkeypatch.setattr(network_cost, "measure_latency", lambda *_, **__: 1.0)  # takes longest

    def points(**keys):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": str(base), **keys}))
        return [replace(point, notebooks=()) for point in expand(read_plan(tmp_path / "s.yaml"))]

    return points


@pytest.fixture
def points(study):
    """Return a baseline and a pruned network that starts from it."""
    return study(overrides={"hesso_optimizer_cfg.start_from": "baseline"}, methods=["hesso"])


def _run(run, point, on_history=None):
    prepare(run, point)
    return run_point(run, point, CPU, on_history)


TIMINGS = ("seconds", "training_seconds", "latency_ms")


def _lasting(results):
    """Return what does not depend on how busy the machine was."""
    kept = {k: v for k, v in results.items() if k not in TIMINGS}
    return kept | {"dense": {k: v for k, v in results["dense"].items() if k != "latency_ms"}}


@pytest.mark.slow
def test_a_point_that_was_stopped_goes_on_and_ends_as_one_that_was_not(points):
    baseline, pruned = points

    def stop(history):
        if history["iteration"].iloc[-1] == 8:  # the last checkpoint is of iteration 6
            raise StopError

    for run in ("stopped", "whole"):
        _run(run, baseline)
    with pytest.raises(StopError):
        _run("stopped", pruned, stop)
    assert state_of("stopped", pruned) == "missing"
    seen = []
    after = _run("stopped", pruned, lambda history: seen.append(len(history)))
    assert len(seen) == 4  # iterations 7 to 10
    assert _lasting(after) == _lasting(_run("whole", pruned))
    assert _run("stopped", pruned, stop) == after  # read, not trained again
    assert [layer["layer"] for layer in after["layers"]] == ["feature.0.conv", "feature.3.conv"]


def test_a_points_folder_says_what_it_is_and_keeps_what_other_settings_left(points):
    _, pruned = points
    folder = prepare("s", pruned)
    (folder / "results.json").write_text('{"digest": "of other settings"}')
    (folder / "failed.txt").write_text("of an earlier try")
    assert state_of("s", pruned) == "failed"
    prepare("s", pruned)  # the same settings: all but the failure stays
    assert state_of("s", pruned) == "changed"
    name, read = read_point(f"s/{pruned.name}")
    assert name == "s"
    assert read == replace(pruned, settings=read.settings, needs=read.needs)
    prepare("s", replace(pruned, digest="other"))
    assert load_point("s", pruned) is None
    (aside,) = (folder.parent / "previous").iterdir()
    assert (aside / "results.json").exists()
    with pytest.raises(ConfigError, match="cannot read"):
        read_point("s/nothing")


def test_a_slim_rival_learns_from_the_dense_network_of_its_seed(study):
    section = {"target_group_sparsity": None, "target_macs": 0.5, "start_from": "scratch"}
    overrides = {f"hesso_optimizer_cfg.{key}": value for key, value in section.items()}
    overrides |= {"trainer_cfg.teacher": "baseline", "trainer_cfg.total_iter": 8}
    dense, slim = study(overrides=overrides, methods=["uniform"])
    results = [_run("s", point) for point in (dense, slim)]
    assert results[1]["macs_per_frame"] < results[0]["macs_per_frame"]
    path = read_yaml(runs.stage_dir(f"s/{slim.name}", "baseline") / "config.yaml")["trainer_cfg"]
    teacher = runs.stage_dir(f"s/{dense.name}", "baseline") / "checkpoints/GaitBase-00008.pt"
    assert path["teacher"] == str(teacher)


@pytest.mark.slow
def test_every_method_starts_from_the_baseline_and_takes_as_many_steps_in_all(study):
    methods = ["uniform", "torch_pruning", "only_train_once", "magnitude", "dense_longer", "ptq"]
    points = study(overrides=QUANTIZED, methods=methods)
    for point in points:
        _run("s", point)
    table = point_table("s", points).set_index("method")
    assert set(table.index) == {"baseline", "hesso", "geta", *methods}
    assert (table["total_iterations"].drop("baseline") == 20).all()
    assert (table.loc[["hesso", "magnitude", "only_train_once"], "group_sparsity"] > 0.4).all()
    assert table.loc["torch_pruning", "macs_per_frame"] == pytest.approx(
        table.loc["hesso", "macs_per_frame"], rel=0.25
    )  # four and eight channels have few widths
    assert table.loc["only_train_once", "macs_per_frame"] > table.loc["hesso", "macs_per_frame"]
    assert table.loc["uniform", "macs_per_frame"] < table.loc["baseline", "macs_per_frame"]
    assert table.loc["ptq", "weight_bits"] == table.loc["geta", "weight_bits"] < 32


@pytest.mark.slow
def test_rivals_of_a_budget_end_at_its_macs_and_only_train_once_at_the_sparsity_of_hesso(study):
    points = study(
        overrides={
            "hesso_optimizer_cfg.target_group_sparsity": None,
            "scheduler_cfg.cycle_momentum": False,
        },
        grid={"hesso_optimizer_cfg.target_macs": [0.5]},
        methods=["baseline", "budget", "only_train_once", "uniform_longer", "torch_pruning"],
    )
    for point in points:
        _run("s", point)
    table = point_table("s", points).set_index("method")
    assert table.loc[["baseline", "dense_half"], "budget"].isna().all()
    assert (table["budget"].drop(["baseline", "dense_half"]) == 0.5).all()
    half = 0.5 * table.loc["baseline", "macs_per_frame"]
    assert (table.loc[["budget", "hesso"], "macs_per_frame"] <= half).all()
    slim = table.loc[["uniform_longer", "torch_pruning"], "macs_per_frame"]
    assert slim.tolist() == pytest.approx([half] * 2, rel=0.15)  # four and eight channels
    steps = table.loc["uniform_longer", "total_iterations"]
    assert steps * slim["uniform_longer"] == pytest.approx(20 * half, rel=0.05)
    trained = table["training_macs"]
    own = runs.load_results(f"s/{table.loc['torch_pruning', 'point']}", "torch_pruning")
    start = trained["dense_half"]
    assert trained["torch_pruning"] == start + own["training_macs"] < trained["baseline"]
    assert trained["budget"] < trained["baseline"]
    (shipped,) = (p for p in points if p.method == "only_train_once")
    cfg = read_yaml(runs.stage_dir(f"s/{shipped.name}", "hesso") / "config.yaml")
    given = cfg["hesso_optimizer_cfg"]["target_group_sparsity"]
    assert given == pytest.approx(table.loc["hesso", "group_sparsity"])
