"""The line of a long job: rewritten on a terminal, and once a minute in a log."""

import logging
import os
import sys
import termios
import time

import pytest

from workbook.system import live_line as module
from workbook.system.live_line import live_line


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.001)


def _wait_for(is_there):
    ends = time.monotonic() + 30
    while not is_there():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_a_terminal_has_one_line_cut_to_its_width_under_what_is_logged(monkeypatch):
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 20))
    with os.fdopen(its, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(terminal)])
        with live_line(lambda: "a line that is longer than the terminal"):
            shown = b""
            while b"a line" not in shown:
                shown += os.read(ours, 999)
            module.log.warning("a point is done")
        shown += os.read(ours, 999)
    parts = shown.decode().replace("\r\n", "\n").split("\r")
    assert "a line that is long" in parts and "a point is done\n" in parts
    assert max(map(len, parts)) <= 20 and not parts[-1].strip()


def test_a_log_has_a_line_when_a_minute_has_passed(monkeypatch, caplog):
    monkeypatch.setattr(module, "EVERY", 0.05)
    caplog.set_level("INFO")
    began = time.monotonic()
    with live_line(lambda: "still at it"):
        _wait_for(lambda: len(caplog.messages) >= 2)
    assert set(caplog.messages) == {"still at it"}
    assert len(caplog.messages) <= (time.monotonic() - began) / 0.05
