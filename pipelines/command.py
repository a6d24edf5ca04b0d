"""What every command shares: signals, one clear line for a mistake, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tracked_cls import signals
from tracked_cls.errors import Interrupted, StopRun, UserError


def command(verb: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a verb on the command line's arguments and exit: 0 done, 2 the user's mistake, 1 failed, 130/143 interrupted."""
    signals.install()
    try:
        verb(sys.argv[1:])
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except StopRun as stop:
        print(f"error: {stop.reason}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as signal:
        print(f"interrupted by {signal}", file=sys.stderr)
        sys.exit(signal.exit_code)
    sys.exit(0)
