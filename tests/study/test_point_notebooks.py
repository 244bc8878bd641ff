"""Notebooks in order: what the line says of them, and what a failing one leaves."""

import os

import pytest

from workbook.config import ConfigError
from workbook.study import point_notebooks
from workbook.study.point_notebooks import PointError, execute_in_order
from workbook.study.progress import training_words
from workbook.system.folders import ROOT


@pytest.fixture
def training(tmp_path):
    """A run whose stage geta has logged iteration 120 of 250, at half a second per step."""
    stage = tmp_path / "geta"
    stage.mkdir()
    (stage / "config.yaml").write_text("trainer_cfg: {total_iter: 250}\n")
    rows = "iteration,total,lr,step_ms\n115,2.7,0.1,500\n120,2.613,0.1,500\n125,2.5,0.1"
    (stage / "history.csv").write_text(rows)  # the last row is not complete yet
    return tmp_path


def test_a_training_is_its_stage_iteration_loss_and_minutes(training):
    assert training_words("a", training) == "a: geta 120/250, loss 2.61, 1 min left"  # 130 steps
    log = training / "geta/history.csv"
    assert training_words("a", training, since=log.stat().st_mtime + 1) == "a"  # an earlier one
    log.write_text("iteration,total,lr,step_ms\n250,2.6,0.1,500\n")
    assert training_words("a", training) == "a"  # it has ended


def test_the_newest_training_is_told(training):
    other = training / "hesso"
    other.mkdir()
    (other / "config.yaml").write_text("trainer_cfg: {total_iter: 250}\n")
    (other / "history.csv").write_text("iteration,total,step_ms\n240,1.5,500\n")
    os.utime(training / "geta/history.csv", (1, 1))
    assert training_words("a", training) == "a: hesso 240/250, loss 1.50, under a minute left"


@pytest.fixture
def notebook(tmp_path, workspace):
    path = tmp_path / "02_train.ipynb"
    path.touch()
    return path


def test_notebooks_run_in_order_with_the_experiment_and_stop_at_a_failure(
    notebook, tmp_path, monkeypatch, caplog
):
    calls = []
    caplog.set_level("INFO")

    def execute(source, output, values):
        calls.append((source.name, output.relative_to(tmp_path).as_posix(), dict(values)))
        if len(calls) == 2:
            raise PointError("NameError: train")

    monkeypatch.setattr(point_notebooks, "execute", execute)
    cfgs = tmp_path / "experiment.yaml"
    cfgs.write_text("trainer_cfg: {total_iter: 3}\n")
    with pytest.raises(PointError, match="NameError: train"):
        execute_in_order([notebook] * 3, "mine", cfgs)
    values = {"trainer_cfg": {"total_iter": 3}, "run": "mine"}
    assert calls == [("02_train.ipynb", "runs/mine/notebooks/02_train.ipynb", values)] * 2
    assert caplog.messages == ["notebook 1 of 3, 02_train: done in 0.0 min"]
    with pytest.raises(ConfigError, match="no notebook .*none.ipynb"):
        execute_in_order([ROOT / "none.ipynb"], "mine", None)
