"""Registered models: addresses resolved to local files, versions, aliases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tracked_cls.errors import UserError
from tracked_cls.serving.packaging import Bundle, bundle_of

CHAMPION, CHALLENGER = "champion", "challenger"
_MODEL = re.compile(r"models:/(?P<name>[A-Za-z0-9_.-]{1,128})(?:@(?P<alias>[A-Za-z0-9_-]{1,128})|/(?P<version>\d+))")
_LOGGED = re.compile(r"models:/m-[0-9a-f]+")
_RUN = re.compile(r"runs:/(?P<run>[0-9a-f]{8,64})")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """Its address."""
        return f"models:/{self.name}/{self.number}"


def resolve(client: MlflowClient, uri: str) -> tuple[Bundle, str]:
    """Return the local files behind an address, and the exact model it means (aliases and runs resolved).

    Takes ``runs:/<id>``, ``models:/<name>/<version>`` and ``models:/<name>@<alias>``; raises `UserError` for anything
    else and for what does not exist.
    """
    exact = _exact(client, uri)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=exact))
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: its files cannot be read: {_first_line(error)}") from None
    bundle = bundle_of(folder)
    if not bundle.meta.exists():
        raise UserError(f"{uri}: not a model of this project: it holds no {bundle.meta.name}")
    return bundle, exact


def _exact(client: MlflowClient, uri: str) -> str:
    if match := _RUN.fullmatch(uri):
        return _model_of_run(client, match["run"])
    if _LOGGED.fullmatch(uri):
        return uri
    match = _MODEL.fullmatch(uri)
    if match is None and uri.startswith("runs:/"):
        raise UserError(f"{uri!r} is no model address: the id of a run has 32 hex digits, and nothing stands behind it")
    if match is None:
        raise UserError(f"{uri!r} is no model address; use runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>")
    name, alias = match["name"], match["alias"]
    if alias:
        found = by_alias(client, name, alias)
        if found is None:
            raise UserError(f"{uri}: {_known(client, name, alias)}")
        return found.uri
    try:
        client.get_model_version(name, match["version"])
    except MlflowException:
        raise UserError(f"{uri}: {_known(client, name, match['version'])}") from None
    return uri


def _model_of_run(client: MlflowClient, run_id: str) -> str:
    try:
        outputs = client.get_run(run_id).outputs
    except MlflowException:
        raise UserError(f"runs:/{run_id}: there is no such run in {mlflow.get_tracking_uri()}") from None
    models = [output.model_id for output in (outputs.model_outputs if outputs else [])]
    if not models:
        raise UserError(f"runs:/{run_id}: the run logged no model; only finished `train` runs hold one")
    return f"models:/{models[-1]}"


def _known(client: MlflowClient, name: str, wanted: str) -> str:
    """Say what there is instead of what was asked for."""
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        names = ", ".join(found.name for found in client.search_registered_models(max_results=10))
        return f"there is no registered model {name!r} ({names or 'none is registered yet'}); train one first"
    aliases = ", ".join(f"@{alias}" for alias in model.aliases) or "no alias"
    return f"model {name!r} has no {wanted!r}; it has {aliases} and versions up to {_newest(client, name)}"


def _newest(client: MlflowClient, name: str) -> int:
    return max((int(found.version) for found in client.search_model_versions(f"name='{name}'")), default=0)


def is_absent(error: MlflowException) -> bool:
    """Whether MLflow says that something does not exist; any other trouble must not be taken for that."""
    missing_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    return missing_alias or error.error_code == "RESOURCE_DOES_NOT_EXIST"


def by_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    """Return the version an alias points to, or None where the model or the alias does not exist."""
    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def register(client: MlflowClient, name: str, model_uri: str, *, run_id: str, tags: Mapping[str, str]) -> Version:
    """Make a version of a logged model, or return the one that holds the same weights already (tag ``weights.digest``)."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if not is_absent(error):
            raise
        client.create_registered_model(name, description=f"Classifier trained by tracked_cls; alias {CHAMPION} is in use.")
    for found in client.search_model_versions(f"name='{name}'"):
        if found.tags.get("weights.digest") == tags["weights.digest"]:
            return _version(found)
    model_id = model_uri.removeprefix("models:/")
    made = client.create_model_version(name, source=model_uri, run_id=run_id, tags=dict(tags), model_id=model_id)
    return _version(made)


def set_alias(client: MlflowClient, version: Version, alias: str) -> None:
    """Point an alias at a version, in one atomic call."""
    client.set_registered_model_alias(version.name, alias, str(version.number))


def tag_version(client: MlflowClient, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, value)


def _version(found: object) -> Version:
    return Version(found.name, int(found.version), found.run_id, dict(found.tags))  # type: ignore[attr-defined]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
