"""Processes that load or make data: how many there may be, and how one's death is told."""

import os
import signal

HINTS = {
    "SIGKILL": "by SIGKILL, most often by the system for want of memory",
    "SIGBUS": "by SIGBUS, most often because shared memory (/dev/shm) is full",
}


class WorkerError(RuntimeError):
    """A process that loads or makes data died; the message says how, and what to do."""


class LoaderError(WorkerError):
    """A process that loads batches died."""


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ending(exitcode: int | None) -> str:
    """Say how a process ended.

    Args:
        exitcode: its exit status, minus the signal's number if one killed it, None if unknown.
    """
    if exitcode is None:
        return "for a reason that the system does not tell; most often it has no memory left"
    if exitcode >= 0:
        return f"with exit status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-exitcode}"
    return HINTS.get(name, f"by {name}")
