"""What every command shares: signals, one clear line for a mistake, and the exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from tracked_cls import afterword, distributed, signals
from tracked_cls.config import TrackingConfig, tracking_uri
from tracked_cls.errors import Interrupted, ProcessLost, StopRun, UserError
from tracked_cls.host import refusal
from tracked_cls.redaction import redacted, without_credentials


def where_to_look(tracking: TrackingConfig) -> str:
    """Return the words that open what a run left, in the store it was written to."""
    if tracking_uri(tracking).startswith("http"):
        return "look:  open the address above"
    store = f" --backend-store-uri {without_credentials(tracking.uri)}" if tracking.uri else ""
    return f"look:  mlflow ui --port 5000{store}   then open the address above"


def same_store(tracking: TrackingConfig) -> str:
    """Return what the next command needs to write to the same store."""
    return f" -P {shlex.quote(f'tracking.uri={without_credentials(tracking.uri)}')}" if tracking.uri else ""


def config_of(run_id: str, tracking: TrackingConfig) -> str:
    """Return the ``config.yaml`` of a run, for ``from_run``."""
    from tracked_cls.tracking import config_of_run  # seconds of imports, where it is needed only

    return config_of_run(run_id, tracking)


def command(verb: Callable[[Sequence[str]], None], *, several: bool = False) -> NoReturn:
    """Run a verb on the command line's arguments and exit: 0 done, 2 the user's mistake, 1 failed, 129/130/143 interrupted.

    `several`: whether the processes that torchrun starts do its work together; else each would do all of it.
    """
    opened = _opened_by_mlflow_run()
    signals.install()
    if distributed.rank() is not None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch would warn, at length, of processes that have ended
    if opened is not None or distributed.rank() is not None:
        signals.watch_launcher()
    try:
        try:
            if not several:
                distributed.require_alone()
            verb(sys.argv[1:])
        finally:
            signals.ignore()  # all is done and stored: what comes now changes nothing
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error{_of_process()}: {redacted(line)}", file=sys.stderr)
        sys.exit(2)
    except ProcessLost as lost:
        if not distributed.rank():  # the others leave it to the first
            print(f"error: {redacted(str(lost))}", file=sys.stderr)
        sys.exit(1)
    except StopRun as stop:
        print(f"error: {redacted(stop.reason)}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as signal:
        if opened is not None:
            afterword.leave(opened)
        if distributed.rank() is None:  # else the launcher says so
            print(f"interrupted by {signal}", file=sys.stderr)
        sys.exit(signal.exit_code)
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            print(redacted(traceback.format_exc()), file=sys.stderr, end="")
            sys.exit(1)
        print(f"error{_of_process()}: {refused}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _of_process() -> str:
    """Return which process speaks, where it is not the first of several."""
    return f" in process {distributed.rank()}" if distributed.rank() else ""


def _opened_by_mlflow_run() -> str | None:
    """Return the run that `mlflow run` opened for this process; a run's id alone may be set by hand."""
    if distributed.rank():
        return None
    return os.environ.get("MLFLOW_RUN_ID") if "MLFLOW_EXPERIMENT_ID" in os.environ else None
