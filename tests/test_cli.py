"""The command line: what it prints, and the exit status of a request that cannot be met."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from gaitlib.data.casia_b import read_sequence
from workbook.cli import app
from workbook.report import summary
from workbook.steps import FORMATS
from workbook.steps.run_stage import TRAINABLE
from workbook.system.folders import PARAMS

CASIA_B = str(PARAMS / "casia_b/gaitbase.yaml")
QUICKSTART = str(PARAMS / "quickstart.yaml")


def _run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_describe_prints_the_parameters_and_macs_of_every_block():
    done = _run("describe", "--cfgs", CASIA_B, "--json")
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    assert described["params"] == 7_305_408
    assert described["macs_per_frame"] == pytest.approx(1.178e9, rel=1e-3)
    assert sum(block["params"] for block in described["blocks"]) == described["params"]


def test_describe_says_what_a_budget_means_before_anything_is_trained():
    quarter = ("-o", "geta_optimizer_cfg.target_macs=0.25")
    done = _run("describe", "--cfgs", QUICKSTART, *quarter, "--json")
    budget, dense = json.loads(done.stdout)["budget"], json.loads(done.stdout)["macs_per_frame"]
    assert (budget["dense"], budget["limit"]) == (dense, dense // 4)
    line = f"budget: at most {dense // 4:,} of {dense:,} MACs per frame (25.00%)"
    assert line in _run("describe", "--cfgs", QUICKSTART, *quarter).stdout
    bits = "bits: at most 31,258 of 500,128 bytes (6.25%)"
    assert bits in _run("describe", "--cfgs", QUICKSTART).stdout
    lowest = ("-o", f"geta_optimizer_cfg.target_macs={budget['least']}")
    assert _run("describe", "--cfgs", QUICKSTART, *lowest).exit_code == 0
    below = ("-o", f"geta_optimizer_cfg.target_macs={budget['least'] - 1}")
    assert "needs at least" in _run("describe", "--cfgs", QUICKSTART, *below).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("describe", "--cfgs", "none.yaml"), "cannot read none.yaml"),
        (("describe", "--cfgs", QUICKSTART, "-o", "trainer_cfg"), "not section.key=value"),
        (("describe", "--cfgs", QUICKSTART, "-o", "a=\x07"), "'\\x07' is not a YAML value"),
        (("describe", "--cfgs", QUICKSTART, "-o", "loss_cfg.²=3"), "² is not an entry of a list"),
        (("train", "--cfgs", QUICKSTART, "--device", "mps"), "not one of auto, cpu"),
        (("train", "--cfgs", QUICKSTART, "--run", "../mine"), "it begins with a ."),
        (("train", "--cfgs", QUICKSTART, "--device", "cuda:9"), "write 'auto' or 'cpu'"),
        (("train", "--cfgs", CASIA_B), "path/to/CASIA-B-pkl"),
        (("test", "--cfgs", QUICKSTART, "--checkpoint", "none.pt"), "none.pt"),
        (("train", "--cfgs", QUICKSTART, "--stage", "baselin"), "'baselin': choose from"),
        (("train", "--cfgs", CASIA_B, "--stage", "geta"), "add `compression_optimizer: hesso`"),
        (("summary", "no-such-run"), "02_baseline_train.ipynb"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_message_and_status_2(arguments, words):
    done = _run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_on_a_command_line_1e_3_is_a_number():
    done = _run("describe", "--cfgs", QUICKSTART, "-o", "optimizer_cfg.lr=1e-3")
    assert done.exit_code == 0, done.output


def test_a_bug_keeps_its_traceback_and_ends_with_status_1(monkeypatch):
    monkeypatch.setattr(summary, "summary_table", lambda run: list(zip([run], [], strict=True)))
    done = _run("summary", "a-run")
    assert done.exit_code == 1 and "error: " not in done.output
    assert isinstance(done.exception, ValueError)  # which Python prints with its traceback


def test_help_waits_for_nothing_that_takes_long_to_import():
    code = """
import sys
from typer.testing import CliRunner
from workbook.cli import app
done = CliRunner().invoke(app, ["--help"])
assert done.exit_code == 0 and "walkers" in done.stdout
heavy = "torch pandas pydantic matplotlib scipy cv2 only_train_once workbook.config workbook.steps"
print([name for name in heavy.split() if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_formats_and_stages_that_help_names_are_all():
    assert all(name in _run("export", "--help").stdout for name in FORMATS)
    assert all(name in _run("train", "--help").stdout for name in TRAINABLE)


@pytest.mark.slow
def test_raw_walkers_pretreated_are_the_walkers(tmp_path):
    size = ("--subjects", "2", "--train", "1", "--frames", "5", "6")
    for folder, options in (("direct", ()), ("raw", ("--raw",))):
        done = _run("walkers", str(tmp_path / folder), *size, *options)
        assert done.exit_code == 0, done.output
    done = _run("pretreat", str(tmp_path / "raw"), str(tmp_path / "pkl"))
    assert done.exit_code == 0, done.output
    paths = sorted((tmp_path / "direct").rglob("*.pkl"))
    assert len(paths) == 2 * 10 * 11
    for path in paths:
        other = tmp_path / "pkl" / path.relative_to(tmp_path / "direct")
        assert np.array_equal(read_sequence(path), read_sequence(other)), path
