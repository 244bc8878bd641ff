"""A stage that prunes in float and rounds late: resumed, finished and judged."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from small_experiment import LATE_BITS, SMALL

from gaitlib.model.float_state import quantization_of
from gaitlib.train.checkpoint import load_checkpoint
from workbook import runs, steps
from workbook.config import load_experiment

MODULE = "workbook.steps.finish_bits"


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A finished run in bfloat16."""
    root = tmp_path_factory.mktemp("late")
    changes = {"data_cfg.dataset_root": str(root / "walkers")}
    changes |= {"trainer_cfg.enable_float16": True, "trainer_cfg.amp_dtype": "bfloat16"}
    run = runs.Run("r", load_experiment(None, SMALL | LATE_BITS | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAITLIB_WORKSPACE", str(root))
        steps.run_stage(run, "geta")
        yield run


def _checkpoint(run, iteration):
    return load_checkpoint(run.folder("geta") / "checkpoints" / f"GaitBase-{iteration:05}.pt")


def _again(run, name, hint, **changes):
    changed = {"trainer_cfg.restore_hint": hint} | changes
    again = runs.Run(name, load_experiment(run.experiment.sections(), changed))
    steps.run_stage(again, "geta", test=False)
    return again


def test_results_say_what_was_kept_and_what_the_bits_cost(late):
    results = runs.load_results("r", "geta")
    kept = results["kept"]
    judged = kept["rank1_of_training_subjects"]
    written = json.loads((late.folder("geta") / "kept.json").read_text())
    assert judged == pytest.approx(written["rank1_of_training_subjects"], abs=1e-3)
    better = judged["rounded"] > judged["trained"]
    assert kept["weights"] == ("rounded" if better else "trained")
    budget = results["bit_budget"]
    assert budget["reached"] == results["bops_per_frame"] <= budget["limit"]
    assert (
        budget["limit"]
        == int(0.05 * budget["dense"])
        == int(0.05 * 1024 * results["dense"]["macs_per_frame"])
    )
    assert results["full_equals_compressed"] < 1e-4
    assert results["budget"]["reached"] <= results["budget"]["limit"]


def test_the_history_shows_when_bits_and_the_teacher_come(late):
    bits = pd.read_csv(late.file("geta", "bits.csv"))
    weights = bits[[name for name in bits if name.startswith("weights:")]]
    assert weights[:5].isna().all(axis=None) and weights[5:].notna().all(axis=None)
    history = pd.read_csv(late.file("geta", "history.csv"))
    assert (history["distillation/loss"][:6] == 0).all()
    assert (history["distillation/loss"][6:] > 0).all()
    macs = history["training_macs"].diff()
    # the teacher's forward pass is about a third of a step
    assert macs[7] == macs[8] and 1.3 < macs[7] / macs[5] < 1.5


@pytest.mark.parametrize("iteration", [3, 6, 9])
def test_resumed_in_any_phase_it_ends_as_it_did(late, iteration):
    before = _checkpoint(late, 10)
    kept = (late.folder("geta") / "kept.json").read_text()
    after = _checkpoint(_again(late, "r", iteration), 10)
    for part in ("model", "float_twin"):
        ours, theirs = (state[part].get("network", state[part]) for state in (before, after))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (late.folder("geta") / "kept.json").read_text() == kept
    # a network of the part in float is tested in float
    path = late.folder("geta") / "checkpoints" / f"GaitBase-{iteration:05}.pt"
    rounds = quantization_of(steps.load_network(late, path)) is not None
    assert rounds == (iteration == 9)


@pytest.mark.parametrize("better", ["trained", "rounded"])
def test_the_better_network_on_training_subjects_is_kept(late, better, monkeypatch):
    networks, seen = [], []

    def mean_rank1(run, network, data):
        networks.append(network)
        return 90.0 if len(networks) == (1 if better == "trained" else 2) else 80.0

    def clips(experiment, data, *, seed, count=8):
        seen.append(count)
        return original(experiment, data, seed=seed, count=count)

    original = sys.modules[MODULE].calibration_clips
    monkeypatch.setattr(sys.modules[MODULE], "_mean_rank1", mean_rank1)
    monkeypatch.setattr(sys.modules[MODULE], "calibration_clips", clips)
    again = _again(late, f"better-{better}", 0)
    state = _checkpoint(again, 10)
    kept = json.loads((again.folder("geta") / "kept.json").read_text())
    assert kept["weights"] == better and seen == [2, 8, 2]
    trained, rounded = (dict(n.state_dict()) for n in networks)
    assert all(torch.equal(v, rounded[n]) for n, v in state["model"].items()) == (
        better == "rounded"
    )
    if better == "trained":
        assert all(torch.equal(v, trained[n]) for n, v in state["model"].items())
    twin = state["float_twin"]["network"]
    error = (rounded["FCs.fc_bin"] - twin["FCs.fc_bin"]).abs().max()
    step = rounded["quantization.weights.FCs/fc_bin.d"]
    q_m = rounded["quantization.weights.FCs/fc_bin.q_m"]
    assert error <= max(step / 2 + 1e-6, twin["FCs.fc_bin"].abs().max() - q_m + 1e-6)


def test_without_the_comparison_nothing_is_judged_or_kept(late):
    changes = {
        "geta_optimizer_cfg.keep_better": False,
        "geta_optimizer_cfg.distillation": 0.0,
        "geta_optimizer_cfg.ranges": "learned",
        "geta_optimizer_cfg.learn_ranges_step": None,
        "geta_optimizer_cfg.batch_norm_batches": 0,
    }
    again = _again(late, "plain", 0, **changes)
    assert not (again.folder("geta") / "kept.json").exists()
    assert "float_twin" not in _checkpoint(again, 10)
    assert "distillation/loss" not in pd.read_csv(again.file("geta", "history.csv"))


def test_training_subjects_that_cannot_be_ranked_are_refused_before_training(late, monkeypatch):
    def refuse(experiment, data):
        assert len(data.test) == len(data.train) and np.array_equal(
            data.test.sequence(3), data.train.sequence(3)
        )
        raise ValueError("no probes")

    monkeypatch.setattr(sys.modules[MODULE], "check_test_set", refuse)
    with pytest.raises(ValueError, match="no probes. Write keep_better: false"):
        _again(late, "refused", 0)
    with pytest.raises(ValueError, match="protocol hid writes a submission instead. Write keep_b"):
        _again(late, "submission", 0, **{"evaluator_cfg.protocol": "hid"})
