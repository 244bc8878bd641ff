"""Every data set from its own experiment: drawn, trained, compressed, tested, exported, summed up.

With a tiny network and two steps each, on walkers in the set's layout.
"""

import json

import onnx
import pandas as pd
import pytest
import torch
import yaml
from small_experiment import write_experiment
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from gaitlib import evaluate
from gaitlib.model import network_cost
from walkers.walker_dataset import make_walkers
from workbook import plots, runs, steps
from workbook.cli import app
from workbook.config import load_experiment
from workbook.report import run_tables
from workbook.system.folders import PARAMS

#: layout -> views to draw, conditions, the network's rows and columns, measures in results.json
EXPECTED = {
    "casia-b": (("000", "090"), ["NM", "BG", "CL"], (64, 44), {"rank1", "rank1_by_view"}),
    "oumvlp": (("000", "090"), ["NM"], (64, 44), {"rank1", "rank1_by_view"}),
    "casia-e": (("000", "270"), ["NM", "BG", "CL"], (64, 44), {"rank1", "rank1_by_view"}),
    "sustech1k": (
        ("000", "000-far"),
        ["NM", "BG", "CL", "CR", "UB", "UF", "OC", "NT", "all"],
        (64, 44),
        {"rank1", "rank1_by_view", "rank5"},
    ),
    "ccpg": (
        ("01_0", "02_0"),
        ["CL", "UP", "DN", "BG"],
        (64, 44),
        {"rank1", "rank1_by_view", "rank1_with_identical_view"}
        | {"reid_rank1", "reid_mAP", "reid_mINP"},
    ),
    "gait3d": (None, ["all"], (64, 64), {"rank1", "rank5", "rank10", "mAP", "mINP"}),
    "grew": (None, ["all"], (64, 44), {"rank1"}),
    "hid": (None, ["all"], (128, 88), {"rank1"}),
}
TINY = {
    "model_cfg.backbone_cfg": {"type": "ResNet9", "channels": [4, 8], "layers": [1, 1]}
    | {"strides": [2, 2]},
    "model_cfg.SeparateFCs": {"in_channels": 8, "out_channels": 4, "parts_num": 4},
    "model_cfg.SeparateBNNecks": {"class_num": 2, "in_channels": 4, "parts_num": 4},
    "model_cfg.bin_num": [4],
    "trainer_cfg.total_iter": 2,
    "trainer_cfg.sampler.batch_size": [2, 2],
    "trainer_cfg.sampler.frames_num_fixed": 2,
    "scheduler_cfg": {"scheduler": "CosineAnnealingLR"},
    "compression_optimizer": "hesso",
    "hesso_optimizer_cfg": {"lr": 0.01, "target_macs": 0.7, "pruning_periods": 1}
    | {"start_pruning_step": 0, "pruning_steps": 1, "start_from": "scratch"},
}


def place(layout, root):
    """Return the set's own experiment, with a tiny network on the walkers in ``root``."""
    path = PARAMS / layout.replace("-", "_") / "gaitbase.yaml"
    data = {"dataset_root": str(root), "dataset_partition": str(root / "partition.json")}
    changes = TINY | {f"data_cfg.{key}": value for key, value in data.items()}
    if layout in ("gait3d", "grew"):
        changes |= {
            "trainer_cfg.sampler.frames_num_min": 1,
            "trainer_cfg.sampler.frames_num_max": 3,
        }
    return load_experiment(path, changes)


def draw(layout, root, people=4):
    views = EXPECTED[layout][0]
    return make_walkers(
        root, layout=layout, subjects=people, train=2, frames=(2, 3), views=views, workers=1
    )


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_data_set_runs_from_its_own_experiment(layout, tmp_path, workspace, monkeypatch):
    monkeypatch.setattr(network_cost, "measure_latency", lambda *_, **__: 1.0)  # seconds
    _, conditions, size, measures = EXPECTED[layout]
    people = 24 if layout == "grew" else 4  # its file names the nearest 20
    root = draw(layout, tmp_path / "walkers", people)
    experiment = place(layout, root)
    for stage in ("baseline", "hesso"):
        this = runs.Run(layout, experiment, 0)
        steps.run_stage(this, stage)
    results = run_tables.finished(layout)
    assert list(results) == ["baseline", "hesso"]
    for result in results.values():
        assert result["conditions"] == conditions and set(result["rank1"]) == set(conditions)
        assert measures <= result.keys()
    model = steps.build_network(experiment, this.device)
    assert model.frame_size == size
    with FlopCounterMode(display=False) as counter:
        model.Backbone(torch.rand(1, 1, 1, *size))
    assert results["baseline"]["macs_per_frame"] == counter.get_total_flops() // 2
    assert results["hesso"]["macs_per_frame"] < 0.71 * results["baseline"]["macs_per_frame"]

    submission = runs.stage_dir(layout, "hesso") / "submission.csv"
    assert submission.exists() == (layout in ("grew", "hid"))
    if submission.exists():
        answers = pd.read_csv(submission, dtype=str)
        assert len(answers) == people - 2 and answers.notna().all(axis=None)
    file = steps.export_network(this, "onnx", tmp_path / "onnx", stage="hesso")
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert tuple(d.dim_value for d in shape[2:]) == size
    draw_as_notebook_5(layout, results)


def draw_as_notebook_5(run, results):
    averaging = evaluate.averaging_of(results["baseline"])
    maps = {stage: evaluate.from_results(result) for stage, result in results.items()}
    assert len(plots.view_heatmaps(maps).axes) == 3 * (len(maps["hesso"]) + 1)
    curves = pd.concat(
        evaluate.probe_view_means(m, averaging).assign(model=name) for name, m in maps.items()
    )
    plots.view_curves(curves)
    hits = [evaluate.read_hits(runs.stage_file(run, stage, "hits.csv")) for stage in results]
    drop = evaluate.bootstrap_drop(*hits, 20, averaging=averaging)
    plots.drop_intervals(drop)
    for row in drop.itertuples():
        assert row.rank1_a == pytest.approx(results["baseline"]["rank1"][row.condition], abs=0.01)
    for stage, tables in maps.items():
        for condition, table in tables.items():
            mean, rank1 = evaluate.mean_rank1(table, averaging), results[stage]["rank1"][condition]
            assert rank1 is None or mean == pytest.approx(rank1, abs=0.05)
    run_tables.trade_table(results)


def test_a_checkpoint_is_tested_on_other_data_sets_and_one_table_lists_them(tmp_path, workspace):
    files, options = {}, ["--checkpoint", str(tmp_path / "other.pt"), "--run", "t"]
    for layout in ("oumvlp", "gait3d"):
        root = draw(layout, tmp_path / layout)
        partition = json.loads((root / "partition.json").read_text())
        (root / "partition.json").write_text(json.dumps(partition | {"TRAIN_SET": []}))
        files[layout] = write_experiment(place(layout, root), tmp_path / f"{layout}.yaml")
        options += ["--cfgs", str(files[layout]), "--stage", "baseline"]
    network = steps.build_network(place("oumvlp", tmp_path), torch.device("cpu"), classes=7)
    torch.save({"model": network.state_dict()}, tmp_path / "other.pt")
    done = CliRunner().invoke(app, ["test", *options])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "runs/t/baseline/tests-other.csv").set_index("dataset")
    assert table["protocol"].to_dict() == {"OUMVLP": "oumvlp", "Gait3D": "gait3d"}
    for name, row in table.iterrows():
        results = json.loads((tmp_path / f"runs/t/baseline/test-other-{name}.json").read_text())
        assert row["rank1"] == results["rank1"][row["condition"]]
    assert table["mAP"].notna().tolist() == [False, True]
    odd = yaml.safe_load(files["oumvlp"].read_text())
    odd["data_cfg"] |= {"dataset_name": "a/b", "test_dataset_name": "OUMVLP"}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(odd))
    slash = CliRunner().invoke(app, ["test", *options, "--cfgs", str(tmp_path / "odd.yaml")])
    assert slash.exit_code == 2 and "dataset_name 'a/b' cannot name a file" in slash.stderr
    twice = CliRunner().invoke(app, ["test", *options, "--cfgs", str(files["oumvlp"])])
    assert twice.exit_code == 2 and "two files have it" in twice.stderr
