"""The line of a long job: rewritten on a terminal, and once a minute in a log."""

import io
import time

from workbook.system.live_line import LiveLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_cut_to_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    line = LiveLine(terminal)
    line.show("short")
    line.show("a line that is too long")
    line.keep("done")
    first, second, kept = terminal.getvalue().split("\r")[1:]
    assert first == "short\x1b[K"
    assert second == "a line that is too…\x1b[K" and len("a line that is too…") == 19
    assert kept == "done\x1b[K\n"


def test_a_log_has_a_line_a_minute_and_each_that_stays():
    log, now = io.StringIO(), [0.0]
    line = LiveLine(log, clock=lambda: now[0])
    for second in range(0, 150, 10):
        now[0] = float(second)
        line.show(f"{second} s")
    line.keep("done")
    line.clear()
    assert log.getvalue() == "60 s\n120 s\ndone\n"


def test_a_watched_job_is_described_until_it_ends():
    terminal = Terminal()
    with LiveLine(terminal).watching(lambda: "still at it", look=0.001):
        while "still at it" not in terminal.getvalue():
            time.sleep(0.001)
    ended = terminal.getvalue()
    assert ended.endswith("\r\x1b[K")
    time.sleep(0.01)
    assert terminal.getvalue() == ended
