"""A trained network packed as one MLflow pyfunc model that brings its own code.

The few modules that serve travel under a package name made of their digest (``tc_1a2b3c4d``): shipped as ``tracked_cls``
they would silently be replaced by whatever ``tracked_cls`` the loading process has imported.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracked_cls.serving.pyfunc import COLUMN

MODEL_NAME = "model"
ONNX, WEIGHTS, META = "model.onnx", "weights.safetensors", "meta.json"
_PACKAGE = Path(__file__).resolve().parents[1]
_TRAVELLING = (
    "errors.py",
    "data/signature.py",
    "data/decode.py",
    "data/preprocess.py",
    "serving/classifier.py",
    "serving/pyfunc.py",
)
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


@dataclass(frozen=True)
class Bundle:
    """The three files of a model in a local folder."""

    folder: Path

    @property
    def onnx(self) -> Path:
        """The network for ONNX Runtime."""
        return self.folder / ONNX

    @property
    def weights(self) -> Path:
        """The network's tensors."""
        return self.folder / WEIGHTS

    @property
    def meta(self) -> Path:
        """Architecture, class names, preprocessing and where the model comes from."""
        return self.folder / META


def log_model(bundle: Bundle, run_id: str, *, scratch: Path, example: bytes) -> str:
    """Log a bundle as the model of a run; return its address (``models:/m-...``).

    `example` is an encoded image; it is stored with the model and shown in `mlflow ui`.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    code = _stage_code(scratch)
    with _importable(scratch):  # MLflow runs the entry point once to see what it makes
        info = Model.log(
            artifact_path=None,
            name=MODEL_NAME,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(_entry_point(scratch)),
            code_paths=[str(code)],
            artifacts={"onnx": str(bundle.onnx), "weights": str(bundle.weights), "meta": str(bundle.meta)},
            signature=_signature(),
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            input_example=_example(example),
        )
    return str(info.model_uri)


def bundle_of(model_folder: Path) -> Bundle:
    """Return the bundle inside a downloaded MLflow model."""
    return Bundle(model_folder / "artifacts")


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


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.integer, 0)]),
    )


def _example(image: bytes) -> Any:
    import pandas as pd

    return pd.DataFrame({COLUMN: [image]})
