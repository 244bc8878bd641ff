"""One line that says how far a long job is: rewritten on a terminal, else logged each minute."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at a job
EVERY = 60.0  # seconds between two lines where standard error is no terminal


@contextlib.contextmanager
def live_line(describe: Callable[[], str]) -> Iterator[None]:
    """Show what ``describe`` returns, again and again from a thread, while the block runs.

    On a terminal the line is written over itself, and what is logged meanwhile stands above it.
    """
    ended = threading.Event()
    line = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False, disable=None)

    def look_on() -> None:
        printed = time.monotonic()
        while not ended.wait(LOOK):
            if not line.disable:
                line.set_description_str(describe())
            elif time.monotonic() - printed >= EVERY:
                log.info("%s", describe())
                printed = time.monotonic()

    thread = threading.Thread(target=look_on, daemon=True)
    with logging_redirect_tqdm():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            line.close()
