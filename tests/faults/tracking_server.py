"""A real `mlflow server` on loopback that can be killed with SIGKILL and started again as it was."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_START_SECONDS = 180.0
_LOG = "server.log"


@dataclass
class Server:
    """A tracking server with its sqlite store and its artifacts in one folder, always on the same port."""

    folder: Path
    port: int = field(default_factory=lambda: _free_port())
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None, "it runs"
        store, artifacts = f"sqlite:///{self.folder / 'server.db'}", self.folder / "artifacts"
        line = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--artifacts-destination",
            str(artifacts),
        ]
        line += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / _LOG).open("ab") as log:
            environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": store}
            self._process = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(f"the server did not start:\n{(self.folder / _LOG).read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its workers at once, whatever they are doing."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Give a server that answers; it is gone after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])
