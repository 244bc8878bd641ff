"""Draw walks in several processes: child interpreters, each with a share of the walks.

They are not a ``concurrent.futures.ProcessPoolExecutor``, because its spawn and forkserver
processes run the caller's script again, which breaks a script without a ``__main__`` guard, and its
forked processes may wait forever for a lock that a thread of torch or OpenCV held.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from gaitlib.system.processes import WorkerError, describe_exit
from walkers.walk_files import write_walk


def draw_in_processes(
    root: Path, spec: dict, walks: list, workers: int, on_walk: Callable[[], object]
) -> None:
    """Draw walks in ``workers`` child interpreters.

    Args:
        root: folder of the data set.
        spec: from ``manifest.data_spec``.
        walks: (person, walk, places) of every walk to draw.
        workers: number of child interpreters.
        on_walk: called once per drawn walk, never by two threads at the same time.

    Raises:
        WorkerError: a process failed or was killed; what was drawn is kept.
    """
    children = [_start_child() for _ in range(workers)]
    shares = [walks[i::workers] for i in range(workers)]
    lock = threading.Lock()

    def supervise(child: subprocess.Popen, share: list) -> str:
        """Send a child its share, and return why it failed, or "" if it did not."""
        try:
            with child.stdin:
                json.dump({"root": str(root), "spec": spec, "walks": share}, child.stdin)
        except BrokenPipeError:
            pass  # the child died early; its stderr says why
        for _ in child.stdout:
            with lock:
                on_walk()
        lines = child.stderr.read().strip().splitlines() or [""]
        if child.wait() == 0:
            return ""
        killed = child.returncode < 0 or not lines[-1]
        return f"died {describe_exit(child.returncode)}" if killed else f"failed: {lines[-1]}"

    with ThreadPoolExecutor(workers) as threads:
        try:
            reasons = [r for r in threads.map(supervise, children, shares) if r]
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
    if reasons:
        raise WorkerError(
            f"{len(reasons)} of {workers} processes that draw walkers into {root} {reasons[0]}. "
            "What was drawn is kept: run again to complete it"
        )


def _start_child() -> subprocess.Popen:
    """Start an interpreter that finds the same modules as this one and waits for its share."""
    path = [str(folder) for folder in sys.path]
    code = f"import sys; sys.path[:] = {path}; import {__name__} as p; p.draw_share()"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def draw_share() -> None:
    """Draw the walks that standard input lists, and print an empty line after each."""
    cv2.setNumThreads(1)
    job = json.load(sys.stdin)
    for person, walk, places in job["walks"]:
        write_walk(Path(job["root"]), job["spec"], person, walk, places)
        print(flush=True)
