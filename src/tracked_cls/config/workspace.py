"""Where relative folders belong: beside the tracking store.

``mlflow run <git address>`` works in a temporary clone, while its default store stays with the caller; data and
checkpoints written into the clone would be lost with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tracked_cls.config.sections import TrackingConfig
from tracked_cls.errors import UserError

DEFAULT_STORE = "mlflow.db"


def tracking_uri(tracking: TrackingConfig) -> str:
    """Return the address of the tracking store, sqlite paths made absolute."""
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE}"
    if uri.startswith("file:") or "://" not in uri:
        raise UserError(
            f"tracking.uri: {uri!r} is a folder; MLflow keeps runs in a database or on a server: sqlite:///mlflow.db, http://host:5000"
        )
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def workspace(tracking: TrackingConfig) -> Path:
    """Return the folder that relative folders start from: that of the sqlite store, else the working folder."""
    path = _sqlite_path(tracking_uri(tracking))
    return Path.cwd() if path is None else path.parent


def is_model_address(text: str) -> bool:
    """Whether a text is the address of a model in MLflow; else it is that of a folder."""
    return text.startswith(("models:", "runs:"))


def find_input(path: str, tracking: TrackingConfig, key: str) -> Path:
    """Return a user's input path: absolute, or below the workspace, or below the working folder.

    Raises `UserError` naming `key` and where it looked.
    """
    tried = list(dict.fromkeys([workspace(tracking) / path, Path.cwd() / path]))
    for candidate in tried:
        if os.path.exists(candidate):  # noqa: PTH110 - False, and no error, for a name that is too long
            return candidate
    raise UserError(f"{key}: {path!r} does not exist (looked for {' and '.join(str(p) for p in tried)})")


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
