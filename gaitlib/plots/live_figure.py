"""A figure that redraws itself in the notebook while training goes on."""

import time
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure


class LiveFigure:
    """Redraw ``plot(history)`` at most every ``seconds``; the saved notebook keeps the last one.

    Pass it as ``on_history`` of `gaitlib.steps.train_stage`.

    Args:
        plot: history (a row per logged step) to a Figure.
        show: takes each Figure, as ``display(display_id=True).update`` does.
        seconds: between two drawings.
    """

    def __init__(
        self,
        plot: Callable[[pd.DataFrame], Figure],
        show: Callable[[Figure], None],
        seconds: float = 5.0,
    ) -> None:
        self.plot, self.show, self.seconds = plot, show, seconds
        self.last = time.monotonic()

    def __call__(self, history: pd.DataFrame) -> None:
        """Draw, if it is time."""
        if len(history) < 2 or time.monotonic() - self.last < self.seconds:
            return
        self.show(self.plot(history))
        self.last = time.monotonic()
