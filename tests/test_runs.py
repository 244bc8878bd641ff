"""What a stage leaves on disk."""

import json

import pytest

from gaitlib import runs


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(tmp_path))


def test_results_are_sorted_rounded_and_free_of_nan(tmp_path):
    path = runs.save_results("r", "baseline", {"b": 1 / 3, "a": [float("nan"), 2]})
    text = path.read_text()
    assert json.loads(text) == {
        "a": [None, 2],
        "b": 0.333333,
        "schema": 1,
        "stage": "baseline",
    }
    assert text.index('"a"') < text.index('"b"')
    assert runs.load_results("r", "baseline")["b"] == 0.333333


def test_a_missing_stage_names_the_notebook_to_run_first():
    with pytest.raises(runs.MissingRunError, match=r"02_baseline_train.ipynb with run='r'"):
        runs.load_results("r", "baseline")


@pytest.mark.parametrize("run", ["", "..", "../other"])
def test_a_run_stays_below_the_runs_folder(run):
    with pytest.raises(ValueError, match="folder name"):
        runs.stage_dir(run, "geta")
