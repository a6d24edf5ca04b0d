"""The model to be served, found in a process of its own: what MLflow's stores load would stay in a server's memory.

python -m tracked_cls.finding      reads a configuration of `serve` from stdin, writes what was found to stdout, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracked_cls.config import ServeConfig
from tracked_cls.errors import UserError
from tracked_cls.host import refusal
from tracked_cls.processes import Process

_MARK = "found: "  # what else the process says is passed on


@dataclass(frozen=True)
class Found:
    """The folder that holds a model's files, the address it was asked for by, and the exact one."""

    folder: Path
    address: str
    exact: str


@contextmanager
def begin(cfg: ServeConfig) -> Iterator[Callable[[], Found]]:
    """Start looking; yield a call that waits for the model, its files found as they were logged or exported.

    The call raises `UserError` where there is no such model. At the end of the block nothing looks any more.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tracked_cls.finding"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the server, which ends this
    )
    assert process.stdin is not None
    with process:
        try:
            process.stdin.write(f"{cfg.model_dump_json()}\n")
            process.stdin.flush()
            yield lambda: _answer_of(process)
        finally:
            process.kill()


def _answer_of(process: subprocess.Popen[str]) -> Found:
    said = process.communicate()[0].splitlines()
    for line in said:
        if not line.startswith(_MARK):
            print(line, flush=True)
    answers = [json.loads(line.removeprefix(_MARK)) for line in said if line.startswith(_MARK)]
    if not answers:
        raise RuntimeError(f"the process that looks for the model ended with code {process.returncode}")
    if "error" in answers[0]:
        raise UserError(answers[0]["error"])
    return Found(Path(answers[0]["folder"]), answers[0]["address"], answers[0]["exact"])


def find(cfg: ServeConfig) -> Found:
    """Return the model, looked for here; a local export needs no tracking store."""
    address = cfg.serve.model or f"models:/{cfg.data.model_name}@champion"
    from tracked_cls.serving.packaging import exported_bundle  # MLflow

    exported = exported_bundle(address, cfg.tracking, "serve.model")
    if exported is not None:
        return Found(exported.folder, address, exported.folder.name)
    from tracked_cls import registry, tracking  # MLflow's stores

    with tracking.open_tracker(cfg.tracking, must_answer=True) as tracker:
        bundle, exact = registry.resolve(tracker.client, address)
        if tracker.adoptable is not None:  # the run that `mlflow run` opened says what is served, and goes on while it is
            with tracker.begin("serve", f"serve {exact}") as run:
                run.log_config(cfg)
                run.set_tags({"model": exact, "model.address": address, **_server()})
            tracker.client.update_run(tracker.adoptable, status="RUNNING")
    return Found(bundle.folder, address, exact)


def _server() -> dict[str, str]:
    """Return the tags of the process that serves: this one ends."""
    process = Process.here(os.getppid())
    return {"pid": str(process.pid), "process": str(process)}


def _main() -> None:
    """Look for the model that stdin asks for, and say where it is, or why it is not to be had."""
    try:
        found = find(ServeConfig.model_validate_json(sys.stdin.readline()))
        answer = {"folder": str(found.folder), "address": found.address, "exact": found.exact}
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else refusal(error)
        if reason is None:
            raise
        answer = {"error": reason}
    print(f"{_MARK}{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    _main()
