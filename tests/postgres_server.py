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
    binaries = _binaries()
    if binaries is None:
        pytest.skip(f"no PostgreSQL: install Debian's package postgresql, or set {VARIABLE}=postgresql+psycopg://...")
    stack = ExitStack()
    config.add_cleanup(stack.close)
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="tracked-cls-pg-", dir="/tmp")
    )  # only root may enter pytest's
    return stack.enter_context(_serve(binaries, Path(folder)))


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


@contextmanager
def _serve(binaries, folder):
    user = _user(folder)
    port = _free_port()
    (folder / "password").write_text(PASSWORD)
    data = folder / "data"
    login = ["-E", "UTF8", "-A", "scram-sha-256", "-U", "postgres", f"--pwfile={folder / 'password'}"]
    as_user = {"user": user, "cwd": folder, "env": {"LC_ALL": "C", "PATH": os.defpath}}
    made = subprocess.run([binaries / "initdb", "-D", data, "--no-sync", *login], capture_output=True, text=True, **as_user)
    assert made.returncode == 0, made.stderr
    settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder}
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, **as_user)
    try:
        yield _wait(server, f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{port}/postgres", folder / "log")
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown
        server.wait(timeout=30)


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
            return url
        except sqlalchemy.exc.OperationalError:
            time.sleep(0.1)
    raise AssertionError(f"PostgreSQL does not answer: {log.read_text()}")
