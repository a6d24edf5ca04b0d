"""Data, weights and registered models are read, never run: a canary in each kind of file stays silent."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import joblib
import mlflow
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.faults import models_in_store
from tracked_cls import checkpoint, pretrained, registry, tracking, weights
from tracked_cls.config import ModelConfig, TrackingConfig
from tracked_cls.data import cache
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.serving import packaging
from tracked_cls.serving.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Where a payload leaves its trace; the environment asks torch and MLflow to trust everything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    return tmp_path / "executed"


# ---- payloads --------------------------------------------------------------------------------------------------------


def _buffered(write):
    def make(canary):
        stream = io.BytesIO()
        write(Canary(canary), stream)
        return stream.getvalue()

    return make


def _zip_of(*names):
    """Return a maker of an archive like torch's, TorchScript's or torch.export's, with a payload under each of the names."""

    def write(payload, stream):
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.writestr(f"archive/{name}", pickle.dumps(payload, protocol=2))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")

    return write


def _tar(payload, stream):
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(payload)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _among_tensors(payload, stream):
    torch.save({"model": {"conv.weight": torch.ones(2, 2)}, "extra": payload}, stream)


PAYLOADS = {
    "pt": _buffered(torch.save),
    "pt among tensors": _buffered(_among_tensors),
    "pt legacy": _buffered(lambda payload, stream: torch.save(payload, stream, _use_new_zipfile_serialization=False)),
    "pt legacy tar": _buffered(_tar),
    "pickle": _buffered(pickle.dump),
    "pickle protocol 0": _buffered(lambda payload, stream: pickle.dump(payload, stream, protocol=0)),
    "joblib": _buffered(joblib.dump),
    "joblib compressed": _buffered(lambda payload, stream: joblib.dump(payload, stream, compress=3)),
    "npy": _buffered(lambda payload, stream: np.save(stream, np.array([payload], object), allow_pickle=True)),
    "npz": _buffered(lambda payload, stream: np.savez(stream, w=np.array([payload], object))),
    "torchscript": _buffered(_zip_of("data.pkl", "constants.pkl")),
    "pt2": _buffered(_zip_of("data.pkl", "data/constants/model_constants_config.pkl", "data/weights/weight_0")),
}
UNSAFE = {
    "pt": lambda path: torch.load(path, weights_only=False),
    "pt legacy": lambda path: torch.load(path, weights_only=False),
    "pickle": lambda path: pickle.loads(path.read_bytes()),
    "joblib": joblib.load,
    "npy": lambda path: np.load(path, allow_pickle=True),
    "npz": lambda path: np.load(path, allow_pickle=True)["w"],
}
SUFFIXES = (*weights.SUFFIXES, ".pt2", ".pkl", ".joblib", ".npz", "")


@pytest.mark.parametrize("kind", UNSAFE)
def test_the_canary_sings_where_code_is_run(tmp_path, canary, kind):
    path = tmp_path / "payload"
    path.write_bytes(PAYLOADS[kind](canary))
    UNSAFE[kind](path)
    assert canary.exists()


@pytest.mark.parametrize("kind", PAYLOADS)
def test_weights_of_a_stranger_are_never_run(tmp_path, canary, kind):
    content = PAYLOADS[kind](canary)
    for suffix in SUFFIXES:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"weights.*: (holds more than|damaged|not a sound|weights are files that end in)"
        ) as said:
            pretrained.open_weights(ModelConfig(name="small_cnn", weights=str(path)))
        assert str(path) in str(said.value)
        assert "\n" not in str(said.value)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".pt", "../x.pt", "/nowhere/x.safetensors"])
def test_a_name_of_weights_that_no_file_has_is_one_short_line(name):
    with pytest.raises(UserError, match="no such file") as said:
        pretrained.open_weights(ModelConfig(name="small_cnn", weights=name))
    assert len(str(said.value)) < 600


class _NoState:
    """Stands for a state that must not be touched."""

    def load_state_dict(self, _):
        raise AssertionError("a payload was taken for a state")


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_checkpoint_of_a_stranger_is_never_run_though_its_digest_holds(tmp_path, canary, kind):
    content = PAYLOADS[kind](canary)
    path = tmp_path / "000001-00000000.pt"
    path.write_bytes(content)
    path.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
    try:
        assert not checkpoint.restore(_NoState(), checkpoint.Attempt(tmp_path))
    except AssertionError:
        raise
    except Exception as error:
        print(type(error).__name__)  # refused: which words it uses is the business of test_checkpoint
    assert not canary.exists()


@pytest.mark.parametrize("file", ["pixels.npy", "labels.npy", "weights.npy"])
def test_a_prepared_set_of_a_stranger_is_never_run_though_its_digests_hold(tmp_path, canary, file):
    with cache.staging(tmp_path / "set" / "key") as folder:
        for name in ("labels", "splits", "keys", "weights", "pixels"):
            np.save(folder / f"{name}.npy", np.zeros(1, np.uint8))
        (folder / file).write_bytes(PAYLOADS["npy"](canary))
        preprocess = Preprocess(Geometry(8, 1), mean=(0.5,), std=(0.3,)).to_dict()
        about = {"name": "x", "classes": [], "digest": "", "content_digest": "", "preprocess": preprocess}
        (folder / "meta.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="not a prepared set that can be read"):
        cache.open_prepared(tmp_path / "set" / "key")
    assert not canary.exists()


# ---- registered models -----------------------------------------------------------------------------------------------


def _flavor(**python_function):
    return {"python_function": {"env": {}, "python_version": "3.12", **python_function}}


def _write_model(folder, kind, canary):
    """Write a model as MLflow keeps it, with a payload where its flavour looks for code."""
    bundle = models_in_store.make_bundle(folder / "artifacts")
    code = f"open({str(canary)!r}, 'w')\n"
    flavors = _flavor(loader_module="mlflow.pyfunc.model", python_model="python_model.pkl", cloudpickle_version="3")
    (folder / "python_model.pkl").write_bytes(PAYLOADS["pickle"](canary))
    if kind == "models from code":
        flavors = _flavor(loader_module="mlflow.pyfunc.model", model_code_path="entry.py")
        (folder / "entry.py").write_text(code)
    if kind == "own loader":
        flavors = _flavor(loader_module="canary_loader", code="code")
        (folder / "code").mkdir()
        (folder / "code" / "canary_loader.py").write_text(code + "def _load_pyfunc(path): return None\n")
    if kind == "sklearn":
        flavors = {"sklearn": {"pickled_model": "python_model.pkl", "serialization_format": "pickle"}}
        flavors |= _flavor(loader_module="mlflow.sklearn", model_path="python_model.pkl")
    if kind == "weights that are none":
        bundle.weights.write_bytes(PAYLOADS["pt"](canary))
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "model_uuid": "x", "utc_time_created": "2026-01-01"}))


FLAVORS = ["cloudpickle", "models from code", "own loader", "sklearn", "weights that are none"]


@pytest.fixture
def strange(store, tmp_path, canary):
    """Put a stranger's model into the store and register it; return its addresses. `forged`: with a tag of sound digests."""
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as opened:
        client = opened.client

    def go(kind, forged):
        folder = tmp_path / "model"
        folder.mkdir()
        _write_model(folder, kind, canary)
        experiment = client.create_experiment(f"strange{tmp_path.name}", artifact_location=(tmp_path / "store").as_uri())
        model = client.create_logged_model(experiment, name="model")
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        tags = {packaging.FILES: json.dumps(packaging.file_digests(folder))} if forged else {}
        client.set_logged_model_tags(model.model_id, tags)
        name = f"strange{tmp_path.name}"
        client.create_registered_model(name)
        client.create_model_version(name, source=model.model_uri, tags=tags, model_id=model.model_id)
        client.set_registered_model_alias(name, "champion", "1")
        return client, [model.model_uri, f"models:/{name}/1", f"models:/{name}@champion"]

    return go


def test_the_canary_sings_where_mlflow_loads_a_model(strange, canary):
    _, (address, *_) = strange("models from code", forged=False)
    with pytest.raises(Exception):  # noqa: B017, PT011 - it defines no model: by then its lines were run
        mlflow.pyfunc.load_model(address)
    assert canary.exists()


@pytest.mark.parametrize("kind", FLAVORS)
def test_a_registered_model_of_a_stranger_is_refused_before_a_byte_is_fetched(strange, canary, kind, monkeypatch):
    client, addresses = strange(kind, forged=False)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", None)
    for address in addresses:
        with pytest.raises(UserError, match=r"refused unread: it has no digests of its files \(tag files\.sha256\)"):
            registry.resolve(client, address)
    with pytest.raises(UserError, match="refused unread"):
        registry.set_alias(client, registry.by_alias(client, addresses[1].split("/")[1], "champion"), "champion")
    assert not canary.exists()


@pytest.mark.parametrize("kind", FLAVORS)
def test_of_a_model_with_forged_digests_only_data_are_read(strange, canary, kind, tmp_path):
    client, addresses = strange(kind, forged=True)
    bundle, _ = registry.resolve(client, addresses[2])
    with pytest.raises(UserError, match=r"meta\.json: the description of the preprocessing"):
        Classifier.load(bundle.onnx, bundle.meta)
    preprocess = Preprocess(Geometry(8, 1), mean=(0.5,), std=(0.3,)).to_dict()
    sound = {"classes": ["a"], "preprocess": preprocess, "architecture": {}, "weights_digest": ""}
    (tmp_path / "sound.json").write_text(json.dumps(sound))
    with pytest.raises(UserError, match="not a sound ONNX model"):
        Classifier.load(bundle.onnx, tmp_path / "sound.json")
    if kind == "weights that are none":
        with pytest.raises(UserError, match="not a sound safetensors file"):
            weights.read(bundle.weights)
    else:
        assert weights.read(bundle.weights)
    assert not canary.exists()


# ---- the code itself -------------------------------------------------------------------------------------------------

NEVER = {  # whatever their arguments
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads"),
    *("joblib.load", "shelve.open", "marshal.load", "marshal.loads", "pandas.read_pickle", "shutil.unpack_archive"),
    *("torch.export.load", "torch.jit.load", "torch.package.PackageImporter", "torch.serialization.add_safe_globals"),
    *("torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "mlflow.pyfunc.load_model"),
    *("mlflow.pytorch.load_model", "mlflow.sklearn.load_model", "importlib.import_module"),
}
ONLY_WITH = {  # the argument that makes it safe, and its value
    "torch.load": ("weights_only", "True"),
    "numpy.load": ("allow_pickle", "False"),
    "yaml.load": ("Loader", "_StrictLoader"),
}
NEVER_WITH = [("shell", "True"), ("weights_only", "False"), ("allow_pickle", "True"), ("trust_remote_code", "True")]
ALLOWED = {
    ("plugins.py", "importlib.import_module"),  # modules that the configuration names: it is trusted
    ("program.py", "torch.export.load"),  # a file of our own, just written, in a process of its own
    ("apart.py", "mlflow.pyfunc.load_model"),  # in a process of its own, of files that are as they were logged
}


def _names(tree):
    """Return what names stand for: ``np`` -> ``numpy``, ``load`` -> ``pickle.load``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _full(node, names):
    root, dot, rest = ast.unparse(node).partition(".")
    return f"{names.get(root, root)}{dot}{rest}"


def breaches(source, file="any.py"):
    """Return the calls in a source that could run what a file says."""
    tree = ast.parse(source)
    names, found = _names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            found += [name for name in [_full(node, names)] if name in NEVER and (file, name) not in ALLOWED]
        if not isinstance(node, ast.Call):
            continue
        called, given = _full(node.func, names), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ONLY_WITH and given.get(ONLY_WITH[called][0]) != ONLY_WITH[called][1]:
            found.append(called)
        found += [f"{called}({word}={value})" for word, value in NEVER_WITH if given.get(word) == value]
        if called.endswith(".extractall") and given.get("filter") != "'data'":
            found.append(called)
    return found


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "pipelines").glob("*.py")]), ids=lambda path: path.stem
)
def test_nothing_of_ours_runs_what_a_file_says(path):
    assert breaches(path.read_text(encoding="utf-8"), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle\npickle.loads(x)", "from pickle import load as read\nread(x)", "import pickle as p\np.Unpickler(x)"),
        *(
            "import torch\ntorch.load(x)",
            "import torch\ntorch.load(x, weights_only=False)",
            "import torch\ntorch.export.load(x)",
        ),
        *("import numpy as np\nnp.load(x)", "import numpy as np\nnp.load(x, allow_pickle=True)", "eval(x)", "f = eval"),
        *(
            "import subprocess\nsubprocess.run(x, shell=True)",
            "import os\nos.system(x)",
            "import yaml\nyaml.load(x, yaml.Loader)",
        ),
        *("from importlib import import_module\nimport_module(x)", "import tarfile\ntarfile.open(x).extractall(y)"),
        *("import joblib\njoblib.load(x)", "import mlflow\nmlflow.pyfunc.load_model(x)"),
    ],
)
def test_the_check_sees_a_breach(source):
    assert breaches(source)


def test_the_loader_of_our_yaml_makes_plain_values_only():
    parse = importlib.import_module("tracked_cls.config.parse")
    assert issubclass(parse._StrictLoader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=parse._StrictLoader)


def test_a_network_is_no_payload(tmp_path, canary):
    """The other side: what is sound is read."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    assert set(weights.read(tmp_path / "weights.pt")) == {"weight", "bias"}
