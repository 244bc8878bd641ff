"""The live figure: how often it redraws, with a clock that the test sets."""

import time

import pandas as pd
import pytest

from workbook.plots import LiveFigure


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose one entry is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def history(rows):
    return pd.DataFrame({"iteration": range(rows)})


def test_it_redraws_at_most_every_so_many_seconds(clock):
    shown = []
    live = LiveFigure(len, shown.append, seconds=5.0)  # its "figure" is the number of rows
    for rows, seconds in enumerate([104.9, 105.0, 109.9, 110.0, 121.0, 125.9], start=2):
        clock[0] = seconds
        live(history(rows))
    # due at 105, drawn then (3 rows); due at 110 (5 rows); due at 115, called at 121 (6 rows)
    assert shown == [3, 5, 6]


def test_it_waits_for_two_rows_and_then_draws_at_once(clock):
    shown = []
    live = LiveFigure(len, shown.append, seconds=5.0)
    clock[0] = 200.0
    for rows in (0, 1, 2):
        live(history(rows))
    assert shown == [2]


def test_it_shows_what_the_plot_function_makes_of_the_history(clock):
    shown = []
    live = LiveFigure(lambda table: table["iteration"].tolist(), shown.append, seconds=0.0)
    live(history(3))
    assert shown == [[0, 1, 2]]
