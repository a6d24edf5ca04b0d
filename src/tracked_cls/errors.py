"""The few ways in which work may end early, and the one look-up that names near matches.

This module travels with every registered model, so it imports the standard library only.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user: the message names the value, the rule and the cure; commands exit with code 2."""


class StopRun(Exception):  # noqa: N818 - a pruned trial is no error
    """Ends a run early on purpose, with the MLflow status it is to carry (``KILLED``, ``FAILED``) and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ProcessLost(Exception):  # noqa: N818 - what happened to another process is told there
    """Another of the processes that train together has ended, or does not answer; the work can be continued."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; the command saves what it has, ends its run KILLED and exits with 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the known words where none is near."""
    options = sorted(known)
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; known: {', '.join(options)}" if len(options) <= 12 else ""


def lookup(name: str, table: Mapping[str, T], what: str) -> T:
    """Return ``table[name]``; an unknown name raises `UserError` with its near match."""
    if name not in table:
        raise UserError(f"unknown {what} {name!r}{did_you_mean(name, table)}")
    return table[name]
