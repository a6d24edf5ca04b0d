"""Registered models: addresses resolved to local files, versions, aliases."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tracked_cls.config import TrackingConfig
from tracked_cls.errors import UserError
from tracked_cls.redaction import reason_of, redacted
from tracked_cls.serving.packaging import FILES, WEIGHTS_DIGEST, Bundle, bundle_of, exported_bundle, file_digests, models_of
from tracked_cls.tracking.store import is_refusal

CHAMPION, CHALLENGER = "champion", "challenger"
TEST_READS = "test.reads"  # tag of a run: how often its model was asked about the test images
_MODEL = re.compile(r"models:/(?P<name>[A-Za-z0-9_.-]{1,128})(?:@(?P<alias>[A-Za-z0-9_-]{1,128})|/(?P<version>\d+))")
_LOGGED = re.compile(r"models:/m-[0-9a-f]+")
_RUN = re.compile(r"runs:/(?P<run>[0-9a-f]{8,64})")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SHOWN = 200  # characters of what is no address
_CURE = "train again and register what comes of it"


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

    Takes ``runs:/<id>``, ``models:/<name>/<version>`` and ``models:/<name>@<alias>``. Every file was compared with the
    SHA-256 taken when the model was logged, and no code that came with it was run. Raises `UserError` for any other address,
    for what does not exist, and for a model that has changed or was not logged by this project.
    """
    try:
        exact = _exact(client, uri)
        return _bundle(client, exact, uri), exact
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: it cannot be read now: {reason_of(error)}") from None


def open_model(client: MlflowClient, address: str, tracking: TrackingConfig, key: str) -> tuple[Bundle, str]:
    """Return the files of a model and the exact model they are, of an address or a folder of ``export``.

    What is no address is a folder, looked for as every input is; what stands for the exact model then is its absolute path.
    `key` is the option that named it.
    """
    bundle = exported_bundle(address, tracking, key)
    return resolve(client, address) if bundle is None else (bundle, str(bundle.folder))


def files_of(client: MlflowClient, exact: str) -> Bundle:
    """Return the local files of an exact model, as `resolve` does; a store that is away raises what it raises."""
    return _bundle(client, exact, exact)


def _bundle(client: MlflowClient, exact: str, uri: str) -> Bundle:
    bundle = bundle_of(_verified(client, exact, uri))
    if not bundle.meta.exists():
        raise UserError(f"{uri}: not a model of this project: it holds no {bundle.meta.name}")
    return bundle


def version_at(client: MlflowClient, address: str) -> Version:
    """Return the version that an address means: ``models:/<name>/<version>``, ``models:/<name>@<alias>`` or ``runs:/<id>``.

    Raises `UserError` for any other address, and for what does not exist or was not registered.
    """
    try:
        exact = _exact(client, address)
        if match := _MODEL.fullmatch(exact):
            return _version(client.get_model_version(match["name"], match["version"]))
        found = client.search_model_versions(f"run_id='{address.removeprefix('runs:/')}'") if _RUN.fullmatch(address) else []
        if not found:  # another run may have come to the same weights, and registered them
            digest = _tags_of(client, exact, address).get(WEIGHTS_DIGEST)
            found = client.search_model_versions(f"tags.`{WEIGHTS_DIGEST}` = '{digest}'") if digest else []
    except MlflowException as error:
        raise UserError(f"{address}: it cannot be read now: {reason_of(error)}") from None
    if not found:
        raise UserError(f"{address}: its model is not registered; train with promote.auto=always, which registers a challenger")
    return _version(min(found, key=lambda version: int(version.version)))


def versions(client: MlflowClient, name: str) -> list[Version]:
    """Return the versions of a model, the first one first."""
    found = [_version(version) for version in client.search_model_versions(f"name='{name}'")]
    return sorted(found, key=lambda version: version.number)


def by_number(client: MlflowClient, name: str, number: str) -> Version | None:
    """Return a version, or None where it does not exist."""
    try:
        return _version(client.get_model_version(name, number))
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def _verified(client: MlflowClient, exact: str, uri: str) -> Path:
    """Return the local folder of a model, each of its files as it was when it was logged."""
    promised = _promised(client, exact, uri)  # before a byte of it is fetched
    try:
        folder = Path(mlflow.artifacts.download_artifacts(_source(client, exact), tracking_uri=client.tracking_uri))
        found = file_digests(folder)
    except (MlflowException, OSError) as error:
        _raise_outage(error)
        raise UserError(f"{uri}: its files cannot be read: {reason_of(error)}") from None
    for name in sorted({*promised, *found}):
        if found.get(name) != promised.get(name):
            kind = "is missing" if name not in found else "does not belong to it" if name not in promised else "has changed"
            raise UserError(f"{uri}: {folder / name} {kind} since the model was logged (tag {FILES}); it is not used; {_CURE}")
    return folder


def _source(client: MlflowClient, exact: str) -> str:
    """Return where the files of a model lie, asked of the client: MLflow would ask the store that the process used last."""
    if match := _MODEL.fullmatch(exact):
        return str(client.get_model_version_download_uri(match["name"], match["version"]))
    return str(client.get_logged_model(exact.removeprefix("models:/")).artifact_location)


def _promised(client: MlflowClient, exact: str, uri: str) -> dict[str, str]:
    """Return path -> SHA-256 as it stood when the model was logged."""
    try:
        tags = _tags_of(client, exact, uri)
    except MlflowException as error:
        _raise_outage(error)
        raise UserError(f"{uri}: it cannot be looked up: {reason_of(error)}") from None
    if FILES not in tags:
        raise UserError(f"{uri}: refused unread: it has no digests of its files (tag {FILES}), so this project did not log it")
    try:
        return {str(name): str(digest) for name, digest in json.loads(tags[FILES]).items()}
    except (AttributeError, ValueError, RecursionError):
        raise UserError(f"{uri}: refused unread: its tag {FILES} cannot be read; {_CURE}") from None


def _raise_outage(error: Exception) -> None:
    """Raise what says nothing of the model: a store that is away, which may answer when it is asked again."""
    if not (is_refusal(error) or isinstance(error, FileNotFoundError)):
        raise error


def _tags_of(client: MlflowClient, exact: str, uri: str) -> Mapping[str, str]:
    if match := _MODEL.fullmatch(exact):
        return dict(client.get_model_version(match["name"], match["version"]).tags)
    model = client.get_logged_model(exact.removeprefix("models:/"))
    if model.status != "READY":
        raise UserError(f"{uri}: the model was not logged to its end; start its training again")
    return dict(model.tags)


def _exact(client: MlflowClient, uri: str) -> str:
    if match := _RUN.fullmatch(uri):
        return _model_of_run(client, match["run"])
    if _LOGGED.fullmatch(uri):
        return uri
    match, shown = _MODEL.fullmatch(uri), repr(redacted(uri[:_SHOWN]))
    if match is None and uri.startswith("runs:/"):
        raise UserError(f"{shown} is no model address: the id of a run has 32 hex digits, and nothing stands behind it")
    if match is None:
        raise UserError(f"{shown} is no model address; use runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>")
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
        found = [model for model in models_of(client, run_id) if model.status == "READY"]
    except MlflowException:
        raise UserError(f"runs:/{run_id}: there is no such run in {redacted(client.tracking_uri)}") from None
    if not found:
        raise UserError(f"runs:/{run_id}: the run logged no model; only finished `train` runs hold one")
    return str(found[0].model_uri)


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


def _is_hidden(client: MlflowClient, name: str, error: MlflowException) -> bool:
    """Whether a server with logins forbids to read a model because there is none of that name: nobody has a right to it yet."""
    return error.error_code == "PERMISSION_DENIED" and not client.search_registered_models(f"name='{name}'", max_results=1)


def by_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    """Return the version an alias points to, or None where the model or the alias does not exist."""
    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if not is_absent(error) and not _is_hidden(client, name, error):
            raise
        return None


def register(client: MlflowClient, name: str, model_uri: str, *, run_id: str, tags: Mapping[str, str]) -> Version:
    """Make a version of a logged model, or return the one that holds the same weights already (tag ``weights.digest``).

    The version carries the digests of the model's files (tag ``files.sha256``). Of processes that register the same weights
    at once, all get the same version, and no second one stays.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name[:_SHOWN]!r} cannot name a registered model: 1 to 128 letters, digits and _.- are allowed; set data.name"
        )
    _make_model(client, name)
    if not _holding(client, name, tags[WEIGHTS_DIGEST]):
        model_id = model_uri.removeprefix("models:/")
        files = json.dumps(_promised(client, model_uri, model_uri))
        client.create_model_version(name, source=model_uri, run_id=run_id, tags={**tags, FILES: files}, model_id=model_id)
    # numbers grow, so who made a later version sees the first one here, and nobody is given another
    first, *later = _holding(client, name, tags[WEIGHTS_DIGEST])
    for version in later:
        _delete(client, version)
    return first


def _make_model(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if not is_absent(error) and not _is_hidden(client, name, error):
            raise
        try:
            client.create_registered_model(name, description=f"Classifier trained by tracked_cls; alias {CHAMPION} is in use.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise


def _holding(client: MlflowClient, name: str, weights_digest: str) -> list[Version]:
    """Return the versions of a model that hold certain weights, the first one first."""
    return [version for version in versions(client, name) if version.tags.get(WEIGHTS_DIGEST) == weights_digest]


def _delete(client: MlflowClient, version: Version) -> None:
    try:
        client.delete_model_version(version.name, str(version.number))
    except MlflowException as error:
        if not is_absent(error):  # who made it may delete it in the same moment
            raise


def set_alias(client: MlflowClient, version: Version, alias: str) -> None:
    """Point an alias at a version, in one atomic call, once its files were found as they were logged.

    Raises `UserError` where they are not; the alias stays where it was.
    """
    _verified(client, version.uri, version.uri)
    client.set_registered_model_alias(version.name, alias, str(version.number))


def tag_version(client: MlflowClient, version: Version, tags: Mapping[str, str], instead_of: Sequence[str] = ()) -> None:
    """Set tags of a version, and delete those it had before that are named in `instead_of` and not set now."""
    for key in instead_of:
        if key in version.tags and key not in tags:
            client.delete_model_version_tag(version.name, str(version.number), key)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, value)


def count_read(client: MlflowClient, run_id: str) -> int | None:
    """Note in a model's run that it was asked about the test images once more, and return how often that is now.

    Its own training did so once. Who chooses among models by the test split should see that they did. A run that was deleted
    needs no count: None.
    """
    try:
        found = client.get_run(run_id)
        if found.info.lifecycle_stage != "active":
            return None
        reads = int(found.data.tags.get(TEST_READS, 1)) + 1
        client.set_tag(run_id, TEST_READS, str(reads))
        return reads
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def _version(found: object) -> Version:
    return Version(found.name, int(found.version), found.run_id, dict(found.tags))  # type: ignore[attr-defined]
