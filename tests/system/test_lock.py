"""The lock of a stage: one holder, and what killed processes leave is no obstacle."""

import os
import re
import subprocess
import sys
import threading
import time

import pytest

from workbook.system import lock
from workbook.system.lock import LockedError, locked

HOLD = """
import sys
from pathlib import Path
from workbook.system.lock import locked
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
    assert f"runs/r/geta is being written by process {child.pid} on " in str(refused.value)
    child.communicate()  # ends its input
    assert not path.parent.exists()
    with locked(path, "runs/r/geta"), locked(path, "runs/r/geta") as held:
        held.check()
    assert not path.exists()


def test_folders_that_the_lock_made_go_with_it_unless_something_is_in_them(tmp_path):
    with locked(tmp_path / "a/b/lock", "it"):
        (tmp_path / "a/kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]
    with locked(tmp_path / "c/d/lock", "it"):
        pass
    assert not (tmp_path / "c").exists()


def test_what_a_killed_process_left_is_taken_over(other):
    child, path = other
    child.kill()
    child.wait()
    with locked(path, "runs/r/geta") as held:
        held.check()
        there = path.read_text().replace(f"pid={os.getpid()}", "pid=7")
        path.write_text(re.sub("host=.*", "host=far", there))  # another process takes it
        with pytest.raises(LockedError, match="its lock is process 7 on far's"):
            held.check()


def lock_of_another_machine(folder):
    (folder / "keep").touch()  # an empty folder would go with the lock
    path = folder / "lock"
    with locked(path, "it"):
        text = path.read_text()
    path.write_text(re.sub("host=.*", "host=far", text))
    return path


def test_a_lock_of_another_machine_is_stale_when_nobody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.5)
    path = lock_of_another_machine(tmp_path)
    began = time.monotonic()
    with locked(path, "it") as held:
        assert time.monotonic() - began >= 0.5
        held.check()


def test_a_lock_of_another_machine_holds_while_somebody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 2.0)
    path = lock_of_another_machine(tmp_path)
    touch = threading.Timer(0.1, os.utime, [path])
    touch.start()
    with pytest.raises(LockedError, match="on far"), locked(path, "it"):
        pass
