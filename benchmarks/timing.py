"""Two ways of doing one thing, timed in turns.

Each side runs in its own process, as it does for a user, so neither has the other's memory, threads
or caches. The two take turns, A B A B, so that a busy machine slows both; the result is the ratio
of their medians.
"""

import importlib
import logging
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gaitlib.system.processes import cores

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.1  # s, before each turn: the other side's threads keep spinning for a while


@dataclass(frozen=True)
class Setting:
    """The arguments that every side gets.

    Attributes:
        device: ``cpu`` or ``cuda``.
        folder: for data that other sides use too.
        quick: measure only a little, to see whether everything works.
    """

    device: str
    folder: Path
    quick: bool = False


@dataclass(frozen=True)
class Work:
    """What a side does repeatedly.

    Attributes:
        run: does it once.
        amount: how many things (clips, steps, MACs) that is; times are compared per thing.
    """

    run: Callable[[], object]
    amount: float = 1.0


Side = Callable[..., Work]  # takes a Setting and keyword arguments


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what, against: both sides, in words.
        ours, theirs: a `Side` and its arguments. Without ``theirs``, the rate itself is the result.
        unit: of a rate, things per second.
        target: of the ratio, theirs over ours in time per thing; or of the rate.
        at_most: the ratio is ours over theirs instead, and the target is its upper bound.
        cuda: needs a GPU.
        seconds: measure at least this long.
        turns: measure at least this often.
        memory: the peak memory of our process, in MiB, is the result.
    """

    what: str
    against: str
    ours: tuple[Side, dict[str, Any]]
    theirs: tuple[Side, dict[str, Any]] | None = None
    unit: str = "1/s"
    target: float | None = None
    at_most: bool = False
    cuda: bool = False
    seconds: float = 6.0
    turns: int = 5
    memory: bool = False


@dataclass
class Result:
    """The result of a row: things per second of both sides, and their ratio."""

    row: Row
    ours: float = float("nan")
    theirs: float = float("nan")
    ratio: float = float("nan")
    turns: int = 0
    peak_mib: float = float("nan")
    note: str = ""
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def verdict(self) -> str:
        """Return ``met``, ``missed``, ``stated`` (no target), or why there is no result."""
        if self.note:
            return self.note
        if self.row.target is None:
            return "stated"
        value = self.ratio if self.row.theirs else self.ours
        if self.row.memory:
            value = self.peak_mib
        enough = value <= self.row.target if self.row.at_most else value >= self.row.target
        return "met" if enough else "missed"


def measure(row: Row, setting: Setting) -> Result:
    """Time both sides of a row in turns."""
    result = Result(row)
    if row.cuda and setting.device != "cuda":
        result.note = "no GPU"
        return result
    chosen = [side for side in (row.ours, row.theirs) if side is not None]
    children, amounts = [], []
    try:
        for side, arguments in chosen:  # one by one: the second uses the data that the first made
            children.append(_Child(side, arguments, setting))
            amounts.append(children[-1].receive())  # it has run once, to warm up
        least, seconds = (2, 0.0) if setting.quick else (row.turns, row.seconds)
        start = time.perf_counter()
        while result.turns < least or time.perf_counter() - start < seconds:
            for times, child in zip(result.times, children, strict=False):
                time.sleep(PAUSE)
                times.append(child.ask("run"))
            result.turns += 1
        result.peak_mib = children[0].ask("peak")
    except SideError as error:
        result.note = f"failed: {error}"
        return result
    finally:
        for child in children:
            child.end()
    each = [statistics.median(t) / n for t, n in zip(result.times, amounts, strict=False)]
    result.ours = 1 / each[0]
    if row.theirs is not None:
        result.theirs = 1 / each[1]
        result.ratio = each[0] / each[1] if row.at_most else each[1] / each[0]
    return result


def machine(setting: Setting) -> dict[str, str]:
    """Describe the machine and the versions that the figures were measured with."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    gpu = torch.cuda.get_device_name() if setting.device == "cuda" else "none"
    return {
        "cpu": model,
        "cores": str(cores()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


class SideError(RuntimeError):
    """A side could not be measured."""


class _Child:
    """A process that holds one side."""

    def __init__(self, side: Side, arguments: dict[str, Any], setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        name = side.__module__, side.__qualname__
        self.process = context.Process(target=_serve, args=(theirs, *name, arguments, setting))
        self.process.start()
        theirs.close()

    def receive(self) -> float:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SideError(f"a process ended with {self.process.exitcode}") from None
        if isinstance(answer, str):
            raise SideError(answer)
        return answer

    def ask(self, what: str) -> float:
        self.pipe.send(what)
        return self.receive()

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(
    pipe: Connection, module: str, side: str, arguments: dict[str, Any], setting: Setting
) -> None:
    logging.disable(logging.WARNING)
    try:
        work = getattr(importlib.import_module(module), side)(setting, **arguments)
        work.run()
        pipe.send(float(work.amount))
        while True:
            if pipe.recv() == "peak":
                pipe.send(_peak_mib())
                continue
            _wait(setting)
            start = time.perf_counter()
            work.run()
            _wait(setting)
            pipe.send(time.perf_counter() - start)
    except (EOFError, BrokenPipeError):
        return  # the parent has measured enough, or given up
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")


def _wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _peak_mib() -> float:
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / (1 << 20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
