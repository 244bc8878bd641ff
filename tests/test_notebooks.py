"""Every notebook runs with papermill at smoke size, and leaves what the next one reads."""

import json
import os
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from workbook.config import SECTIONS, read_yaml
from workbook.system.folders import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-57]*.ipynb"))
OF_A_STUDY = ROOT / "notebooks/06_study.ipynb"
OF_A_POINT = ROOT / "notebooks/point.ipynb"
SMOKE = read_yaml(ROOT / "tests/smoke/experiment.yaml")


def _code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_common_parameters_first_and_defines_nothing(path):
    cells = _code_cells(path)
    parameters, *rest = cells
    assert parameters.metadata["tags"] == ["parameters"]
    assert parameters.source == _code_cells(NOTEBOOKS[0])[0].source
    names = papermill.inspect_notebook(path).keys()
    assert names == {"run", "seed", "device", "processes", "overrides", *SECTIONS}
    assert len(cells) <= 16
    for cell in rest:
        assert not any(line.startswith(("def ", "class ")) for line in cell.source.splitlines())
    assert sum("notebook_experiment(globals())" in cell.source for cell in rest) == 1


@pytest.mark.parametrize("path", [OF_A_STUDY, OF_A_POINT], ids=lambda path: path.stem)
def test_a_studys_notebook_has_its_parameters_first_and_refuses_others(path):
    parameters, first, *rest = _code_cells(path)
    assert parameters.metadata["tags"] == ["parameters"]
    names = ", ".join(f'"{name}"' for name in papermill.inspect_notebook(path))
    source = re.sub(r"\n\s*|(?<=,) (?={)", "", first.source)  # however the call is wrapped
    assert f"refuse_unknown(globals(),{{{names}}})" in source
    assert len(rest) <= 14


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


def _execute(path, workspace, parameters):
    papermill.execute_notebook(
        path,
        workspace / path.name,
        parameters=parameters,
        kernel_name="python3",
        cwd=path.parent,
        execution_timeout=600,
        progress_bar=False,
    )


@pytest.fixture
def in_workspace(workspace, monkeypatch):
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(workspace))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws inline
    return workspace


def _results(workspace, stage, run="smoke"):
    return json.loads((workspace / "runs" / run / stage / "results.json").read_text())


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_smoke_size(path, in_workspace):
    _execute(path, in_workspace, SMOKE)
    assert list((in_workspace / "figures/smoke").glob("*.png"))
    executed = nbformat.read(in_workspace / path.name, 4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.notebooks
def test_the_notebook_of_a_study_reads_the_tables_that_the_project_keeps(in_workspace):
    _execute(OF_A_STUDY, in_workspace, {"max_macs": 1.0, "max_drop": 0.1})  # no network is so small
    folder = in_workspace / "figures/quickstart-study"
    assert {"frontiers", "by_condition", "cuts"} <= {path.stem for path in folder.glob("*.png")}
    assert (folder / "table.csv").read_text() == (
        ROOT / folder.relative_to(in_workspace) / "table.csv"
    ).read_text()
    executed = nbformat.read(in_workspace / OF_A_STUDY.name, 4)
    texts = [o.get("text", "") for cell in executed.cells for o in cell.get("outputs", ())]
    assert any("is within" in text and "over max_macs" in text for text in texts)


@pytest.mark.notebooks
def test_the_stages_leave_results_that_hold_the_contract(workspace):
    dense, geta = (_results(workspace, stage) for stage in ("baseline", "geta"))
    for results in (dense, geta):
        assert results["schema"] == 1
        assert results["iterations"] == 40
        assert results["rank1"].keys() == {"NM", "BG", "CL"}
        assert [len(row) for row in results["rank1_by_view"]["NM"]] == [11] * 11
        assert results["latency_ms"].keys() == {"batch_1", "batch_16"}
    assert geta["macs_per_frame"] <= 0.25 * geta["dense"]["macs_per_frame"]
    assert 4 <= geta["bits"]["weights"] <= 8 and geta["relative_bops"] < 6
    assert geta["lowbit_bytes"] < geta["file_bytes"]
    assert _results(workspace, "ptq")["bits"]["weights"] == pytest.approx(
        geta["bits"]["weights"], abs=0.5
    )  # the same bits, on other channels
    assert geta["full_equals_compressed"] < 1e-4
    assert geta["params"] < dense["params"] == geta["dense"]["params"]
    assert geta["file_bytes"] < dense["file_bytes"]


@pytest.mark.notebooks
def test_the_command_line_repeats_a_notebook_figure_for_figure(in_workspace):
    overrides = [f"-o{key}={json.dumps(value)}" for key, value in SMOKE["overrides"].items()]
    for stage in ("baseline", "geta"):
        command = [sys.executable, "-m", "workbook", "train", "--cfgs", "params/quickstart.yaml"]
        command += ["--run", "cli", "--stage", stage, *overrides]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        by_notebook, by_command = (_results(in_workspace, stage, run) for run in ("smoke", "cli"))
        for results in (by_notebook, by_command):
            results.pop("latency_ms")
            results.pop("training_seconds")
            results.get("dense", {}).pop("latency_ms", None)
        assert by_command == by_notebook
    assert "GETA" in done.stdout


@pytest.mark.notebooks
def test_the_command_line_exports_what_the_notebooks_compressed(in_workspace, tmp_path):
    command = [sys.executable, "-m", "workbook", "export", "--run", "smoke"]
    command += ["--format", "onnx-int8", "--round-sums", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.onnx")
    assert f"{file.stat().st_size:,} bytes" in done.stdout


@pytest.mark.notebooks
def test_a_notebook_trains_in_two_processes_and_shows_their_log(in_workspace):
    path = NOTEBOOKS[1]
    _execute(path, in_workspace, SMOKE | {"run": "two", "processes": 2, "device": "cpu"})
    executed = nbformat.read(in_workspace / path.name, 4)
    texts = [o.get("text", "") for cell in executed.cells for o in cell.get("outputs", ())]
    assert any("baseline 40/40: total" in text for text in texts)
    assert _results(in_workspace, "baseline", "two")["iterations"] == 40


@pytest.mark.notebooks
def test_a_parameter_that_no_notebook_knows_is_refused(in_workspace):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'overrides'"):
        _execute(NOTEBOOKS[4], in_workspace, {"overides": {}})


@pytest.mark.notebooks
def test_gaitlib_notebooks_executes_one_from_the_shell(in_workspace):
    command = [sys.executable, "-m", "workbook", "notebooks", str(OF_A_STUDY)]
    command += ["--run", "quickstart-study"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()  # no terminal and under a minute: one line, no warnings
    assert line.startswith("notebook 1 of 1, 06_study: done in ")
    assert (in_workspace / "runs/quickstart-study/notebooks" / OF_A_STUDY.name).exists()
