"""The page that shows the whole idea: it runs, and is the training that the command line does."""

import json

import matplotlib
import torch
import yaml
from typer.testing import CliRunner

from gaitlib.train.checkpoint import load_checkpoint
from workbook.cli import app
from workbook.config import load_experiment
from workbook.system.folders import ROOT

PAGE = ROOT / "notebooks/00_on_one_page.ipynb"
SMALL = {
    "subjects": 8,
    "train_subjects": 6,
    "frames": (4, 5),
    "channels": [4, 8, 8, 16],
    "steps": 10,
}


def cells():
    found = json.loads(PAGE.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_the_page_has_sixty_lines_and_needs_gaitlib_and_walkers_alone():
    code = "\n".join(cells())
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    assert "workbook" not in code and "yaml" not in code


def test_its_dense_network_is_that_of_the_command_line_bit_for_bit(tmp_path, workspace):
    matplotlib.use("Agg")
    parameters, *rest = cells()
    page = {}
    exec(parameters, page)
    page |= SMALL | {"folder": str(tmp_path / "walkers")}
    for cell in rest:
        exec(cell, page)
    dense, small = page["dense"], page["cut"].model
    assert page["cut"].max_error < 1e-4
    assert page["gl"].macs_per_frame(small) <= 0.25 * page["gl"].macs_per_frame(dense)

    walker = {"subjects": 8, "train": 6, "frames": [4, 5]}
    experiment = load_experiment(
        None,
        {
            "data_cfg.walker": walker,
            "data_cfg.dataset_root": str(tmp_path / "walkers"),
            "model_cfg.backbone_cfg": {"type": "ResNet9", "channels": SMALL["channels"]},
            "model_cfg.SeparateFCs.in_channels": 16,
            "model_cfg.SeparateBNNecks.class_num": 6,
            "trainer_cfg.total_iter": 10,
            "trainer_cfg.sampler": {"batch_size": [6, 6], "frames_num_fixed": 3},
            "compression_optimizer": None,
            "geta_optimizer_cfg": None,
        },
    )
    file = tmp_path / "same.yaml"
    file.write_text(yaml.safe_dump(experiment.sections()))
    arguments = ["train", "--cfgs", str(file), "--run", "same", "--device", "cpu", "--no-test"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "runs/same/baseline/checkpoints").glob("*-00010.pt")
    weights = load_checkpoint(path)["model"]
    for name, value in dense.state_dict().items():
        assert torch.equal(value, weights[name]), name
