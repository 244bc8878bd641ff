"""A study on Dask workers: what is missing runs, what fails is recorded, nothing is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
import yaml
from small_experiment import QUANTIZED, small_experiment, write_experiment

from workbook import runs, steps
from workbook.config import ConfigError
from workbook.report.summary import summary_table
from workbook.study import expand, layer_table, point_table, read_plan, read_tables, write_tables
from workbook.study.points import state_of

pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

from distributed import Client, LocalCluster  # noqa: E402

from workbook.study import runner  # noqa: E402
from workbook.study.runner import run_study  # noqa: E402

TIMINGS = ("ms_1_clip", "ms_16_clips", "seconds")  # differ when a study runs again
METHODS = ["ptq"]  # which needs a baseline, HESSO and GETA; test_train_point has the others
HOPELESS = 0.999  # of the channels, although one of each group has to stay


@pytest.fixture(scope="module")
def walkers(tmp_path_factory):
    root = tmp_path_factory.mktemp("walkers")
    study = small_experiment(root)
    steps.open_data(study)
    return write_experiment(study, root / "base.yaml")


@contextlib.contextmanager
def _workspace(folder):
    """Use a folder; yield the lines that are logged meanwhile."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAITLIB_WORKSPACE", str(folder))
        patch.setattr(runner.log, "info", lines.append)
        yield lines


def _expand(base, folder, **keys):
    path = folder / "s.yaml"
    keys = {"base": str(base), "overrides": QUANTIZED, "methods": METHODS} | keys
    path.write_text(yaml.safe_dump(keys))
    return expand(read_plan(path))


def _kill_the_worker_once(folder, stage):
    """End the worker processes of this one as soon as a stage has written a row."""
    while not list(folder.rglob(f"{stage}/history.csv")):
        time.sleep(0.002)
    _kill_the_workers()


def _kill_the_workers():
    (server,) = [c for c in psutil.Process().children() if "forkserver" in " ".join(c.cmdline())]
    for worker in server.children():
        worker.kill()


def _scripted(point, folder, name, code, **changed):
    """Return a point whose notebook notes each of its tries, runs some code and has results."""
    begun, results = folder / f"{name}.begun", folder / "runs" / "s" / name / "results.json"
    source = f"""
import json, os, pathlib, time
begun = pathlib.Path({str(begun)!r})
begun.open("a").write("x")
tries = len(begun.read_text())
{code}
pathlib.Path({str(results)!r}).write_text(json.dumps(dict(digest={name!r})))
"""
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return replace(point, name=name, digest=name, notebooks=(str(path),), **changed)


def _tries(folder, points):
    notes = [folder / f"{point.name}.begun" for point in points]
    return [len(note.read_text()) if note.exists() else 0 for note in notes]


@pytest.fixture(scope="module")
def two_workers(walkers, tmp_path_factory):
    """The study on two workers, and one of its points that fails beside."""
    folder = tmp_path_factory.mktemp("two")
    with _workspace(folder) as lines:
        points = _expand(walkers, folder)
        bad = _expand(
            walkers,
            folder,
            overrides=QUANTIZED | {"geta_optimizer_cfg.start_from": "scratch"},
            grid={"geta_optimizer_cfg.target_group_sparsity": [HOPELESS]},
            methods=["hesso", "uniform"],
        )
        outcome = run_study("s", [*bad, *points], workers=2, device="cpu")
        yield points, bad, outcome, lines


@pytest.fixture(scope="module")
def killed(walkers, tmp_path_factory):
    """A part of the study: its process is killed after a point, then a worker in the next one."""
    folder = tmp_path_factory.mktemp("one")
    with _workspace(folder) as lines:
        points = _expand(walkers, folder, methods=["hesso"])
        baseline = runs.runs_folder() / "s" / points[0].name / "results.json"
        environment = os.environ | {"GAITLIB_WORKSPACE": str(folder)}
        command = [sys.executable, "-m", "workbook", "study", str(folder / "s.yaml"), "--workers=1"]
        study = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while state_of("s", points[0]) != "done":
            assert study.poll() is None
            time.sleep(0.01)
        study.kill()
        study.wait()
        before = baseline.stat()
        killer = threading.Thread(
            target=_kill_the_worker_once, args=(runs.runs_folder(), "hesso"), daemon=True
        )
        killer.start()
        outcome = run_study("s", points, workers=1, device="cpu")
        killer.join()
        kept = baseline.stat() == before
        yield outcome, lines, point_table("s", points), kept


@pytest.mark.slow
def test_every_point_leaves_a_row_and_a_run_that_the_other_verbs_read(two_workers):
    points, _, outcome, lines = two_workers
    assert set(outcome.done) == {point.name for point in points}
    assert set(point_table("s", points)["method"]) == {"baseline", "hesso", "geta", "ptq"}
    assert "HESSO + rounding (PTQ)" in summary_table("s/ptq-seed0")
    assert list((runs.runs_folder() / "s" / "geta-seed0" / "notebooks").iterdir()) == [
        runs.runs_folder() / "s" / "geta-seed0" / "notebooks" / "point.ipynb"
    ]
    assert any("dashboard: http://127.0.0.1:" in line for line in lines)


@pytest.mark.slow
def test_a_failed_point_is_recorded_and_the_others_finish(two_workers):
    _, (bad, narrow), outcome, _ = two_workers
    assert outcome.failed == [bad.name, narrow.name]
    folder = runs.runs_folder() / "s"
    said = (folder / bad.name / "failed.txt").read_text()
    assert "In [" in said and "target_group_sparsity asks for" in said
    assert f"needs {bad.name}, which failed" in (folder / narrow.name / "failed.txt").read_text()
    assert state_of("s", bad) == state_of("s", narrow) == "failed"


@pytest.mark.slow
def test_a_second_call_runs_what_is_missing_or_changed_alone(two_workers, walkers, tmp_path):
    points, _, _, _ = two_workers
    outcome = run_study("s", points, device="cpu")
    assert len(outcome.kept) == len(points) and not outcome.done
    changed = _expand(
        walkers, tmp_path, overrides=QUANTIZED | {"trainer_cfg.total_iter": 12}, methods=["geta"]
    )
    assert [state_of("s", point) for point in changed] == ["changed", "changed"]
    lost = next(point for point in points if point.method == "ptq")
    folder = runs.runs_folder() / "s" / lost.name
    (folder / "results.json").rename(folder / "failed.txt")
    assert state_of("s", lost) == "failed"
    outcome = run_study("s", points, workers=1, device="cpu")
    assert outcome.done == [lost.name] and len(outcome.kept) == len(points) - 1
    assert not (folder / "failed.txt").exists()


@pytest.mark.slow
def test_a_killed_study_keeps_its_points_and_a_killed_workers_point_goes_on_once_more(killed):
    outcome, lines, table, kept = killed
    assert kept and not outcome.failed and len(table) == 2
    assert sum("its process was killed, once more" in line for line in lines) == 1


@pytest.mark.slow
def test_two_workers_give_the_table_that_one_gives(two_workers, killed):
    points = two_workers[0]
    table = point_table("s", points)
    one = killed[2]
    two = table[table["point"].isin(one["point"])].set_index("point").loc[one["point"]]
    pd.testing.assert_frame_equal(
        two.reset_index().drop(columns=[*TIMINGS]), one.drop(columns=[*TIMINGS])
    )
    path = write_tables(runs.runs_folder() / "s", table, layer_table("s", points))
    pd.testing.assert_frame_equal(pd.read_parquet(path.with_suffix(".parquet")), table)
    read, layers = read_tables("s")
    pd.testing.assert_frame_equal(read, table)
    assert (layers["kept"] <= layers["total"]).all() and set(layers["point"]) == set(read["point"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["os.getpid()", "os.getppid()"], ids=["kernel", "worker"])
def test_a_point_whose_process_is_killed_twice_fails_alone(walkers, tmp_path, victim):
    with _workspace(tmp_path) as lines:
        (any_point,) = _expand(walkers, tmp_path, methods=["baseline"])
        code = f"os.kill({victim}, {signal.SIGKILL:d})"
        killer = _scripted(any_point, tmp_path, "killer", code)
        other = _scripted(any_point, tmp_path, "other", "")
        last = _scripted(any_point, tmp_path, "last", "", needs={"baseline": "killer"})
        points = [killer, other, last]
        outcome = run_study("s", points, workers=1, device="cpu")
        assert outcome.done == ["other"] and outcome.failed == ["killer", "last"]
        said = (runs.runs_folder() / "s" / "last" / "failed.txt").read_text()
    assert said == "needs killer, which failed\n"
    assert _tries(tmp_path, points) == [2, 1, 0]
    assert sum("killer: its process was killed, once more" in line for line in lines) == 1


@pytest.mark.slow
def test_points_whose_workers_die_together_are_all_tried_once_more(walkers, tmp_path):
    with _workspace(tmp_path) as lines:
        (any_point,) = _expand(walkers, tmp_path, methods=["baseline"])
        code = "time.sleep(600 if tries == 1 else 0)"
        points = [_scripted(any_point, tmp_path, name, code) for name in "ab"]
        points.append(_scripted(any_point, tmp_path, "c", ""))

        def kill_both():
            while _tries(tmp_path, points) != [1, 1, 0]:
                time.sleep(0.01)
            _kill_the_workers()

        killer = threading.Thread(target=kill_both, daemon=True)
        killer.start()
        outcome = run_study("s", points, workers=2, device="cpu")
        killer.join()
    assert sorted(outcome.done) == ["a", "b", "c"] and not outcome.failed
    assert _tries(tmp_path, points) == [2, 2, 1]
    assert sum("its process was killed, once more" in line for line in lines) == 2


def test_new_workers_start_when_dask_has_lost_all_of_them(monkeypatch):
    monkeypatch.setattr(runner, "LOST", 0)
    lines = []
    monkeypatch.setattr(runner.log, "info", lines.append)
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        batch = runner._Batch("s", {}, runner.Outcome(), client, 1, "cpu")
        batch._replace_lost_workers()
        assert client.nthreads() and not lines
        client.retire_workers()
        while not lines:
            batch._replace_lost_workers()
            time.sleep(0.05)
        client.wait_for_workers(1, timeout=60)
    assert lines == ["0 of 0 done; no worker is left, new ones start"]


def test_requests_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="--workers"):
        run_study("s", [], scheduler="tcp://a:1", workers=2)
