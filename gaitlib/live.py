"""A figure that redraws itself in the notebook while training goes on."""

import time
from collections.abc import Callable

import pandas as pd
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure


class LiveFigure:
    """Redraw ``plot(history)`` at most every ``seconds``; the saved notebook keeps the last one.

    Outside a notebook it does nothing. Pass it as ``on_log`` of `gaitlib.stages.train_stage`.

    Args:
        plot: history (a row per logged step) to a Figure.
        seconds: between two drawings.
    """

    def __init__(self, plot: Callable[[pd.DataFrame], Figure], seconds: float = 5.0) -> None:
        self.plot, self.seconds = plot, seconds
        self.last = time.monotonic()
        self.handle = display(display_id=True) if get_ipython() is not None else None

    def __call__(self, history: pd.DataFrame) -> None:
        """Draw, if it is time."""
        if self.handle is None or len(history) < 2 or time.monotonic() - self.last < self.seconds:
            return
        self.handle.update(self.plot(history))
        self.last = time.monotonic()
