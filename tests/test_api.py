"""The pipeline from a program or a notebook: each verb a function, a trained model a callable."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import tracked_cls
from tests.conftest import ROOT
from tracked_cls.api import ImageClassifier
from tracked_cls.config import EvaluateConfig, PredictConfig, TrainConfig, resolve
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.serving.classifier import Classifier

SMALL = {"model": "small_cnn", "epochs": 1, "threads": 1, "limit": 100, "checkpoint": {"max_cost": 1}}


@pytest.fixture
def here(store):
    return {"tracking": {"uri": store[1], "pictures": False}}


@pytest.fixture
def clf(trained, store):
    return tracked_cls.load_classifier("models:/digits-classifier@champion", tracking_uri=store[1], threads=1)


@pytest.fixture(scope="module")
def digits():
    """Digits as scikit-learn has them: uint8 [N,8,8] and their labels."""
    found = load_digits()
    return (found.images * 255 / 16).round().astype(np.uint8), found.target


# ---- a model to call -------------------------------------------------------------------------------------------------


def encoded(pixels, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_a_loaded_model_labels_an_image_given_in_any_way(clf, digits, tmp_path):
    pixels, label = digits[0][7], str(digits[1][7])
    path = tmp_path / "seven.png"
    path.write_bytes(encoded(pixels))
    data = path.read_bytes()
    ways = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        pixels,
        pixels[:, :, None],
        Image.fromarray(pixels),
        np.dstack([pixels] * 3),
    ]

    answers = [clf(way) for way in ways]

    assert answers[0].label == label
    assert all(answer == answers[0] for answer in answers)
    assert list(answers[0].probabilities.values()) == sorted(answers[0].probabilities.values(), reverse=True)
    assert set(answers[0].probabilities) == set(clf.classes)
    assert answers[0].probability == answers[0].confidence == answers[0].probabilities[label]
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)


def test_several_images_get_the_answers_that_each_gets_alone(clf, digits):
    images = list(digits[0][:70])  # more than are scored together
    together = clf(iter(images))
    assert [answer.label for answer in together] == [clf(image).label for image in images]
    assert clf(np.stack(images[:3])[..., None]) == clf(images[:3])
    assert clf([]) == []


def test_it_is_as_right_as_its_run_said(clf, trained, digits):
    prepared = trained.prepared
    indices = prepared.manifest.indices("test")
    answers = clf(list(prepared.sized(indices)))
    right = np.mean([answer.label == prepared.manifest.classes[prepared.manifest.labels[index]] for answer, index in
                     zip(answers, indices, strict=True)])  # fmt: skip
    assert right == pytest.approx(trained.test.metrics["accuracy"])


def test_it_knows_where_it_comes_from(clf, trained):
    assert (clf.run_id, clf.data_digest) == (trained.run_id, trained.prepared.manifest.digest)
    assert clf.model.startswith("models:/digits-classifier/")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image at all", "E_NOT_IMAGE"),
        (b"", "E_EMPTY"),
        ("/no/such/file.png", "E_MISSING: '/no/such/file.png': "),
        (["/no/such/file.png"], "E_MISSING: image 0: '/no/such/file.png': "),
        ("a\0b", "E_NAME"),
        (np.zeros((8, 8), np.float32), "E_ARRAY.*uint8.*got float32"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "E_MODE"),
        (None, "E_TYPE: .*got NoneType"),
        ([5], "E_TYPE: image 0: .*got int"),
        (np.zeros((3, 8, 8), np.uint8), "E_ARRAY"),
    ],
    ids=["text", "empty", "missing", "one of several", "NUL", "float", "float picture", "nothing", "number", "no batch"],
)
def test_what_is_no_image_is_refused_with_the_reason(clf, image, message):
    with pytest.raises(UserError, match=message):
        clf(image)


def test_a_pillow_image_that_is_damaged_is_refused_like_its_file(clf, digits):
    cut = Image.open(io.BytesIO(encoded(np.kron(digits[0][7], np.ones((20, 20), np.uint8)))[:-60]))
    with pytest.raises(UserError, match="E_CORRUPT"):
        clf(cut)


def test_a_clip_is_the_same_however_it_is_given(tmp_path):
    frames = [np.full((8, 8), 40 * index, np.uint8) for index in range(6)]
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others)
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(frames):
        (tmp_path / "clip" / f"{index}.png").write_bytes(encoded(frame))

    class Means:
        """Stands for a network: the mean of each of the three frames it sees is a probability."""

        classes = ("a", "b", "c")
        preprocess = Preprocess(Geometry(8, 1), (0.0,), (1.0,), frames=3)
        label, confidence = Classifier.label, Classifier.confidence
        multi_label = False

        def probabilities_of(self, batch):
            return batch.mean(axis=(2, 3, 4)) / 255

    clf = ImageClassifier("none", Means())
    ways = [tmp_path / "clip.gif", (tmp_path / "clip.gif").read_bytes(), Image.open(tmp_path / "clip.gif"), tmp_path / "clip"]
    answers = [clf(way) for way in ways]
    assert len(set(answers[0].probabilities.values())) == 3
    assert all(answer == answers[0] for answer in answers)
    assert clf(np.stack(frames)[..., None]).probabilities == answers[0].probabilities


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/digits-classifier@nobody", "has no 'nobody'"),
        ("models:/none-classifier@champion", "there is no registered model 'none-classifier'"),
        ("runs:/17", "the id of a run has 32 hex digits"),
        ("no/such/folder", "model: 'no/such/folder' does not exist"),
        ("a:b", "model: 'a:b' does not exist"),
        ("", "a model is an address"),
        (None, "a model is an address"),
    ],
)
def test_a_model_that_is_not_there_is_told(trained, store, address, message):
    with pytest.raises(UserError, match=message):
        tracked_cls.load_classifier(address, tracking_uri=store[1])


def test_looking_for_a_model_makes_no_store(tmp_path):
    with pytest.raises(UserError, match="there is no store at"):
        tracked_cls.load_classifier("models:/x@champion", tracking_uri=f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="tracking.uri: garbage://x"):
        tracked_cls.load_classifier("models:/x@champion", tracking_uri="garbage://x")


# ---- the verbs -------------------------------------------------------------------------------------------------------


def test_each_step_of_the_pipeline_is_a_call(here, tmp_path, digits):
    data = {"name": "api"}
    prepared = tracked_cls.prepare(data=data, **here)
    done = tracked_cls.train(data=data, **SMALL | {"limit": None}, **here)
    assert done.prepared.manifest.digest == prepared.prepared.manifest.digest
    assert done.promotion.verdict == "promoted"

    scored = tracked_cls.evaluate(data=data, model=f"runs:/{done.run_id}", split="val", threads=1, **here)
    assert scored.report.metrics["accuracy"] == pytest.approx(done.val_accuracy)

    (tmp_path / "pictures").mkdir()
    for index in range(3):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(encoded(digits[0][index]))
    output = tmp_path / "labels.csv"
    told = tracked_cls.predict(data=data, input=str(tmp_path / "pictures"), output=str(output), **here)
    assert told.count_by_label.total() == len(output.read_text().splitlines()) - 1 == 3

    kept = tracked_cls.promote(data=data, model=f"runs:/{done.run_id}", **here)
    assert kept.promotion.version.number == done.promotion.version.number


def test_a_search_is_a_call(here):
    space = {"optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}}
    tune = {"space": space, "trials": 2, "finalists": 1, "finalist_seeds": 1, "study": "api"}
    found = tracked_cls.tune(tune=tune, **SMALL, **here)
    assert sum(found.states.values()) == 2


def test_an_exported_model_is_loaded_without_a_store(trained, store, tmp_path, digits, monkeypatch):
    written = tracked_cls.export_model(
        model=f"runs:/{trained.run_id}", formats=["onnx"], output=tmp_path / "a:b", tracking={"uri": store[1]}
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody answers
    clf = tracked_cls.load_classifier(written.folder)
    assert clf(digits[0][7]).label == str(digits[1][7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown option epoch.*did you mean.*epochs"),
        ({"optimizer": {"rate": 1}}, "unknown option optimizer.rate"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr"),
        ({"epochs": "many"}, "epochs"),
        ({"params": "params/none.yaml"}, "params/none.yaml"),
    ],
    ids=["near", "nested", "range", "type", "file"],
)
def test_a_mistake_names_the_option(options, message):
    with pytest.raises(UserError, match=message):
        tracked_cls.train(**options)


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize(("key", "value"), [("nproc", 2), ("from_run", "a" * 32)])
def test_an_option_that_only_a_command_heeds_is_refused(verb, key, value):
    with pytest.raises(
        UserError, match=f"{key} (belongs to the command: python -m pipelines.{verb} --{key} {value}|does not go)"
    ):
        getattr(tracked_cls, verb)(**{key: value})


def test_options_are_nested_dotted_or_over_a_file():
    nested = resolve(TrainConfig, {"optimizer": {"name": "sgd", "lr": 0.5}, "model": "small_cnn"})
    assert resolve(TrainConfig, {"optimizer.name": "sgd", "optimizer.lr": 0.5, "model": {"name": "small_cnn"}}) == nested
    assert (nested.optimizer.name, nested.optimizer.lr, nested.model.name) == ("sgd", 0.5, "small_cnn")
    assert resolve(EvaluateConfig, {"split": "val"}).evaluate.split == "val"
    assert resolve(PredictConfig, {"input": "some/folder", "data.name": "x"}).data.model_name == "x-classifier"
    over = resolve(TrainConfig, {"epochs": 2}, str(ROOT / "params" / "train.yaml"))
    assert (over.epochs, over.model.name) == (2, "mobilenetv3")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tracked_cls; print(sorted({'torch', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'trains'"):
        tracked_cls.trains  # noqa: B018 - it raises


def test_a_program_needs_no_guard_around_its_calls(trained, store, tmp_path, digits):
    """multiprocessing would run the program again in every process that decodes."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "seven.png").write_bytes(encoded(digits[0][7]))
    options = f"model='runs:/{trained.run_id}', input='pictures', output='out.csv', tracking={{'uri': {store[1]!r}}}"
    (tmp_path / "program.py").write_text(f"print('begins')\nimport tracked_cls\nfound = tracked_cls.predict({options})\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.count("begins")) == (0, 1), done.stderr
