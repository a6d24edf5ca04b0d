"""The registered model on its own: in a process that knows nothing of this project, over HTTP, and beside another version."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.packaging import Bundle


@pytest.fixture(scope="module")
def digit(trained):
    """A test image as PNG bytes with its true label."""
    manifest = trained.prepared.manifest
    index = next(i for i in manifest.indices("test") if manifest.classes[manifest.labels[i]] == "0")
    stream = io.BytesIO()
    Image.fromarray(trained.prepared.pixels[index][:, :, 0]).save(stream, "PNG")
    return stream.getvalue(), "0"


def _outside(code, *arguments, store, cwd):
    """Run Python code in a fresh process without this project on its path; return what it prints as JSON."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = store
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOAD = """
import base64, io, json, sys
import mlflow, numpy as np, pandas as pd
from PIL import Image
model = mlflow.pyfunc.load_model(sys.argv[1])
image = base64.b64decode(sys.argv[2])
pixels = np.asarray(Image.open(io.BytesIO(image)))
cells = {"bytes": image, "base64": sys.argv[2], "array": pixels}
answers = {name: model.predict(pd.DataFrame({"image": [cell]})).iloc[0].to_dict() for name, cell in cells.items()}
two = model.predict(pd.DataFrame({"image": [image, image]}), params={"top_k": 3})
modules = [name for name in sys.modules if name.split(".")[0] in ("tracked_cls", "torch", "torchvision")]
print(json.dumps({"answers": answers, "top": [len(p) for p in two["probabilities"]], "modules": modules}))
"""


def test_the_champion_answers_in_a_process_without_this_project(trained, digit, store, tmp_path):
    image, label = digit
    address = "models:/digits-classifier@champion"
    said = _outside(LOAD, address, base64.b64encode(image).decode(), store=store[1], cwd=tmp_path)
    assert {answer["label"] for answer in said["answers"].values()} == {label}
    assert len({round(answer["probability"], 9) for answer in said["answers"].values()}) == 1
    assert sum(said["answers"]["bytes"]["probabilities"].values()) == pytest.approx(1)
    assert said["top"] == [3, 3]
    assert said["modules"] == [], "the model brings its own code and needs no torch"


def test_the_model_brings_its_own_code_where_this_project_is_imported(trained, client):
    import mlflow

    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model(trained.model_uri).unwrap_python_model()
    assert type(model).__module__.startswith("tc_")


def test_the_classifier_gives_what_training_measured(trained, client, store):
    from tracked_cls import registry

    bundle, _ = registry.resolve(client, f"runs:/{trained.run_id}")
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    test = trained.prepared.manifest.indices("test")
    table = classifier.probabilities_of(np.asarray(trained.prepared.pixels[test]))
    assert table.sum(axis=1) == pytest.approx(1)
    accuracy = (table.argmax(axis=1) == trained.prepared.manifest.labels[test]).mean()
    assert accuracy == trained.test.metrics["accuracy"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"nonsense", "not a sound ONNX model"),
        ("meta.json", b"{", "not a readable model description"),
        ("meta.json", b"{}", "lacks architecture, classes, preprocess, weights_digest"),
    ],
)
def test_a_damaged_model_is_refused_by_name(trained, client, tmp_path, name, content, message):
    from tracked_cls import registry
    from tracked_cls.errors import UserError

    good, _ = registry.resolve(client, f"runs:/{trained.run_id}")
    for path in (good.onnx, good.meta):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    bundle = Bundle(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Classifier.load(bundle.onnx, bundle.meta)
    assert name in str(caught.value)


@pytest.fixture(scope="module")
def server(trained, store, tmp_path_factory):
    """`mlflow models serve` on the champion, on a free loopback port; stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where the server finds uvicorn
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store[1], "PATH": path}
    command = ["-m", "mlflow", "models", "serve", "-m", "models:/digits-classifier@champion"]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, folder / "log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(url, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server does not answer: {log.read_text()}")


def _post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["predictions"]


def test_mlflow_serves_the_champion(server, digit):
    image, label = digit
    text = base64.b64encode(image).decode()
    predictions = _post(server, {"dataframe_split": {"columns": ["image"], "data": [[text], [text]]}, "params": {"top_k": 2}})
    assert [row["label"] for row in predictions] == [label, label]
    assert [len(row["probabilities"]) for row in predictions] == [2, 2]


@pytest.mark.parametrize("cell", ["no base64!", base64.b64encode(b"no image").decode()], ids=["no base64", "no image"])
def test_a_bad_request_is_refused_and_the_next_one_is_answered(server, digit, cell):
    with pytest.raises(urllib.error.HTTPError) as caught:
        _post(server, {"dataframe_split": {"columns": ["image"], "data": [[cell]]}})
    assert 400 <= caught.value.code < 500
    image, label = digit
    good = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}}
    assert _post(server, good)[0]["label"] == label
