"""A run killed at random moments and resumed is the run that was never killed, bit for bit."""

import os
import subprocess
import sys

import pytest
import torch

from gaitlib.train.checkpoint import load_checkpoint
from workbook import runs
from workbook.config import load_experiment
from workbook.steps.check_resume import KILLED, WHOLE, compare_runs
from workbook.system.folders import PARAMS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Where the command has killed and compared a run."""
    folder = tmp_path_factory.mktemp("check-resume")
    users = folder / "runs" / "check-resume" / "baseline" / "results.json"
    users.parent.mkdir(parents=True)
    users.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "workbook", "check-resume", "--kills", "4"],
        capture_output=True,
        text=True,
        env=os.environ | {"GAITLIB_WORKSPACE": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    assert "4 kills: weights, groups, optimizer state and metrics are identical" in done.stdout
    assert done.stdout.count("kill ") == 4
    assert users.read_text() == "{}"  # of a run that happens to have its name
    return folder


def test_the_command_kills_dense_and_pruning_and_finds_no_difference(workspace):
    for stage in ("baseline", "geta"):
        assert (workspace / "runs" / KILLED / stage / "results.json").exists()


def test_one_changed_bit_would_be_found(workspace, monkeypatch):
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(workspace))
    experiment = load_experiment(PARAMS / "check_resume.yaml")
    whole, killed = runs.Run(WHOLE, experiment), runs.Run(KILLED, experiment)
    assert compare_runs(whole, killed, "geta") == []
    path = runs.stage_dir(KILLED, "geta") / "checkpoints" / "GaitBase-00060.pt"
    state = load_checkpoint(path)
    bits = state["model"]["FCs.fc_bin"].view(torch.int32)
    bits[0, 0, 0] ^= 1
    torch.save(state, path)
    assert compare_runs(whole, killed, "geta") == ["geta/checkpoint/model/FCs.fc_bin: other values"]
