"""What a study will cost: seconds from a smoke run, or from points that are done."""

import json
import re

import pytest
import yaml
from small_experiment import small_experiment, write_experiment
from typer.testing import CliRunner

from gaitlib.system.processes import cores
from workbook import runs
from workbook.cli import app
from workbook.study import expand, read_plan

cost = pytest.importorskip("workbook.study.estimate")

SPARSITY = "hesso_optimizer_cfg.target_group_sparsity"
GB = 1_000_000_000


@pytest.fixture
def file(tmp_path, workspace):
    """Return a study's file of two pruned networks."""
    base = write_experiment(small_experiment(tmp_path / "walkers"), tmp_path / "base.yaml")
    path = tmp_path / "s.yaml"
    values = {"base": str(base), "grid": {SPARSITY: [0.3, 0.6]}, "methods": ["hesso"]}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_dry_run_estimates_each_point_by_a_smoke_run(file):
    done = CliRunner().invoke(app, ["study", str(file), "--dry-run", "--workers", "2"])
    assert done.exit_code == 0, done.output
    *points, total = done.stdout.splitlines()
    assert len(points) == 2
    for line in points:
        assert re.fullmatch(r"missing +\d\.\d min  hesso-\S+-seed0 \(smoke run\)", line)
    pattern = r"2 points, 0 done; the others about \d min, 2 at once, each with \d\.\d GB at most"
    assert re.fullmatch(pattern, total)
    assert not runs.runs_folder().exists()


def test_a_point_that_is_done_gives_the_seconds_of_its_method(file, monkeypatch):
    monkeypatch.setattr(
        cost, "smoke_runs", lambda asked, _: dict.fromkeys(asked, cost.SmokeRun(2.0, 5.0, GB))
    )
    points = expand(read_plan(file))
    before = cost.estimate("s", points)
    ten_steps_and_the_test = 10 * 2.0 + 5.0
    assert before["seconds"].tolist() == [cost.OVERHEAD_SECONDS + ten_steps_and_the_test] * 2
    folder = runs.runs_folder() / "s" / points[0].name
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "point.ipynb").touch()
    results = {"digest": points[0].digest, "seconds": 70.0}
    (folder / "results.json").write_text(json.dumps(results))
    after = cost.estimate("s", points)
    assert after["state"].tolist() == ["done", "missing"]
    assert after["seconds"].tolist() == [70.0, 70.0]
    assert after["source"].tolist() == ["measured", "measured for its method"]


def test_as_many_points_run_at_once_as_have_a_core_and_memory():
    assert cost.workers_for(1, "cpu") == cores()
    assert cost.workers_for(1e15, "cpu") == 1
    assert cost.workers_for(float("nan"), "cpu") == cores()  # nothing was measured
