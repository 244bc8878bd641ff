"""Train in several processes from one that does not train, such as a notebook's kernel."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import nn

from gaitlib import runs
from gaitlib.checkpoint import find_checkpoint, load_checkpoint, restore_model
from gaitlib.config import Study
from gaitlib.data.workers import cores

log = logging.getLogger(__name__)

GRACE = 60  # seconds that processes get to save and leave


class ProcessesFailedError(RuntimeError):
    """torchrun ended with an error; the message holds what it said last."""


def train_in_processes(
    study: Study,
    run: str,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: int,
    *,
    seed: int,
    force: bool = False,
    on_history: Callable[[pd.DataFrame], None] | None = None,
    on_line: Callable[[str], None] = log.info,
) -> None:
    """Run ``torchrun ... -m gaitlib train`` on a stage and load what it trained.

    Args:
        study: the study; the processes read it from a file.
        run: folder below runs/.
        stage: ``baseline`` or ``geta``.
        model: its device's type is where the processes train; gets the trained weights.
        optimizer: gets the state at the end.
        processes: how many, on this machine.
        seed: of weights, batches and augmentation.
        force: go on from a checkpoint although the study says otherwise now.
        on_history: called with the history so far as it grows.
        on_line: called with each line that the processes print.

    Raises:
        ProcessesFailedError: if torchrun ends with an error. All processes have ended then.
    """
    history = runs.stage_dir(run, stage) / "history.csv"
    runs.RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs.RUNS, prefix=".launch-") as folder:
        cfgs = Path(folder) / "study.yaml"
        cfgs.write_text(yaml.safe_dump(study.sections(), sort_keys=False))
        arguments = ["--cfgs", str(cfgs), "--run-name", run, "--stage", stage, "--seed", str(seed)]
        arguments += ["--device", next(model.parameters()).device.type, "--no-test"]
        arguments += ["--force"] if force else []
        seen = 0  # bytes of history
        with contextlib.closing(_torchrun(processes, arguments)) as lines:
            for line in lines:
                on_line(line)
                if on_history is not None and history.is_file():
                    if (size := history.stat().st_size) > seen:
                        seen = size
                        on_history(pd.read_csv(history))
    cfg = study.trainer_cfg
    path = find_checkpoint(history.parent / "checkpoints", cfg.save_name, cfg.total_iter)
    state = load_checkpoint(path)
    restore_model(model, state["model"])
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])


def _torchrun(processes: int, arguments: list[str]) -> Iterator[str]:
    """Start the processes and give the lines they print; leave none behind."""
    environment = os.environ | {"GAITLIB_WORKSPACE": str(runs.RUNS.parent)}
    environment.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc_per_node={processes}", "-m", "gaitlib", "train", *arguments]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    last: deque[str] = deque(maxlen=100)
    try:
        for line in child.stdout:
            last.append(line.rstrip())
            yield last[-1]
        if status := child.wait():
            said = [line for line in last if "error: " in line] or list(last)[-20:]
            raise ProcessesFailedError(
                f"training in {processes} processes failed (torchrun's status {status}):\n  "
                + "\n  ".join(dict.fromkeys(said))
            )
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
        child.stdout.close()
