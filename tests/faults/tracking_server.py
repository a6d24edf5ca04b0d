"""A real `mlflow server` on loopback that can be killed with SIGKILL and started again as it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 180.0
_LOG = "server.log"


@dataclass
class Server:
    """A tracking server with its sqlite store and its artifacts in one folder, always on the same port."""

    folder: Path
    port: int = field(default_factory=lambda: _free_port())
    host: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    @property
    def line(self) -> list[str]:
        """What starts it."""
        line = [sys.executable, "-m", "mlflow", "server", "--artifacts-destination", str(self.folder / "artifacts")]
        return [*line, "--host", self.host, "--port", str(self.port), "--workers", "1"]

    @property
    def environment(self) -> dict[str, str]:
        """What it is told besides."""
        store = f"sqlite:///{self.folder / 'server.db'}"
        return {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_TRACKING_URI": store}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None, "it runs"
        with (self.folder / _LOG).open("ab") as log:
            environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **self.environment}
            self._process = subprocess.Popen(self.line, stdout=log, stderr=log, env=environment, start_new_session=True)
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

    def stop(self) -> None:
        """Tell it to end, and wait until it and its workers have."""
        assert self._process is not None, "it does not run"
        self._process.terminate()
        self._process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 0)
            raise AssertionError("workers of the server outlive it")
        self._process = None

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        assert self._process is not None, "it does not run"
        found = (path.name for path in Path("/proc").iterdir() if path.name.isdigit())
        return [pid for pid in map(int, found) if _group(pid) == self._process.pid]

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


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@dataclass
class Deployed(Server):
    """The server of `deploy/server.sh`: on PostgreSQL, behind a login, with artifacts that go through it."""

    database: str = ""  # its address, without a password

    @property
    def line(self) -> list[str]:
        """What starts it."""
        return ["bash", str(ROOT / "deploy" / "server.sh")]

    @property
    def environment(self) -> dict[str, str]:
        """Its settings."""
        given = {"FOLDER": self.folder, "DATABASE": self.database, "PORT": self.port, "WORKERS": 1}
        given |= {} if self.host == "127.0.0.1" else {"HOST": self.host, "ALLOWED_HOSTS": f"{self.host}:*"}
        return {"PYTHON": sys.executable, **{f"TRACKING_{key}": str(value) for key, value in given.items()}}

    def secret(self, name: str) -> str:
        """Return a password that it keeps."""
        return (self.folder / "secrets" / name).read_text().strip()

    def add_user(self, name: str, password: str) -> None:
        """Let the administrator add somebody."""
        asked = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json.dumps({"username": name, "password": password}).encode(),
            {"Content-Type": "application/json", "Authorization": basic("admin", self.secret("admin"))},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.status == 200


def basic(user: str, password: str) -> str:
    """Return the header by which somebody logs in."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
