"""The lock of a stage: one holder, and what killed processes leave is no obstacle."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from gaitlib.system import lock
from gaitlib.system.lock import LockedError, locked

HOLD = """
import sys
from pathlib import Path
from gaitlib.system.lock import locked
with locked(Path(sys.argv[1]), "runs/r/geta"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    path = tmp_path / "r" / ".geta.lock"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    yield child, path
    child.kill()
    child.communicate()


def test_a_second_process_is_refused_by_name_until_the_first_has_ended(other):
    child, path = other
    with pytest.raises(LockedError) as refused, locked(path, "runs/r/geta"):
        pass
    for words in ("runs/r/geta is being written by process", f" {child.pid} on ", " since 20"):
        assert words in str(refused.value)
    child.communicate()  # ends its input
    assert not path.parent.exists()
    with locked(path, "runs/r/geta"), locked(path, "runs/r/geta") as held:
        held.check()
    assert not path.exists()


def test_what_a_killed_process_left_is_taken_over(other, caplog):
    child, path = other
    child.kill()
    child.wait()
    with locked(path, "runs/r/geta") as held:
        assert f"its lock is left from process {child.pid} on" in caplog.text
        assert json.loads(path.read_text())["pid"] == os.getpid()
        path.write_text("")  # another process takes it
        with pytest.raises(LockedError, match="now an unknown process has it"):
            held.check()
    assert path.exists()  # it is the other's


def test_a_lock_of_another_machine_is_stale_when_nobody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    path = tmp_path / "lock"
    there = {"host": "far", "pid": os.getpid(), "machine": "far", "began": "1", "since": "then"}
    path.write_text(json.dumps(there))
    ended = threading.Event()

    def touch():
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on far since then"):
        with locked(path, "it"):
            pass
    ended.set()
    thread.join()
    began = time.monotonic()
    with locked(path, "it"):
        assert 0.5 <= time.monotonic() - began
        assert json.loads(path.read_text())["host"] != "far"


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    path = tmp_path / "lock"
    with locked(path, "it"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while not path.stat().st_mtime and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime
