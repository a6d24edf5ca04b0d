"""The last word on a run that `mlflow run` opened and a signal stopped: KILLED, or FINISHED where that is how it ends.

Whatever status a command has written, MLflow (3.17) writes FAILED over it once the command has ended with an exit code other
than 0: it asks ``RunStatus.is_terminated("KILLED")``, which knows numbers only and says no. So a process that outlives both
puts the status back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from tracked_cls import processes
from tracked_cls.processes import Process

_WAIT_SECONDS = 30.0  # for a launcher that lives on, as a notebook does: MLflow writes within a moment of our end
_POLL_SECONDS = 0.1


def leave(run_id: str, status: str = "KILLED") -> None:
    """Start the process that speaks after this one and its launchers have ended."""
    awaited = [Process.me(), *processes.launchers()]
    subprocess.Popen(  # noqa: S603 - words of our own, and no shell
        [sys.executable, "-m", "tracked_cls.afterword", run_id, status, *map(str, awaited)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the next Ctrl-C is not for this one
    )


def speak(run_id: str, awaited: Sequence[Process], status: str = "KILLED") -> None:
    """Wait for processes to end, and give the run its status, unless it goes on already."""
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until and not all(process.is_gone() for process in awaited):
        time.sleep(_POLL_SECONDS)

    from mlflow import MlflowClient  # seconds of imports; the address of the store is in the environment

    client = MlflowClient()
    run = client.get_run(run_id)
    never_ended = run.info.status == "RUNNING" and ("kind" not in run.data.tags or status == "FINISHED")
    if run.info.status == "FAILED" or never_ended:
        client.set_terminated(run_id, status, end_time=run.info.end_time)


if __name__ == "__main__":
    speak(sys.argv[1], [process for process in map(Process.parse, sys.argv[3:]) if process is not None], sys.argv[2])
