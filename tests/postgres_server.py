"""A real PostgreSQL for tests: the one TRACKED_CLS_TEST_POSTGRES names, else Debian's, on a free port of this machine.

``from tests.postgres_server import postgres, postgres_server  # noqa: F401``
"""

from __future__ import annotations

import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy

VARIABLE = "TRACKED_CLS_TEST_POSTGRES"
PASSWORD = "s3cret"


@pytest.fixture(scope="session")
def postgres_server(request):
    """The address of a running server's administrator (postgresql+psycopg://...)."""
    return os.environ.get(VARIABLE) or _started(request.config)


@functools.cache  # a fixture that several modules import is a fixture of each
def _started(config):
    stack = ExitStack()
    config.add_cleanup(stack.close)
    return stack.enter_context(database()).url


@pytest.fixture
def postgres(postgres_server):
    """The address of a database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    admin = sqlalchemy.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield sqlalchemy.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _binaries():
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    found = shutil.which("postgres")
    if found:
        folders.append(Path(found).resolve().parent)
    return next((folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()), None)


@dataclass
class Database:
    """A PostgreSQL server of Debian's in a folder of its own, always on one port; `network` may log in besides this host."""

    folder: Path
    address: str = "127.0.0.1"
    network: str | None = None
    port: int = field(default_factory=lambda: _free_port())
    _process: subprocess.Popen | None = None

    @property
    def url(self):
        """The administrator's address."""
        return f"postgresql+psycopg://postgres:{PASSWORD}@{self.address}:{self.port}/postgres"

    def start(self):
        """Start it, made where there is none, and wait until it answers."""
        if not (self.folder / "data").exists():
            self._make()
        settings = {
            "fsync": "off",
            "listen_addresses": self.address,
            "port": self.port,
            "unix_socket_directories": self.folder,
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("a") as log:
            line = [_binaries() / "postgres", "-D", self.folder / "data", *options]
            self._process = subprocess.Popen(line, stdout=log, stderr=log, **self._as_user)
        _wait(self._process, self.url, self.folder / "log")

    def stop(self, how=signal.SIGINT):
        """End it: by its fast shutdown, or another one."""
        self._process.send_signal(how)
        self._process.wait(timeout=30)

    def _make(self):
        (self.folder / "password").write_text(PASSWORD)
        login = ["-E", "UTF8", "-A", "scram-sha-256", "-U", "postgres", f"--pwfile={self.folder / 'password'}"]
        line = [_binaries() / "initdb", "-D", self.folder / "data", "--no-sync", *login]
        made = subprocess.run(line, capture_output=True, text=True, **self._as_user)
        assert made.returncode == 0, made.stderr
        if self.network is not None:
            with (self.folder / "data" / "pg_hba.conf").open("a") as hosts:
                hosts.write(f"host all all {self.network} scram-sha-256\n")

    @property
    def _as_user(self):
        return {"user": _user(self.folder), "cwd": self.folder, "env": {"LC_ALL": "C", "PATH": os.defpath}}


@contextmanager
def database(**options):
    """Give a PostgreSQL server that runs, or skip the test where there is none to run."""
    if _binaries() is None:
        pytest.skip(f"no PostgreSQL: install Debian's package postgresql, or set {VARIABLE}=postgresql+psycopg://...")
    with tempfile.TemporaryDirectory(prefix="tracked-cls-pg-", dir="/tmp") as folder:  # only root may enter pytest's
        server = Database(Path(folder), **options)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _user(folder):
    """Return whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    shutil.chown(folder, user)
    return user


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(server, url, log):
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            engine.connect().close()
            return
        except sqlalchemy.exc.OperationalError:
            time.sleep(0.1)
    raise AssertionError(f"PostgreSQL does not answer: {log.read_text()}")
