"""What a person sees while work goes on: a bar on a terminal, plain lines everywhere else."""

import io
import re
import sys
import time

from tracked_cls.console import progress, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    """Make stderr a terminal and return it; not a fixture, for pytest sets stderr anew between a fixture and its test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def slowly(count):
    """Yield numbers, so far apart that the bar is drawn anew for each."""
    for number in range(count):
        time.sleep(0.15)
        yield number


def test_on_a_terminal_a_bar_tells_rate_and_time_left(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    assert list(progress(slowly(3), 3, "training", unit="batch")) == [0, 1, 2]
    drawn = terminal.getvalue()
    assert "training:  67%" in drawn
    assert re.search(r"2/3 \[\d\d:\d\d<\d\d:\d\d, .*(batch/s|s/batch)\]", drawn)


def test_only_what_counts_moves_the_bar(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    assert list(progress(slowly(4), 2, "training", counts=lambda number: number % 2 == 0)) == [0, 1, 2, 3]
    assert "100%" in terminal.getvalue()
    assert "3/2" not in terminal.getvalue()


def test_without_a_terminal_there_are_plain_lines_and_no_bar(capsys):
    for number in progress(range(2), 2, "training"):
        say(f"epoch {number}")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("epoch 0\nepoch 1\n", "")
