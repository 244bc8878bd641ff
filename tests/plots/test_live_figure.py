"""The live figure: how often it redraws, with a clock that the test sets."""

import time

import pandas as pd

from workbook.plots import LiveFigure


def test_it_redraws_two_rows_or_more_at_most_every_so_many_seconds(monkeypatch):
    now, shown = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = LiveFigure(len, shown.append, seconds=5.0)  # its "figure" is the number of rows
    for rows, seconds in enumerate([106.0, 106.25, 106.5, 111.25, 111.5, 116.25, 116.5]):
        now[0] = seconds
        live(pd.DataFrame({"iteration": range(rows)}))
    # due at 105, with two rows at 106.5; then due 5 seconds after each drawing
    assert shown == [2, 4, 6]
