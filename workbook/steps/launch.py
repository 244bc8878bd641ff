"""Start training in several processes from a process that does not train, such as a notebook."""

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

from gaitlib.system.errors import UserError
from gaitlib.system.processes import cores
from gaitlib.train.checkpoint import find_checkpoint, load_checkpoint, restore_model
from gaitlib.train.history import read_rows
from workbook.runs import Run, runs_folder, workspace

log = logging.getLogger(__name__)

#: Processes of one machine find each other through a file, and connect over its loopback address:
#: nothing listens to other machines. By default torchrun's store listens on all interfaces.
ON_THIS_MACHINE = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1")
WITHOUT_ITS_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SECONDS_TO_STOP = 60  # after SIGINT, before the processes are killed


class ProcessesFailedError(UserError):
    """torchrun ended with an error; the message contains its last lines."""


def train_in_processes(
    run: Run,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: int,
    *,
    force: bool = False,
    on_history: Callable[[pd.DataFrame], None] | None = None,
    on_line: Callable[[str], None] = log.info,
) -> None:
    """Run ``torchrun ... -m workbook train`` on a stage and load the trained weights.

    Args:
        run: its experiment is written to a file for the processes.
        stage: a name of `workbook.runs.STAGES`.
        model: receives the trained weights. The processes train on its type of device.
        optimizer: receives the state at the end of training.
        processes: number of processes on this machine.
        force: resume even if the experiment differs from the checkpoint's.
        on_history: called with the history so far whenever it has grown.
        on_line: called with each line that the processes print.

    Raises:
        ProcessesFailedError: if torchrun ends with an error; all processes have ended by then.
    """
    runs_folder().mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device.type
    with tempfile.TemporaryDirectory(dir=runs_folder(), prefix=".launch-") as folder:
        cfgs = Path(folder) / "experiment.yaml"
        cfgs.write_text(yaml.safe_dump(run.experiment.sections(), sort_keys=False))
        arguments = ["--cfgs", str(cfgs), "--run-name", run.name, "--stage", stage]
        arguments += ["--seed", str(run.seed), "--device", device, "--no-test", "--no-compress"]
        arguments += ["--force"] if force else []
        bytes_seen = 0  # of history.csv
        with contextlib.closing(_torchrun(processes, Path(folder) / "store", arguments)) as lines:
            for line in lines:
                on_line(line)
                history = run.folder(stage) / "history.csv"
                if on_history is not None and history.is_file():
                    if (size := history.stat().st_size) > bytes_seen:
                        bytes_seen = size
                        on_history(pd.DataFrame(read_rows(history)))
    cfg = run.of_stage(stage).experiment.trainer_cfg
    path = find_checkpoint(run.folder(stage) / "checkpoints", cfg.save_name, cfg.total_iter)
    state = load_checkpoint(path)
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])  # first: channels leave the network with it
    restore_model(model, state["model"])


def _torchrun(processes: int, store: Path, arguments: list[str]) -> Iterator[str]:
    """Start the processes and yield the lines they print; on exit no process is left.

    Args:
        processes: on this machine.
        store: a new file, through which they find each other.
        arguments: of ``gaitlib train``.
    """
    environment = os.environ | WITHOUT_ITS_STORE | {"GAITLIB_WORKSPACE": str(workspace())}
    environment.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", *ON_THIS_MACHINE]
    torchrun += [f"--rdzv-endpoint={store}", f"--nproc_per_node={processes}"]
    command = [*torchrun, "-m", "workbook", "train", *arguments]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    last_lines: deque[str] = deque(maxlen=100)
    try:
        for line in child.stdout:
            last_lines.append(line.rstrip())
            yield last_lines[-1]
        if status := child.wait():
            errors = [line for line in last_lines if "error: " in line]
            raise ProcessesFailedError(
                f"training in {processes} processes failed (torchrun's status {status}):\n  "
                + "\n  ".join(dict.fromkeys(errors or list(last_lines)[-20:]))
            )
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                child.kill()
        child.stdout.close()
