"""Everything that a command imports, imported once: what `harness` forks its commands from.

Importing starts no thread of torch, OpenMP, onnxruntime or MLflow, and opens no store, so a fork of this process is sound.
"""

import importlib

_OURS = (
    *("pipeline", "tracking", "experiment", "folds", "preparation", "assessment", "prediction"),
    *("tuning.campaign", "tuning.results", "transforms.steps", "models.torchvision_zoo"),
)
_LAZY = (
    *("sklearn.datasets", "sklearn.metrics", "pandas", "pyarrow.parquet", "scipy.stats", "matplotlib.backends.backend_agg"),
    *("torchvision", "torch._dynamo", "torch._inductor.standalone_compile", "torch.export", "torch.testing"),
    *("onnx", "onnxscript.function_libs.torch_lib.ops", "onnxscript.rewriter", "onnxruntime", "torch.onnx"),
    *("torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._torchlib.ops", "networkx", "git"),
    *("mlflow.pyfunc", "mlflow.models", "mlflow.artifacts", "mlflow.tracing", "opentelemetry.sdk.trace"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store", "alembic.command"),
    *("sqlalchemy.dialects.sqlite", "PIL.PngImagePlugin", "PIL.ImageDraw", "PIL.ImageOps", "PIL.JpegImagePlugin"),
)

for name in (*(f"tracked_cls.{ours}" for ours in _OURS), *_LAZY):
    importlib.import_module(name)
