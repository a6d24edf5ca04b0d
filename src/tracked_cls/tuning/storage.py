"""Where a study is kept: Optuna's journal in a file, an sqlite file, or PostgreSQL for several machines."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tracked_cls import durable
from tracked_cls.config import TuneConfig
from tracked_cls.config.workspace import workspace
from tracked_cls.console import say
from tracked_cls.errors import UserError
from tracked_cls.tuning.claims import killed

_JOURNAL, _SQLITE, _POSTGRES = "journal:///", "sqlite:///", "postgresql+psycopg://"
_KNOWN = f"{_JOURNAL}file, {_SQLITE}file, {_POSTGRES}user@host/database"
_CONNECT_SECONDS = 5
_SQLITE_SECONDS = 60  # how long a writer waits for the others
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 60, 180  # shorter ones have failed live trials on a slow disk
_BEGINNING = b'{"op_code":'  # of every line of a journal
_ADVISORY_LOCK = 0x74726B63  # any number, the same for all of us
_CURES = {
    "password|authentication|no pg_hba": "check user and password",
    "database .* does not exist": "create it (createdb), or correct the name",
    "could not translate|resolve|name or service": "correct the host's name",
    "refused|timeout|timed out|unreachable|closed": "start the server, or correct host and port",
    "permission denied": "give the user the right to create tables there",
}


def open_storage(cfg: TuneConfig, study: str) -> BaseStorage:
    """Return the storage that ``tune.storage`` names, made where there is none.

    Raises `UserError` where it cannot be used, within seconds where a server does not answer.
    """
    url = _address(cfg, study)
    if url.startswith(_JOURNAL):
        return _open_journal(Path(url.removeprefix(_JOURNAL)))
    if url.startswith(_SQLITE):
        return _open_sqlite(url)
    return _open_postgres(url, cfg.tune.max_restarts)


def masked(url: str) -> str:
    """Return an address as it may be shown: without its password, however badly it is written."""
    url = re.sub(r"(://[^:/]*:).*@", r"\1***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", url)


def dashboard_command(cfg: TuneConfig, study: str) -> str:
    """Return the command that shows the study's storage in a browser (the password left out)."""
    target = masked(_address(cfg, study)).removeprefix(_JOURNAL)
    return f"optuna-dashboard --host 127.0.0.1 --port 8081 {shlex.quote(target)}"


def _address(cfg: TuneConfig, study: str) -> str:
    """Return the storage's address, paths made absolute."""
    home = workspace(cfg.tracking)
    url = cfg.tune.storage
    if url is None:
        return f"{_JOURNAL}{home / cfg.checkpoint.store / 'studies' / f'{study}.journal'}"
    for scheme in (_JOURNAL, _SQLITE):
        path = url.removeprefix(scheme)
        if path not in (url, ""):
            return f"{scheme}{home / path}"
    if url.startswith(_POSTGRES):
        return url
    if re.match(r"postgres(ql)?(\+\w+)?://", url):
        raise UserError(f"tune.storage: {masked(url)}: name the driver: {_POSTGRES}user@host/database")
    raise UserError(f"tune.storage must be {_KNOWN}; got {masked(url)!r}")


def _open_journal(path: Path) -> BaseStorage:
    with _usable(f"{_JOURNAL}{path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(path))
        lock = JournalFileSymlinkLock(str(path))
        lock.acquire()  # while we hold it nobody is in the middle of a line
        try:
            _mend(path)
        finally:
            lock.release()
        return _replay(backend, path)


def _replay(backend: JournalFileBackend, path: Path) -> BaseStorage:
    try:
        return JournalStorage(backend)
    except (LookupError, TypeError, AttributeError, AssertionError) as error:  # a line is missing, or was edited
        raise UserError(
            f"tune.storage: the lines of {path} do not follow from each other ({error!r}); restore a copy, or set "
            "another tune.study"
        ) from None


def _mend(path: Path) -> None:
    """Move a torn last line aside, which would make every later start fail; raises `UserError` for any other damage.

    A loss of power or a full disk tears it. Readers have not counted it yet: they take whole lines only.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    _check(path, content[:whole])
    if whole == 0 and not content.startswith(_BEGINNING[: len(content)]):
        raise _foreign(path)
    if whole == len(content):
        return
    aside = next(name for name in _torn_names(path) if not name.exists())
    aside.write_bytes(content[whole:])
    with path.open("r+b") as file:
        file.truncate(whole)
    say(f"warning: the last line of {path} was torn (a loss of power, or a full disk); it was moved to {aside.name}")


def _check(path: Path, content: bytes) -> None:
    """Raise `UserError` for the first line that is no record of a journal."""
    for number, line in enumerate(content.splitlines(), start=1):
        if _is_record(line):
            continue
        if number == 1:
            raise _foreign(path)
        raise UserError(
            f"tune.storage: line {number} of {path} is damaged; keep a copy, then delete that line and all after it (what they "
            "said is lost), or set another tune.study"
        )


def _foreign(path: Path) -> UserError:
    return UserError(f"tune.storage: {path} is no journal of Optuna; name another file")


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "op_code" in record


def _torn_names(path: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield path.with_name(f"{path.name}.torn-{number}")


def _open_sqlite(url: str) -> BaseStorage:
    """Open a file for the processes of this machine.

    No heartbeat: whether a process of this machine lives is known without one, and a machine that slept for longer than the
    grace period would find its own live trials stale.
    """
    path = Path(url.removeprefix(_SQLITE))
    engine = {"connect_args": {"timeout": _SQLITE_SECONDS}}
    with _usable(url):
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            durable.locked(path.with_name(f".{path.name}.lock")),
            _connection(url, engine) as connection,
        ):  # two that create it crash
            connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))  # readers need not wait for writers
            return RDBStorage(_literal(url), engine)


def _open_postgres(url: str, max_restarts: int) -> BaseStorage:
    # with the encoding: a database in SQL_ASCII would answer in bytes
    arguments = {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8"}
    engine = {"connect_args": arguments, "pool_pre_ping": True}
    with _usable(url), _connection(url, engine) as connection:
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))  # machines that start together
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                _literal(url),
                engine,
                heartbeat_interval=_HEARTBEAT_SECONDS,
                grace_period=_GRACE_SECONDS,
                heartbeat_stale_trial_callback=Revival(max_restarts),
            )


class Revival:
    """Makes a trial of a machine that is gone anew, to be continued; beyond `max_restarts` it fails instead.

    Optuna's own `RetryHeartbeatStaleTrialCallback` would hand on the dead owner, and a trial that was just taken would look
    dead; and its last trial would fail without a reason, and take no slot of the budget.
    """

    def __init__(self, max_restarts: int) -> None:
        self.max_restarts = max_restarts

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Add the trial that replaces `trial`, which Optuna has just failed."""
        if {"error", "void"} & set(trial.user_attrs):  # it failed by itself, and its process died before it could tell
            return
        restarts = trial.user_attrs.get("restarts", 0) + 1
        attrs = {key: value for key, value in trial.user_attrs.items() if key != "owner"} | {"restarts": restarts}
        is_over = restarts > self.max_restarts
        study.add_trial(
            create_trial(
                state=TrialState.FAIL if is_over else TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**attrs, "error": killed(restarts)} if is_over else attrs,
                system_attrs=_with_history(trial),
                intermediate_values=trial.intermediate_values,
            )
        )


def _with_history(trial: FrozenTrial) -> dict[str, Any]:
    """Return the attributes under which Optuna's own tools look for the trial that was replaced."""
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    return {"failed_trial": trial.number, **trial.system_attrs, "retry_history": history}


@contextmanager
def _connection(url: str, engine: dict[str, Any]) -> Iterator[sqlalchemy.Connection]:
    """Connect to a database of ours; raises `UserError` where it is another program's."""
    pool = sqlalchemy.create_engine(url, **engine)
    try:
        with pool.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
            if "alembic_version" in tables and "studies" not in tables:
                raise UserError(
                    f"tune.storage: {masked(url)} holds the tables of another program (MLflow's?), and both would count their "
                    "versions in one table; name a database of its own"
                )
            yield connection
    finally:
        pool.dispose()


@contextmanager
def _usable(url: str) -> Iterator[None]:
    """Turn what a wrong address leads to into one line, without the password."""
    try:
        yield
    except UserError:
        raise
    except ImportError:
        raise UserError(
            f"tune.storage: {masked(url)} needs a driver that is not installed; pip install 'psycopg[binary]'"
        ) from None
    except ArgumentError:
        raise UserError(f"tune.storage: {masked(url)} is no address of a database; expected {_KNOWN}") from None
    except (SQLAlchemyError, RuntimeError, OSError, ValueError) as error:
        reason = _reason(error)
        raise UserError(f"tune.storage: {masked(url)} cannot be used: {reason}; {_cure(url, reason)}") from None


def _cure(url: str, reason: str) -> str:
    if not url.startswith(_POSTGRES):
        return "name another file, in a folder that can be written"
    found = [cure for pattern, cure in _CURES.items() if re.search(pattern, reason, re.IGNORECASE)]
    return found[0] if found else f"expected {_POSTGRES}user@host:port/database"


def _reason(error: Exception) -> str:
    """Return what went wrong, on one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:400] or type(cause).__name__


def _literal(url: str) -> str:
    """Return an address for `RDBStorage`, which takes braces for places to fill in."""
    return url.replace("{", "{{").replace("}", "}}")
