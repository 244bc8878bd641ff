"""What a training carries from step to step beside network, optimizer and schedule."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gaitlib.system import distributed
from gaitlib.system.device import Precision
from gaitlib.system.errors import UserError
from gaitlib.system.random_streams import random_state, restore_random_state
from gaitlib.train.saved_state import load_checked
from gaitlib.train.teacher import Teacher
from gaitlib.train.training_cost import TrainingCost


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message gives the iteration and every term."""


class LogWindow:
    """The scalars since the last logged row: kept on the device, read back once per row."""

    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.values: list[dict[str, Tensor]] = []
        self.step_ms = 0.0
        self.seconds_before = 0.0  # of steps before a resumption inside the window
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the clock of ``step_ms``, to exclude the time of saving and testing."""
        self.started = time.perf_counter()

    def add(self, iteration: int, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one iteration; the first is the total loss."""
        self.iterations.append(iteration)
        self.values.append(scalars)

    def check(self) -> dict[str, float]:
        """Return the means so far.

        Raises:
            NonFiniteLossError: if a loss is not finite; the message is about the first.
        """
        if not self.values:
            return {}
        names, table = self._table()
        finite = table[:, 0].isfinite()
        if not finite.all():
            first = int((~finite).nonzero()[0])
            terms = ", ".join(f"{n} {v:g}" for n, v in zip(names, table[first], strict=True))
            raise NonFiniteLossError(
                f"the loss is not finite at iteration {self.iterations[first]}: {terms}. "
                "Lower the learning rate, or look at the batch's data"
            )
        return dict(zip(names, table.double().mean(0).tolist(), strict=True))

    def close(self) -> dict[str, float]:
        """Return the means and start the next window."""
        means = self.check()
        self.step_ms = 1e3 * self._seconds() / len(self.values)
        self.iterations, self.values, self.seconds_before = [], [], 0.0
        self.restart_clock()
        return means

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the window as plain values and one tensor."""
        names, table = self._table()
        window = {"iterations": list(self.iterations), "names": names, "table": table}
        return window | {"seconds": self._seconds() if names else 0.0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved window."""
        self.seconds_before = state["seconds"]
        self.iterations = list(state["iterations"])
        names = state["names"]
        self.values = [dict(zip(names, row, strict=True)) for row in state["table"]]

    def _table(self) -> tuple[list[str], Tensor]:
        """Return the scalars' names and their float32 values ``(iterations, scalars)``."""
        names = list(self.values[0]) if self.values else []
        rows = [torch.stack([v[n].float() for n in names]).cpu() for v in self.values]
        return names, torch.stack(rows) if rows else torch.empty(0)


class RandomStreams:
    """The global random streams of all processes, as an entry of a checkpoint."""

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the streams of every process, by rank; every process must call this."""
        return distributed.gather(random_state())

    def load_state_dict(self, streams: list[Mapping[str, Any]]) -> None:
        """Restore this process's streams, if there were as many processes."""
        if distributed.rank() < len(streams):
            restore_random_state(streams[distributed.rank()])


@dataclass
class TrainingState:
    """How a training computes its steps, and what it carries from one to the next.

    Attributes:
        seed: of the augmentation.
        precision: the number format of the network's forward.
        fix_bn: do not update the statistics of batch norms.
        teachers: networks whose logits it also learns, by their entry in a checkpoint.
        cost: counts the multiply-adds of the steps; None counts none.
        window: the scalars since the last row of history.
        scaler: of the gradients, which float16 needs; None makes the precision's.
    """

    seed: int = 0
    precision: Precision = Precision(torch.device("cpu"))
    fix_bn: bool = False
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    cost: TrainingCost | None = None
    window: LogWindow = field(default_factory=LogWindow)
    scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        if self.scaler is None:
            self.scaler = self.precision.scaler()

    def _parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it, by entry."""
        parts = {"scaler": self.scaler, "window": self.window, "random": RandomStreams()}
        return {**self.teachers, **parts} | ({"cost": self.cost} if self.cost else {})

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint's entries that OpenGait's do not have; every process calls this."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's entries; those that it lacks stay as they are.

        Raises:
            StateError: if an entry is damaged, or a teacher is another one.
        """
        for name, part in self._parts().items():
            if state.get(name):
                load_checked(part, state[name], name)
