"""Runs and stages on disk: results, folders."""

import json

import pytest

from workbook import runs
from workbook.config import load_experiment
from workbook.steps.start_of_stage import set_aside

pytestmark = pytest.mark.usefixtures("workspace")


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


@pytest.mark.parametrize("content", ["", '{"schema": 1', "[]", "[" * 99999, b"\xff"])
def test_damaged_results_are_named_with_what_writes_them_anew(content, tmp_path):
    path = runs.save_results("r", "baseline", {})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="restore_hint: latest, which writes it anew") as refused:
        runs.load_results("r", "baseline")
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("run", "fault"),
    {
        "": "empty",
        "..": "begins with a .",
        "../other": "begins with a .",
        "/tmp/other": "empty",
        "a\\b": "separate folders",
        "a/baseline": "'baseline' is a folder of runs/a",
        "a/previous": "'previous' is a folder of runs/a",
        "a\n": "space",
        "a\x07b": "control character",
        "a" * 256: "255 bytes",
        2024: "not text: quote it; in papermill, write -r run 2024",
    }.items(),
)
def test_a_run_is_named_as_a_folder_below_runs(run, fault):
    for use in (lambda: runs.stage_dir(run, "geta"), lambda: runs.Run(run, load_experiment())):
        with pytest.raises(ValueError, match=f"^run {'is ' * (run == 2024)}") as refused:
            use()
        assert fault in str(refused.value)


@pytest.mark.parametrize("run", ["baseline", "study/geta-seed0", "Läufe in 北京", "x..y"])
def test_a_run_may_have_any_other_name_and_runs_may_be_a_link(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "elsewhere")
    runs.save_results(run, "baseline", {"a": 1})
    assert (tmp_path / "elsewhere" / run / "baseline" / "results.json").exists()
    assert runs.load_results(run, "baseline")["a"] == 1
    set_aside(runs.Run(run, load_experiment()), "baseline")
    assert len(list((tmp_path / "elsewhere" / run / "previous").iterdir())) == 1


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, True, "0"])
def test_a_seed_is_a_whole_number_from_0(seed):
    with pytest.raises(ValueError, match="seed is .*: write a whole number from 0"):
        runs.Run("r", load_experiment(), seed)


def test_an_unknown_stage_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown stage 'gta'; choose from .*'geta'"):
        runs.stage_dir("r", "gta")
