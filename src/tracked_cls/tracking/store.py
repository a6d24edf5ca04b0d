"""The connection to a tracking store: made, found wanting, and told apart from a store that refuses."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from tracked_cls import failpoints
from tracked_cls.config import TrackingConfig, tracking_uri
from tracked_cls.errors import UserError
from tracked_cls.redaction import reason_of, without_credentials

# what they say below these levels is about themselves, not about the run
_LOG_LEVELS = {
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.utils.environment": logging.ERROR,
    "urllib3.connectionpool": logging.ERROR,
}
StoreError = MlflowException  # what a store that refuses, or is away, raises
_CONNECT_SECONDS = 5.0
_SERVER_ERROR = 500
_REFUSED_STATUSES, _TOO_MUCH = (400, 404, 422), (413, 415)
_STRANGERS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_LOGIN = "a server that asks who is there wants MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


@dataclass(frozen=True)
class Home:
    """The experiment that runs go to, as it was asked for: a name, or an id."""

    name: str | None
    id: str | None


@dataclass(frozen=True)
class Store:
    """A tracking store, which may be away."""

    uri: str
    client: MlflowClient

    @property
    def label(self) -> str:
        """Its address without user and password: what may be shown and kept."""
        return without_credentials(self.uri)

    def name_in(self, journals: Path) -> str:
        """Return what journals call it: the same in a workspace that was moved, and however an address is written."""
        path = Path(self.uri.removeprefix("sqlite:///"))
        if path.is_absolute():
            return f"sqlite:///{path.name}" if journals.is_relative_to(path.parent) else self.uri
        parts = urlsplit(self.label)
        return urlunsplit(parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")))

    @property
    def base_url(self) -> str:
        """Where a browser finds it."""
        return self.label.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"

    def absence(self) -> str | None:
        """Return why the store cannot be reached now, None where it answers."""
        if not self.uri.startswith("http"):
            return None
        parts = urlsplit(self.uri)
        where = f"the tracking server at {parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        try:  # as MLflow itself reaches it: with its certificates and passwords
            answer = http_request(
                get_default_host_creds(self.uri), "/health", "GET",
                timeout=_CONNECT_SECONDS, max_retries=0, raise_on_status=False,
            )  # fmt: skip
        except (MlflowException, OSError) as error:
            return f"{where} does not answer ({_cause(error)})"
        is_broken = answer.status_code >= _SERVER_ERROR  # 4xx: it answers, whatever it makes of this
        return f"{where} answers {answer.status_code} {answer.reason}" if is_broken else None

    def require(self) -> None:
        """Raise `UserError` where the store does not answer."""
        absence = self.absence()
        if absence is not None:
            raise UserError(f"tracking.uri: {absence}; start it, or set another tracking.uri")
        try:
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            cure = _LOGIN if error.error_code in _STRANGERS else "the server's own log says more; is its database there?"
            raise UserError(f"tracking.uri: {self.label} refuses: {reason_of(error)}; {cure}") from None

    def experiment_id(self, home: Home) -> str:
        """Return the experiment's id, made where there is none; raises `UserError` for one that was deleted."""
        if home.name is None:
            return home.id or "0"
        found = self.client.get_experiment_by_name(home.name)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(f"tracking.experiment: {home.name!r} was deleted; restore it, or use another name")
        if found is not None:
            return str(found.experiment_id)
        store = Path(self.uri.removeprefix("sqlite:///"))
        beside = (store.parent / "mlruns" / quote(home.name, safe=" ")).as_uri() if store.is_absolute() else None
        return str(self.client.create_experiment(home.name, artifact_location=beside))


def _cause(error: Exception) -> str:
    """Return what stood in the way, without the layers around it."""
    found = re.search(r"\[Errno -?\d+\] ([^\"')]+)|(timed out|CERTIFICATE_VERIFY_FAILED)", str(error))
    return (found[1] or found[2]) if found else reason_of(error, 200)


def connect(cfg: TrackingConfig) -> Store:
    """Return the store of a configuration, an sqlite store made where there is none. A server may be away."""
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    uri = tracking_uri(cfg)
    if uri.startswith("sqlite:///"):
        _create_sqlite(Path(uri.removeprefix("sqlite:///")))
    mlflow.set_tracking_uri(uri)
    try:
        return Store(uri, MlflowClient(uri))
    except MlflowException as error:  # no such kind of store
        raise UserError(f"tracking.uri: {without_credentials(uri)}: {reason_of(error)}") from None


def home_of(cfg: TrackingConfig, store: Store, adoptable: str | None) -> Home:
    """Return the experiment by MLflow's own rules: environment by id, then by name, else Default."""
    by_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = cfg.experiment or (None if by_id else os.environ.get("MLFLOW_EXPERIMENT_NAME"))
    if name is not None and adoptable is not None:
        found = store.client.get_experiment_by_name(name)
        if found is None or found.experiment_id != by_id:
            raise UserError(
                f"tracking.experiment={name} has no effect under mlflow run, which opened its run in another experiment; "
                f"use mlflow run --experiment-name {name}"
            )
    return Home(name, by_id)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow itself answered, and would answer the same again. Anything else may pass: it is tried again.

    A proxy whose server is away answers too, 404 and 400 among others, but not in MLflow's words.
    """
    response = getattr(error, "response", None)  # of the artifact store behind the server
    if response is not None:
        said = "json" in response.headers.get("Content-Type", "") and "error_code" in response.text
        return response.status_code in _TOO_MUCH or (response.status_code in _REFUSED_STATUSES and said)
    if not isinstance(error, MlflowException) or error.error_code not in _REFUSALS:
        return False
    return isinstance(error, RestException) or not str(error).startswith("API request")


def is_missing(error: Exception) -> bool:
    """Whether the store says that what was asked for does not exist."""
    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _create_sqlite(path: Path) -> None:
    """Create the database once, in one process: several that start together on none crash each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.stat().st_size == 0:
            _make_sqlite(path)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # writers and readers in parallel: a tenth of the longest wait


def _make_sqlite(path: Path) -> None:
    """Make a database aside: MLflow takes seconds over its tables, and cannot go on with half of them."""
    new = path.with_name(f".new-{path.name}")
    for left in path.parent.glob(f"{new.name}*"):
        left.unlink()
    made = SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "mlruns").as_uri())  # artifacts beside it, wherever we are
    made.engine.dispose()
    failpoints.reach("store.before_rename")
    new.replace(path)
