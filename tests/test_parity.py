"""A packed model answers like the evaluated network, in a process of its own; one that does not is not registered."""

import shutil

import numpy as np
import pytest

from tracked_cls import parity, registry
from tracked_cls.errors import UserError
from tracked_cls.parity import Golden
from tracked_cls.serving.classifier import TOLERANCE
from tracked_cls.serving.packaging import Bundle


@pytest.fixture
def packed(client, trained, tmp_path):
    """A copy of the registered model, to spoil."""
    bundle, _ = registry.resolve(client, trained.model_uri)
    folder = tmp_path / "model"
    shutil.copytree(bundle.folder.parent, folder)
    return Bundle(folder / "artifacts")


def _alter(bundle, file, old, new):
    (path,) = bundle.folder.parent.rglob(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_registered_model_holds_images_and_what_the_evaluated_network_says_of_them(packed):
    golden = Golden.load(packed.golden)
    assert golden.names == tuple("0123456789")
    assert len(golden.images) == 64
    assert golden.probabilities.shape == (64, 10)
    np.testing.assert_allclose(golden.probabilities.sum(axis=1), 1)
    assert len({image[:4] for image in golden.images}) == 1
    assert len(set(golden.images)) > 60


def test_a_sound_model_answers_alike_in_a_process_of_its_own(packed, answers_apart):
    given = Golden.load(packed.golden).probabilities
    np.testing.assert_allclose(answers_apart(packed), given, atol=TOLERANCE)
    assert parity.check(packed) < TOLERANCE


def test_the_code_that_travels_with_the_model_is_what_runs_apart(packed, answers_apart, monkeypatch):
    monkeypatch.setattr(parity, "answers", answers_apart)
    _alter(packed, "classifier.py", "tempered = logits.astype(np.float64)", "tempered = 1.01 * logits.astype(np.float64)")
    assert parity.of_export(packed) < TOLERANCE, "loaded here, our own code answers"
    with pytest.raises(
        UserError, match=r"differs from the evaluated one by 0\.0\d+ in probability \(at most 0.0001 is allowed\)"
    ):
        parity.check(packed)


def test_a_model_that_cannot_be_loaded_apart_is_named_with_its_reason(packed, answers_apart):
    _alter(packed, "pyfunc.py", "class ImageClassifier", "import nowhere_to_be_found\n\n\nclass ImageClassifier")
    with pytest.raises(UserError, match="does not work in a process of its own: .*No module named 'nowhere_to_be_found'"):
        answers_apart(packed)


def test_another_temperature_is_another_answer(packed):
    _alter(packed, "meta.json", '"temperature": ', '"temperature": 1')
    with pytest.raises(UserError, match="differs from the evaluated one"):
        parity.require(parity.of_export(packed))


@pytest.mark.parametrize("difference", [1.1e-4, float("nan"), float("inf")])
def test_more_than_rounding_is_refused(difference):
    with pytest.raises(UserError, match="it is not registered"):
        parity.require(difference)


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "missing": (None, "missing: the model cannot be checked"),
        "cut": (b"PK\x03\x04", "cannot be read"),
        "text": (b"hello", "cannot be read"),
    }.values(),
    ids=["missing", "cut", "text"],
)
def test_a_damaged_golden_file_is_named(tmp_path, content, said):
    path = tmp_path / "golden.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"golden.npz: {said}"):
        Golden.load(path)


def test_pickled_answers_are_not_unpickled(tmp_path):
    path = tmp_path / "golden.npz"
    np.savez(path, names=np.array([{"a": 1}], object), bytes=np.zeros(1, np.uint8), ends=[1], probabilities=[[1.0]])
    with pytest.raises(UserError, match="cannot be read"):
        Golden.load(path)
