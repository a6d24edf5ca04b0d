"""What every command shares: signals, one clear line for a mistake, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tracked_cls import signals
from tracked_cls.config import TrackingConfig, tracking_uri
from tracked_cls.errors import Interrupted, StopRun, UserError


def where_to_look(tracking: TrackingConfig) -> str:
    """Return the words that open what a run left, in the store it was written to."""
    if tracking_uri(tracking).startswith("http"):
        return "look:  open the address above"
    store = f" --backend-store-uri {tracking.uri}" if tracking.uri else ""
    return f"look:  mlflow ui --port 5000{store}   then open the address above"


def same_store(tracking: TrackingConfig) -> str:
    """Return what the next command needs to write to the same store."""
    return f" -P tracking.uri={tracking.uri}" if tracking.uri else ""


def config_of(run_id: str, tracking: TrackingConfig) -> str:
    """Return the ``config.yaml`` of a run, for ``from_run``."""
    from tracked_cls.tracking import config_of_run  # seconds of imports, where it is needed only

    return config_of_run(run_id, tracking)


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
    finally:
        signals.ignore()  # all is said and stored: one more Ctrl-C while Python shuts down changes nothing
    sys.exit(0)
