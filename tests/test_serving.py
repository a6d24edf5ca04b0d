"""The registered model on its own: in a process that knows nothing of this project, over HTTP, and beside another version."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tracked_cls.data.decode import RejectedImage
from tracked_cls.errors import UserError
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.packaging import Bundle
from tracked_cls.serving.pyfunc import Wanted, rows, table_of


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


def test_mlflow_serves_the_neighbours_of_a_bad_image(server, digit):
    image, label = digit
    cells = ["no base64!", base64.b64encode(b"no image").decode(), base64.b64encode(image).decode(), None]
    rows = _post(server, {"dataframe_split": {"columns": ["image"], "data": [[cell] for cell in cells]}})
    assert [row["label"] for row in rows] == [None, None, label, None]
    assert [row["error"] and row["error"].partition(":")[0] for row in rows] == ["E_BASE64", "E_NOT_IMAGE", None, "E_EMPTY"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "missing inputs ['image']"),
        ({"dataframe_split": {"columns": ["image"], "data": [["x"]]}, "params": {"top_k": -1}}, "top_k must be a whole number"),
        (
            {"dataframe_split": {"columns": ["image"], "data": [["x"]]}, "params": {"threshold": 2.0}},
            "number from 0 (off) to 1",
        ),
    ],
    ids=["column", "top_k", "threshold"],
)
def test_mlflow_refuses_a_mistake_by_name(server, body, message):
    with pytest.raises(urllib.error.HTTPError) as caught:
        _post(server, body)
    answer = json.load(caught.value)
    assert caught.value.code == 400
    assert message in answer["message"]
    assert "stack_trace" not in answer


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(trained, store):
    """The trained network as it is served."""
    from mlflow import MlflowClient

    from tracked_cls import registry

    bundle, _ = registry.resolve(MlflowClient(store[1]), f"runs:/{trained.run_id}")
    return Classifier.load(bundle.onnx, bundle.meta, threads=1)


BAD_CELLS = {
    "nothing": (None, "E_EMPTY"),
    "NaN": (float("nan"), "E_EMPTY"),
    "no bytes": (b"", "E_EMPTY"),
    "no base64": ("hällo", "E_BASE64"),
    "data URL": ("data:image/png;base64,AAAA", "E_BASE64"),
    "padding": ("AAA", "E_BASE64"),
    "no image": (b"hello", "E_NOT_IMAGE"),
    "number": (7, "E_ARRAY"),
    "object": ({"b64": "AAAA"}, "E_ARRAY"),
    "list": ([[1, 2], [3, 4]], "E_ARRAY"),
    "floats": (np.zeros((8, 8)), "E_ARRAY"),
    "batch": (np.zeros((2, 8, 8, 3), np.uint8), "E_ARRAY"),
    "empty array": (np.zeros((0, 8), np.uint8), "E_ARRAY"),
}


@pytest.mark.parametrize("kind", BAD_CELLS)
def test_a_cell_that_is_no_image_has_its_error_and_its_neighbours_their_answers(classifier, digit, kind):
    cell, code = BAD_CELLS[kind]
    first, bad, last = rows(classifier, [digit[0], cell, digit[0]], Wanted())
    assert bad["error"].startswith(f"{code}: ")
    assert (bad["label"], bad["probability"], bad["probabilities"], bad["unsure"]) == (None, None, {}, True)
    assert first == last
    assert first["label"] == "0"
    assert first["error"] is None


def test_a_file_cut_short_or_too_large_has_its_error_in_its_row(classifier, digit):
    cut, large = rows(classifier, [digit[0][:-20], digit[0]], Wanted(), max_pixels=100)
    assert cut["error"].startswith("E_TRUNCATED: ")
    assert large["error"] == "E_TOO_LARGE: the image has 32 x 32 pixels, more than the limit of 100"


def test_base64_in_lines_and_arrays_are_the_image_they_hold(classifier, digit):
    image = digit[0]
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    cells = [image, bytearray(image), base64.encodebytes(image).decode(), pixels, pixels[:, :, None]]
    found = rows(classifier, cells, Wanted())
    assert [row["label"] for row in found] == ["0"] * len(cells)
    assert [row["probability"] for row in found] == pytest.approx([found[0]["probability"]] * len(cells), abs=1e-6)


def test_more_images_than_the_network_takes_at_once_come_back_in_order(classifier, trained, monkeypatch):
    images = [np.asarray(image) for image in trained.prepared.pixels[trained.prepared.manifest.indices("test")[:9]]]
    cells = [*images[:4], None, *images[4:]]
    whole = rows(classifier, cells, Wanted())
    sizes = []
    scored = Classifier.probabilities_of
    monkeypatch.setattr(Classifier, "probabilities_of", lambda self, batch: (sizes.append(len(batch)), scored(self, batch))[1])
    monkeypatch.setattr("tracked_cls.serving.pyfunc._BATCH", 2)
    parts = rows(classifier, cells, Wanted())
    assert sizes == [2, 2, 1, 2, 2]
    assert [row["label"] for row in parts] == [row["label"] for row in whole]
    assert whole[4]["error"] is not None


def test_top_k_and_threshold_do_what_they_say(classifier, digit):
    [all_of_them] = rows(classifier, [digit[0]], Wanted())
    [three] = rows(classifier, [digit[0]], Wanted(3, all_of_them["probability"]))
    [doubted] = rows(classifier, [digit[0]], Wanted(99, min(1.0, all_of_them["probability"] + 1e-9)))
    assert len(all_of_them["probabilities"]) == len(doubted["probabilities"]) == 10
    assert list(three["probabilities"].items()) == list(all_of_them["probabilities"].items())[:3]
    assert sorted(three["probabilities"].values(), reverse=True) == list(three["probabilities"].values())
    assert (all_of_them["unsure"], three["unsure"], doubted["unsure"]) == (False, False, True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": -1}, "top_k must be a whole number >= 0"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"top_k": True}, "top_k must be"),
        ({"top_k": "3"}, "top_k must be"),
        ({"threshold": 1.01}, "threshold must be a number from 0"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"threshold": None}, "threshold must be"),
        ({"topk": 3}, "unknown parameter 'topk'; known: threshold, top_k"),
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_refused_by_name(params, message):
    with pytest.raises(UserError, match=message):
        Wanted.of(params)


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        (["picture"], "'picture'"),
        (["a", "b", "c", "d"], "'a', 'b', 'c', ..."),
        ([], "no column"),
        (["image", "image"], "'image'"),
    ],
    ids=["other", "many", "none", "twice"],
)
def test_a_table_without_one_column_of_images_is_refused(classifier, columns, got):
    with pytest.raises(UserError, match=re.escape(f"one column 'image' is expected, got {got}")):
        table_of(classifier, pd.DataFrame([[1] * len(columns)], columns=columns), Wanted())


def test_a_table_keeps_its_index_and_missing_numbers_are_null_in_json(classifier, digit):
    found = table_of(classifier, pd.DataFrame({"image": [digit[0], "?"]}, index=[7, 3]), Wanted())
    assert list(found.index) == [7, 3]
    assert list(found.columns) == ["label", "probability", "probabilities", "unsure", "error"]
    assert "NaN" not in json.dumps(found.to_dict(orient="records"))
    assert len(table_of(classifier, pd.DataFrame({"image": []}), Wanted())) == 0


def test_a_model_of_clips_takes_frames_and_refuses_what_is_none(classifier):
    clips = replace(classifier, preprocess=replace(classifier.preprocess, frames=4))
    assert clips.read(np.zeros((3, 8, 8, 1), np.uint8)).shape == (4, 8, 8, 1)
    assert clips.read([np.zeros((8, 8), np.uint8)] * 2).shape == (4, 8, 8, 1)
    for cell in (7, None, "text", np.zeros((2, 2, 2, 2, 2), np.uint8), [1, 2], []):
        with pytest.raises(RejectedImage):
            clips.read(cell)


def test_an_answer_that_is_no_number_is_an_error(classifier, digit):
    broken = replace(classifier, meta={**classifier.meta, "temperature": float("nan")})
    [row] = rows(broken, [digit[0]], Wanted())
    assert row["error"].startswith("E_MODEL: ")
