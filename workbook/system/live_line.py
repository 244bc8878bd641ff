"""One line that says how far a long job is: rewritten on a terminal, else printed each minute."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

LOOK = 1.0  # seconds between two looks at a job


class LiveLine:
    """Show the state of a job in one line of a stream.

    On a terminal the line is written over itself, cut to the terminal's width. Without one, as in
    CI, a line is printed when ``every`` seconds have passed since the last.

    Args:
        stream: standard error if None.
        every: seconds between two lines without a terminal.
        clock: returns seconds; for tests.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.every, self.clock = every, clock
        self.terminal = self.stream.isatty()
        self.printed = clock()
        self._lock = threading.Lock()

    def show(self, text: str) -> None:
        """Show the state as it is now."""
        with self._lock:
            if self.terminal:
                width = shutil.get_terminal_size().columns - 1
                cut = text if len(text) <= width else text[: width - 1] + "…"
                self._write(f"\r{cut}\x1b[K")
            elif self.clock() - self.printed >= self.every:
                self._write(f"{text}\n")
                self.printed = self.clock()

    def keep(self, text: str) -> None:
        """Print a line that stays, such as one about a step that has ended."""
        with self._lock:
            self._write(f"\r{text}\x1b[K\n" if self.terminal else f"{text}\n")
            self.printed = self.clock()

    def clear(self) -> None:
        """Remove the living line from a terminal."""
        with self._lock:
            if self.terminal:
                self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    @contextlib.contextmanager
    def watching(self, describe: Callable[[], str], look: float = LOOK) -> Iterator[None]:
        """Show what ``describe`` returns, again and again from a thread, while the block runs."""
        ended = threading.Event()

        def look_on() -> None:
            while not ended.wait(look):
                self.show(describe())

        thread = threading.Thread(target=look_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.clear()
