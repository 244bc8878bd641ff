"""Processes that load or make data: how many may run, and how to report that one died."""

import os
import signal

from gaitlib.system.errors import UserError

HINTS = {
    "SIGKILL": "by SIGKILL, most often because memory ran out",
    "SIGBUS": "by SIGBUS, most often because shared memory (/dev/shm) is full",
}


class WorkerError(UserError):
    """A process that loads or makes data died; the message says how it died and what to do."""


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_exit(exitcode: int | None) -> str:
    """Return how a process ended, to follow "died" in a message.

    Args:
        exitcode: its exit status; the signal's number, negated, if one killed it; None if unknown.
    """
    if exitcode is None:
        return "for a reason that the system does not report; most often memory ran out"
    if exitcode >= 0:
        return f"with exit status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-exitcode}"
    return HINTS.get(name, f"by {name}")
