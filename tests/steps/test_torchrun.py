"""torchrun as a user starts it: it trains, stops when asked, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from small_experiment import small_experiment, write_experiment

from gaitlib.train.checkpoint import checkpoints, load_checkpoint
from workbook.steps.launch import ON_THIS_MACHINE, WITHOUT_ITS_STORE

pytestmark = pytest.mark.slow

PORT = 29653
SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torchrun")


def _start(folder, run, *arguments, launcher=(f"--master_port={PORT}",), env=None, **trainer_cfg):
    experiment = write_experiment(
        small_experiment(folder / "walkers", **trainer_cfg), folder / f"{run}.yaml"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *launcher]
    command += ["-m", "workbook", "train", "--cfgs", str(experiment)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"GAITLIB_WORKSPACE": str(folder), "OMP_NUM_THREADS": "1"} | (env or {}),
    )


def _once_it_trains(job, iteration):
    """Read the log up to an iteration; give the ranks' processes."""
    said = []
    for line in job.stdout:
        said.append(line)
        if f"/{10**6}: " in line and f" {iteration}/" in line:
            ranks = [c for c in psutil.Process(job.pid).children() if "workbook" in c.cmdline()]
            assert len(ranks) == 2
            return ranks
    pytest.fail("it never trained:\n" + "".join(said))


def _nothing_is_left(job, started):
    said, _ = job.communicate(timeout=SECONDS)
    _, alive = psutil.wait_procs(started, timeout=SECONDS)
    assert job.returncode != 0 and not alive
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("localhost", PORT))
    return said


def test_a_rank_that_is_killed_ends_all_and_the_last_checkpoint_stays(folder):
    job = _start(folder, "killed", total_iter=10**6, save_iter=5)
    ranks = _once_it_trains(job, 12)
    began = time.monotonic()
    ranks[1].kill()
    said = _nothing_is_left(job, ranks)
    assert time.monotonic() - began < SECONDS
    assert "another process of this job has ended" in said
    saved = checkpoints(folder / "runs/killed/hesso/checkpoints", "GaitBase")
    assert load_checkpoint(saved[10])["iteration"] == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_first(folder, number):
    run = f"stopped{number}"
    job = _start(folder, run, total_iter=10**6, save_iter=10**6)
    ranks = _once_it_trains(job, 7)
    job.send_signal(number)
    said = _nothing_is_left(job, ranks)
    (iteration,) = checkpoints(folder / f"runs/{run}/hesso/checkpoints", "GaitBase")
    assert iteration >= 7 and f"stopped after iteration {iteration} and saved" in said


def test_the_ranks_save_and_leave_when_their_launcher_is_killed(folder):
    run = f"stopped{signal.SIGTERM}"  # goes on where the test above was stopped
    (before,) = checkpoints(folder / f"runs/{run}/hesso/checkpoints", "GaitBase")
    job = _start(folder, run, total_iter=10**6, save_iter=10**6, restore_hint="latest")
    ranks = _once_it_trains(job, before + 1)
    job.kill()
    _nothing_is_left(job, ranks)
    assert max(checkpoints(folder / f"runs/{run}/hesso/checkpoints", "GaitBase")) > before


def test_two_processes_train_test_and_compress_from_the_command_line(folder):
    launcher = (*ON_THIS_MACHINE, f"--rdzv-endpoint={folder / 'store'}")
    job = _start(folder, "whole", launcher=launcher, env=WITHOUT_ITS_STORE, fix_BN=True)
    said = next(line for line in job.stdout if "hesso 1/10" in line)
    listens = {
        connection.laddr.ip
        for process in (psutil.Process(job.pid), *psutil.Process(job.pid).children())
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    said += job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert "group sparsity 0.500" in said and listens == {"127.0.0.1"}
    stage = folder / "runs/whole/hesso"
    assert list(pd.read_csv(stage / "history.csv")["iteration"]) == list(range(1, 11))
    assert list(checkpoints(stage / "checkpoints", "GaitBase")) == [3, 6, 9, 10]


def test_a_port_in_use_is_one_clear_message(folder, monkeypatch):
    experiment = write_experiment(small_experiment(folder / "walkers"), folder / "port.yaml")
    with socket.socket() as busy:
        busy.bind(("localhost", 0))
        busy.listen()
        port = busy.getsockname()[1]
        rank = {"RANK": "0", "WORLD_SIZE": "2"}
        rank |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "workbook", "train", "--cfgs", experiment, "--device=cpu"],
            capture_output=True,
            text=True,
            env=os.environ | rank,
        )
    assert done.returncode == 2
    assert f"error: the port of localhost:{port} is in use" in done.stderr
