"""A trained network packed as one MLflow pyfunc model that brings its own code.

The few modules that serve travel under a package name made of their digest (``tc_1a2b3c4d``): shipped as ``tracked_cls``
they would silently be replaced by whatever ``tracked_cls`` the loading process has imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracked_cls import durable, failpoints
from tracked_cls.config import TrackingConfig, find_input, is_model_address
from tracked_cls.errors import UserError

MODEL_NAME = "model"
ONNX, WEIGHTS, META, GOLDEN = "model.onnx", "weights.safetensors", "meta.json", "golden.npz"
EXPORTED_WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"  # in the folder that `export` writes
WEIGHTS_DIGEST, FILES = "weights.digest", "files.sha256"  # tags; the second: JSON, path -> SHA-256 of each file
_ADDED = {"registered_model_meta", "__pycache__"}  # to a model that is used where it is stored
_PACKAGE = Path(__file__).resolve().parents[1]
_TRAVELLING = (
    "errors.py",
    "data/signature.py",
    "data/decode.py",
    "data/preprocess.py",
    "serving/classifier.py",
    "serving/pyfunc.py",
)
_SUM = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)")
_LONGEST_SUMS = 100_000
_EXPORT_AGAIN = "export the model again"
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


@dataclass(frozen=True)
class Bundle:
    """The files of a model in a local folder; an export's tensors have a name of their own."""

    folder: Path
    weights_name: str = WEIGHTS

    @property
    def onnx(self) -> Path:
        """The network for ONNX Runtime."""
        return self.folder / ONNX

    @property
    def weights(self) -> Path:
        """The network's tensors."""
        return self.folder / self.weights_name

    @property
    def meta(self) -> Path:
        """Architecture, class names, preprocessing and where the model comes from."""
        return self.folder / META

    @property
    def golden(self) -> Path:
        """Some images, and what the evaluated network says of them."""
        return self.folder / GOLDEN


def log_model(bundle: Bundle, run_id: str, *, scratch: Path, example: bytes) -> str:
    """Log a bundle as the model of a run; return its address (``models:/m-...``).

    The weights of a run are logged once: where the run holds them already, that is the address. `example` is an encoded
    image; it is stored with the model and shown in `mlflow ui`.
    """
    from mlflow import MlflowClient

    client, weights_digest = MlflowClient(), str(json.loads(bundle.meta.read_text(encoding="utf-8"))["weights_digest"])
    for earlier in models_of(client, run_id):
        if earlier.status == "READY" and FILES in earlier.tags and earlier.tags.get(WEIGHTS_DIGEST) == weights_digest:
            return str(earlier.model_uri)
        if earlier.status != "READY":  # a process was killed over it
            client.delete_logged_model(earlier.model_id)
    model = _announce(client, run_id, {WEIGHTS_DIGEST: weights_digest})
    folder = _save(bundle, model, scratch, example)
    client.set_logged_model_tags(model.model_id, {FILES: json.dumps(file_digests(folder))})  # of what was here, not there
    client.log_model_artifacts(model.model_id, str(folder))
    failpoints.reach("release.mid_log_model")
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_uri)


def models_of(client: Any, run_id: str) -> list[Any]:
    """Return the models that a run has logged, the half-logged ones as well, the newest first."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return sorted(found, key=lambda model: model.creation_timestamp, reverse=True)


def _announce(client: Any, run_id: str, tags: dict[str, str]) -> Any:
    """Make an empty model that belongs to a run, with its params, and its metrics that have no epoch."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.tracking.context.registry import resolve_tags

    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, tags=resolve_tags(tags), params=run.data.params
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    found = (metric for key in run.data.metrics for metric in client.get_metric_history(run_id, key) if metric.step == 0)
    own = [Metric(m.key, m.value, m.timestamp, 0, model_id=model.model_id, run_id=run_id) for m in found if m.model_id is None]
    if own:
        client.log_batch(run_id, metrics=own)
    return model


def _save(bundle: Bundle, model: Any, scratch: Path, example: bytes) -> Path:
    """Write the model's folder as MLflow wants it; return it."""
    import mlflow.pyfunc
    from mlflow.models import Model

    folder, code = scratch / MODEL_NAME, _stage_code(scratch)
    about = Model(artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=model.source_run_id)
    about.model_id = model.model_id
    with _importable(scratch):  # MLflow runs the entry point once to see what it makes
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=about,
            python_model=str(_entry_point(scratch)),
            code_paths=[str(code)],
            artifacts={name: str(getattr(bundle, name)) for name in ("onnx", "weights", "meta", "golden")},
            signature=signature(),
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            input_example=_example(example),
        )
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a model's folder by its path there.

    What a download and Python add while they use it is left out.
    """
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): durable.sha256_of(path) for name, path in files.items() if not _ADDED & set(name.parts)}


def bundle_of(model_folder: Path) -> Bundle:
    """Return the bundle inside a downloaded MLflow model."""
    return Bundle(model_folder / "artifacts")


def exported_bundle(address: str, tracking: TrackingConfig, key: str) -> Bundle | None:
    """Return the export whose folder an option (`key`) names, looked for as every input is; None for an address in MLflow."""
    return None if is_model_address(address) else local_bundle(find_input(address, tracking, key).absolute())


def local_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder that ``export`` wrote, each of its files as it was written.

    Raises `UserError` for any other folder, and for a file that is missing, has changed, or is a link out of the folder.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - False, and no error, for a name that is too long
        raise UserError(f"{folder}: there is no such folder; export a model to it (-e export), or give its address in MLflow")
    promised = read_sums(folder)
    for name in (ONNX, META):
        if name not in promised:
            raise UserError(f"{folder}: it holds no {name}; {_EXPORT_AGAIN} with onnx among export.formats")
    for name, digest in promised.items():
        _require_same(folder, name, digest)
    return Bundle(folder, EXPORTED_WEIGHTS)


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 as the folder's list of them says; raises `UserError` where it is no such list.

    A line that begins with # says something of a file that may be edited, and is passed over, as ``sha256sum -c`` does.
    """
    path = folder / SUMS
    if not path.is_file():
        raise UserError(f"{folder}: no export of this project: it holds no {SUMS}; {_EXPORT_AGAIN}")
    try:
        if path.stat().st_size > _LONGEST_SUMS:
            raise UserError(f"{path}: larger than {_LONGEST_SUMS:,} bytes, which no such file of ours is")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); {_EXPORT_AGAIN}") from None
    found = [_SUM.fullmatch(line) for line in lines if not line.startswith("#")]
    if not found or not all(found):
        raise UserError(f"{path}: damaged: expected lines of a SHA-256, two blanks and a file's name; {_EXPORT_AGAIN}")
    return {match["name"]: match["digest"] for match in found if match}


def _require_same(folder: Path, name: str, digest: str) -> None:
    """Raise `UserError` for a file that is not, in this very folder, what was written there."""
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise UserError(f"{path}: a link out of the folder, which no export holds; {_EXPORT_AGAIN}")
    if not path.is_file():
        raise UserError(f"{path}: it is missing, and {SUMS} names it; {_EXPORT_AGAIN}")
    try:
        found = durable.sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: it cannot be read: {error.strerror}") from None
    if found != digest:
        raise UserError(f"{path}: it has changed since it was written ({SUMS}); it is not used; {_EXPORT_AGAIN}")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _code_name() -> str:
    sha = hashlib.sha256()
    for name in _TRAVELLING:
        sha.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes())
    return f"tc_{sha.hexdigest()[:8]}"


def _stage_code(scratch: Path) -> Path:
    """Copy the travelling modules, in their folders so that their relative imports hold; return the package's folder."""
    package = scratch / _code_name()
    for name in _TRAVELLING:
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        target.write_bytes((_PACKAGE / name).read_bytes())
    (package / "__init__.py").touch()
    return package


def _entry_point(scratch: Path) -> Path:
    path = scratch / "entry.py"
    path.write_text(
        "import mlflow.models\n"
        f"from {_code_name()}.serving.pyfunc import ImageClassifier\n\n"
        "mlflow.models.set_model(ImageClassifier())\n"
    )
    return path


def signature() -> Any:
    """Return what goes into the model and comes out of it, as MLflow puts it.

    The column is declared as text: of one declared as binary, a scoring server would refuse all images of a request for one
    whose base64 is damaged, or take it for another.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    from tracked_cls.serving.pyfunc import COLUMN  # takes mlflow.pyfunc along

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, COLUMN)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(Map(DataType.double), "probabilities"),
                ColSpec(DataType.boolean, "unsure"),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.integer, 0), ParamSpec("threshold", DataType.double, 0.0)]),
    )


def _example(image: bytes) -> Any:
    import pandas as pd

    from tracked_cls.serving.pyfunc import COLUMN

    return pd.DataFrame({COLUMN: [image]})
