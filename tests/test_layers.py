"""The house has layers: a module imports what stands before it in this list, and nothing else of ours."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "tracked_cls"

PLOTS = (
    *("lettering", "style", "results", "networks", "profiles", "suspects"),
    *("study", "options", "evaluation", "galleries", "comparison", "answers"),
)
LAYERS = [
    [
        *("errors", "redaction", "config", "failpoints", "processes", "durable", "signals", "console"),
        *("provenance", "host", "plugins"),
    ],
    [
        *("data.signature", "data.names", "data.decode", "data.preprocess", "data.files", "data.encode", "data.ingest"),
        *("data.decoders", "data.reading"),
        *("data.shards", "data.storage"),
        *(
            f"data.sources.{name}"
            for name in (
                *("patterns", "base", "rows", "places", "readers"),
                *("digits", "folder", "idx", "vision", "tables", "python", "composite"),
            )
        ),
        *(
            "data.sources",
            "data.intake",
            "data.manifest",
            "data.splits",
            "data.copies",
            "data.likeness",
            "data.cache",
            "data.reuse",
            "data.exchange",
        ),
        *("presence", "distributed", "randomness", "data.order", "compute"),
        *("losses.terms", "losses.class_weights", "losses.distillation", "losses"),
        *(f"transforms.{name}" for name in ("tensors", "warps", "batch", "mixing", "plain", "steps", "samples", "views")),
        *("transforms", "transforms.inference", "data.items", "data.feed", "data.loaders"),
        *(
            f"models.{name}"
            for name in (
                *("shape", "clips", "paths", "arguments", "small_cnn", "stems"),
                *("torchvision_zoo", "timm_zoo", "names", "sequential", "own"),
            )
        ),
        *("models", "weights", "models.published", "pretrained", "freezing", "averaging"),
        *("optim.eager", "optim.groups", "optim.ranger", "optim.optimizers", "optim.schedules", "optim", "metrics", "suspects"),
        *(f"statistics.{name}" for name in ("intervals", "counts", "calibration", "ranking", "paired")),
        *("scores", "slices"),
    ],
    [
        *("profiling", "evaluation", "state", "step", "training", "checkpoint", "saving", "journal", "anatomy"),
        *("attribution", "embedding", "picks", "gate"),
        *(f"plots.{name}" for name in PLOTS),
        *("plots", "conversion"),
    ],
    [
        *("serving.classifier", "serving.pyfunc", "serving.packaging", "serving.apart"),
        *("serving.address", "serving.limits", "serving.payload", "serving.gateway", "serving.scoring", "serving.listener"),
        *("tracking.store", "tracking.clerk", "tracking.sender", "tracking.run", "tracking.telemetry", "tracking.tracker"),
        *("tracking", "registry", "afterword"),
    ],
    [
        *(f"report.{name}" for name in ("page", "artifacts", "numbers", "origin", "data", "training", "study", "pairs")),
        *("report.comparison", "report.publication", "report.own"),
        *("inspection", "assembly", "preparation", "tables", "showcase", "assessment", "parity", "contest", "promotion"),
        *("beginning", "job", "exhibits", "release", "delivery", "keeping", "lockstep", "experiment", "gallery", "folds"),
        *(
            f"prediction.{name}"
            for name in (
                *("archives", "inputs", "listing", "engines", "network", "choice", "reader", "rows", "sheet", "sidecar"),
                *("output", "parts", "labelling"),
            )
        ),
        *("prediction", "pipeline", "launch"),
        *(f"export.{name}" for name in ("place", "markdown", "formats", "program", "agreement", "evidence", "card")),
        *("export", "finding", "service"),
        *(
            f"tuning.{name}"
            for name in (
                *("parameters", "entries", "space", "claims", "storage", "sampling", "table", "pictures"),
                *("study", "queue", "trials", "finals", "workers", "results", "campaign"),
            )
        ),
        *("api", "__init__"),
    ],
]
ORDER = [name for layer in LAYERS for name in layer]
ONLY_IN = {
    "mlflow": {
        *("serving.pyfunc", "serving.packaging", "serving.apart", "serving.scoring", "registry", "afterword"),
        *("tracking.store", "tracking.clerk", "tracking.telemetry", "tracking.tracker"),
    },
    "matplotlib": {f"plots.{name}" for name in PLOTS},
    "captum": {"attribution"},
    "torchvision": {"models.torchvision_zoo", "models.published", "data.sources.vision", "transforms.steps"},
    "timm": {"models.timm_zoo", "models.published", "optim.optimizers", "optim.groups"},
    "huggingface_hub": {"models.published"},
    "onnxruntime": {"serving.classifier"},
    "optuna": {
        *("tuning.storage", "tuning.sampling", "tuning.claims", "tuning.table", "tuning.pictures", "tuning.parameters"),
        *("tuning.space", "tuning.study", "tuning.queue", "tuning.trials", "tuning.finals"),
    },
    "sqlite3": {"tracking.store"},
}
TRAVELLING = {"errors", "data.signature", "data.decode", "data.preprocess", "serving.classifier", "serving.pyfunc"}


def _files():
    return sorted(path for path in SRC.rglob("*.py") if path.name != "__init__.py" or "from tracked_cls" in path.read_text())


def _name(path):
    name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    return "config" if name.startswith("config.") else name


def _imports(path):
    """Yield the full dotted name of every imported module, relative imports resolved."""
    package = ["tracked_cls", *path.relative_to(SRC).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            full = [f"{module}.{alias.name}" for alias in node.names]
            yield from full
            if not all(name.removeprefix("tracked_cls.") in ORDER for name in full):  # else: modules out of a package
                yield module


def _ours(path):
    """Yield our modules that a file imports, each by its longest known name."""
    for module in _imports(path):
        if module.startswith("tracked_cls."):
            short = module.removeprefix("tracked_cls.")
            known = [name for name in ORDER if f"{short}.".startswith(f"{name}.")]
            yield from sorted(known, key=len)[-1:]


def test_every_module_has_its_place():
    assert {_name(path) for path in _files()} == set(ORDER)


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_a_module_imports_only_what_stands_before_it(path):
    place = ORDER.index(_name(path))
    upward = {name for name in _ours(path) if ORDER.index(name) > place}
    assert not upward


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_a_heavy_library_is_imported_in_its_own_place_only(path):
    roots = {module.split(".")[0] for module in _imports(path)}
    strangers = {library for library, places in ONLY_IN.items() if library in roots and _name(path) not in places}
    assert not strangers


@pytest.mark.parametrize("path", [path for path in _files() if _name(path) in TRAVELLING], ids=_name)
def test_what_travels_with_a_model_imports_its_companions_relatively(path):
    assert not any(
        isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("tracked_cls")
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert set(_ours(path)) <= TRAVELLING


def test_the_travelling_modules_are_the_packaged_ones():
    from tracked_cls.serving import packaging

    assert {name.removesuffix(".py").replace("/", ".") for name in packaging._TRAVELLING} == TRAVELLING
