"""Signals that stop a training run after a whole iteration, when it can save a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class TrainingStopped(Exception):  # noqa: N818 (requested, not an error)
    """A signal stopped the run after a whole iteration, and a checkpoint was saved.

    Attributes:
        signal: its number.
        iteration: iterations done.
    """

    def __init__(self, signal: int, iteration: int) -> None:
        super().__init__(
            f"stopped after iteration {iteration} and saved; "
            "trainer_cfg.restore_hint: latest continues from there"
        )
        self.signal, self.iteration = signal, iteration


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that open files and processes are closed."""

    def raise_exit(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled_by(raise_exit, (signal.SIGTERM,)):
        yield


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT (Ctrl-C, a notebook's stop button) instead of obeying them.

    A SIGINT after another signal raises KeyboardInterrupt. Only the main thread may handle signals;
    in other threads nothing is collected.

    Yields:
        The list of signals received so far.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    with _handled_by(remember, (signal.SIGTERM, signal.SIGINT)):
        yield received


@contextlib.contextmanager
def _handled_by(handler: Handler, signals: Sequence[int]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
