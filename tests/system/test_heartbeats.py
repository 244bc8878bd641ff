"""Processes that stop are named; busy ones, ended ones and this one's own pause are not."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from torch.distributed import HashStore

from gaitlib.system.heartbeats import Heartbeats


@pytest.fixture
def job():
    """Start processes of a job of three, with what each one is told is lost."""
    store, lost, started = HashStore(), [], []

    def start(rank):
        mine = Heartbeats(store, rank, 3, 0.6, lambda message: lost.append((rank, message)))
        started.append(mine)
        return mine

    yield store, start, lost
    for one in started:
        one.close()


def test_a_process_that_does_not_answer_is_named_to_all_others_and_an_ended_one_is_not(job):
    store, start, lost = job
    start(0), start(1).close()
    store.set("2", "7 process 99 on far")
    time.sleep(1.5)
    ((rank, message),) = lost
    assert rank == 0 and "rank 2 (process 99 on far) has not answered for 0.6 s" in message
    assert "restore_hint: latest" in message


def test_a_store_that_does_not_answer_is_named(job, monkeypatch):
    store, start, lost = job
    monkeypatch.setattr(Heartbeats, "_read", lambda self, key: time.sleep(2))
    start(1)
    time.sleep(1.2)
    ((_, message),) = lost
    assert message.startswith("the process of the job's store, rank 0 or torchrun, has not answe")


RANK = """
import os, signal, time
import psutil
from gaitlib.system import distributed
whole = distributed.Heartbeats
distributed.Heartbeats = lambda store, rank, size, _, end: whole(store, rank, size, 2.0, end)
with distributed.process_group("cpu", 200):
    distributed.wait()
    found = psutil.Process().net_connections("tcp")
    print([c.laddr.ip for c in found if c.status == "LISTEN"], flush=True)
    if distributed.rank():
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.wait()
"""


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_a_job_of_one_machine_listens_only_there():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        said, error = ranks[0].communicate(timeout=300)
    finally:
        ranks[1].send_signal(signal.SIGKILL)
    listens = said.replace("::1", "127.0.0.1")
    assert ranks[0].returncode == 2 and "127.0.0.1" in listens, error
    assert set(listens.strip("[]\n").split(", ")) == {"'127.0.0.1'"}
    assert f"error: rank 1 (process {ranks[1].pid} on " in error
    ranks[1].communicate()
