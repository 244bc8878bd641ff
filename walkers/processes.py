"""Processes: walks shared out to fresh interpreters.

Plain child processes rather than a pool: they need nothing of the caller's ``__main__`` (a
notebook, a script without a guard), and inherit no threads or locks from torch.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2

from gaitlib.system.processes import WorkerError, ending
from walkers.files import write_walk


def share_out(
    root: Path, spec: dict, units: list, workers: int, done: Callable[[], object]
) -> None:
    """Draw walks in ``workers`` interpreters.

    Args:
        root: of the data set.
        spec: from ``manifest.data_spec``.
        units: (subject, type, views) of every walk to draw.
        workers: number of interpreters.
        done: called once a walk, never by two threads at a time.

    Raises:
        WorkerError: an interpreter failed or was killed; what was drawn is kept.
    """
    code = "from walkers.processes import run_share; run_share()"
    package_home = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(p for p in (package_home, os.environ.get("PYTHONPATH")) if p)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for _ in range(workers)
    ]
    lock = threading.Lock()
    errors: list[str] = []

    def attend(child: subprocess.Popen, share: list) -> None:
        try:
            with child.stdin:
                json.dump({"root": str(root), "spec": spec, "units": share}, child.stdin)
        except BrokenPipeError:
            pass  # it died early; what it said on stderr tells why
        for _ in child.stdout:
            with lock:
                done()
        said = child.stderr.read()
        if child.wait():
            lines = said.strip().splitlines() or [""]
            killed = child.returncode < 0 or not lines[-1]
            errors.append(f"died {ending(child.returncode)}" if killed else f"failed: {lines[-1]}")

    threads = [
        threading.Thread(target=attend, args=(c, units[i::workers])) for i, c in enumerate(children)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
    if errors:
        raise WorkerError(
            f"{len(errors)} of {workers} processes that draw walkers into {root} {errors[0]}. What "
            "was drawn is kept: run again to complete it"
        )


def run_share() -> None:
    """Draw the walks that standard input asks for, saying a line after each: a worker's life."""
    cv2.setNumThreads(1)
    job = json.load(sys.stdin)
    for subject, type, views in job["units"]:
        write_walk(Path(job["root"]), job["spec"], subject, type, views)
        sys.stdout.write("\n")
        sys.stdout.flush()
