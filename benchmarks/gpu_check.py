"""Check the project on a machine with a GPU and print one table: ``make gpu-check``.

The checks: the tests marked ``gpu`` (two processes that share the GPU among them), three training
steps of each stage in each number format by the command line, and all benchmarks. ``--rehearse``
runs the same commands on a CPU with one quick benchmark, which tests this file and no GPU.
"""

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.timing import ROOT
from gaitlib.system.device import device_name

EXPERIMENT = ROOT / "params/check_resume.yaml"
STAGES = ("baseline", "hesso", "geta")
FORMATS = {
    "float32": {"enable_float16": "false"},
    "float16": {"enable_float16": "true", "amp_dtype": "float16"},
    "bfloat16": {"enable_float16": "true", "amp_dtype": "bfloat16"},
}
STEPS = 3
#: Bits are lowered in the first step, channels leave in the second, bits are whole in the third.
THREE_STEPS = {
    "trainer_cfg.total_iter": STEPS,
    "trainer_cfg.save_iter": STEPS,
    "trainer_cfg.log_iter": 1,
    "evaluator_cfg.restore_hint": STEPS,
    "geta_optimizer_cfg.start_projection_step": 0,
    "geta_optimizer_cfg.projection_steps": 1,
    "geta_optimizer_cfg.projection_periods": 1,
    "geta_optimizer_cfg.start_pruning_step": 1,
    "geta_optimizer_cfg.pruning_steps": 1,
    "geta_optimizer_cfg.pruning_periods": 1,
}

Check = Callable[[Path, str], str]  # folder, device -> what was found


class CheckFailed(Exception):
    """The message says in a few words what is wrong."""


def main() -> int:
    """Run all checks; return 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with one benchmark")
    rehearse = parser.parse_args().rehearse
    if not rehearse and not torch.cuda.is_available():
        print("gpu-check: torch finds no GPU here; run it on a machine that has one")
        return 1
    device = "cpu" if rehearse else "cuda:0"
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        for name, check in _checks():
            print(f"--- {name}", flush=True)
            start = time.monotonic()
            try:
                passed, found = "passed", check(Path(folder), device)
            except CheckFailed as failure:
                passed, found = "FAILED", str(failure)
            rows.append((name, passed, found, f"{time.monotonic() - start:.0f}"))
    print(f"\n{device_name(torch.device(device))}; torch {torch.__version__}\n")
    print("| check | | found | s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return int(any(passed == "FAILED" for _, passed, _, _ in rows))


def _checks() -> list[tuple[str, Check]]:
    trained = [
        (f"{stage}, {STEPS} steps in {name}", _training(stage, name))
        for name in FORMATS
        for stage in STAGES
    ]
    return [("tests marked gpu", _tests), *trained, ("benchmarks", _benchmarks)]


def _tests(folder: Path, device: str) -> str:
    report = folder / "tests.xml"
    _python("pytest", "-m", "gpu", "tests", f"--junitxml={report}", accept=(0, 1))
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    found = ", ".join(f"{number} {key}" for key, number in count.items())
    if count["failures"] or count["errors"] or (count["skipped"] and device != "cpu"):
        raise CheckFailed(found)
    return found


def _training(stage: str, name: str) -> Check:
    values = THREE_STEPS | {f"trainer_cfg.{key}": value for key, value in FORMATS[name].items()}
    overrides = [part for key, value in values.items() for part in ("-o", f"{key}={value}")]

    def check(folder: Path, device: str) -> str:
        command = ["gaitlib", "train", "--cfgs", str(EXPERIMENT), "--run", name]
        _python(*command, "--stage", stage, "--device", device, *overrides, workspace=folder)
        with (folder / "runs" / name / stage / "history.csv").open(newline="") as file:
            losses = [float(row["total"]) for row in csv.DictReader(file)]
        if len(losses) != STEPS or not all(map(math.isfinite, losses)):
            raise CheckFailed(f"losses {losses}; {STEPS} finite ones are expected")
        return "losses " + ", ".join(f"{loss:.3f}" for loss in losses)

    return check


def _benchmarks(folder: Path, device: str) -> str:
    if device == "cpu":
        _python("benchmarks", "--quick", "--only", "step.slim")
        return "one, quickly"
    _python("benchmarks", "--device", "cuda")
    return "see the table above and benchmarks/results/cuda.csv"


def _python(module: str, *arguments: str, workspace: Path | None = None, accept=(0,)) -> None:
    environment = os.environ | ({"GAITLIB_WORKSPACE": str(workspace)} if workspace else {})
    command = [sys.executable, "-m", module, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status not in accept:
        raise CheckFailed(f"{module} ended with status {status}; its output is above")


if __name__ == "__main__":
    raise SystemExit(main())
