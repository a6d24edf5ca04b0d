"""What a person sees while work goes on: plain lines on stdout, progress bars on a terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
_bars = True


def draw_no_bars() -> None:
    """Draw no progress bars from now on: processes that share a terminal would draw over each other."""
    global _bars
    _bars = False


def say(line: str = "") -> None:
    """Print one line at once, also where stdout is a pipe; where nobody reads any more, work goes on unheard."""
    with suppress(OSError):
        if sys.stderr.isatty():
            from tqdm import tqdm  # prints above a bar that is on the screen

            tqdm.write(line)
        else:
            print(f"{line}\n", end="", flush=True)  # in one piece: threads speak too


def progress(
    items: Iterable[T], total: int, what: str, unit: str = "it", counts: Callable[[T], bool] = lambda _: True
) -> Iterator[T]:
    """Yield `items` behind a progress bar with rate and ETA; nothing is drawn where stderr is no terminal.

    `counts` says which items move the bar.
    """
    if not _bars or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm  # only a terminal needs it

    with tqdm(total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        for item in items:
            if counts(item):
                bar.update()
            yield item
