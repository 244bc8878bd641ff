"""A figure that redraws itself in a notebook during training."""

import time
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure


class LiveFigure:
    """Redraw ``plot(history)`` at most every ``seconds``. The saved notebook keeps the last figure.

    Pass it as ``on_history`` of `workbook.steps.Watch`.

    Args:
        plot: makes a Figure of a history (one row per logged step).
        show: displays a Figure, as ``display(display_id=True).update`` does.
        seconds: the shortest time between two drawings.
    """

    def __init__(
        self,
        plot: Callable[[pd.DataFrame], Figure],
        show: Callable[[Figure], None],
        seconds: float = 5.0,
    ) -> None:
        self.plot, self.show, self.seconds = plot, show, seconds
        self.last_drawn = time.monotonic()

    def __call__(self, history: pd.DataFrame) -> None:
        """Draw the history if it has two rows and the last drawing is old enough."""
        if len(history) < 2 or time.monotonic() - self.last_drawn < self.seconds:
            return
        self.show(self.plot(history))
        self.last_drawn = time.monotonic()
