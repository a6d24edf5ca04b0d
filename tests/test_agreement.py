"""The same images get the same labels whichever way a model is asked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks import agreement


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A small network trained on the digits as PNG files, with a few of them for the test."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    for index, (image, label) in enumerate(zip(found.images[:600], found.target[:600], strict=True)):
        folder = root / ("test" if index % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(folder / f"{index}.png")
    return agreement.train(root, tmp_path_factory.mktemp("home"), model="small_cnn", epochs=3, threads=1)


def test_every_way_gives_the_same_labels(asked):
    found = agreement.differences(asked)

    assert set(found) == set(agreement.WAYS)
    assert len(asked.files) == 120
    assert {name: one.other_labels for name, one in found.items()} == dict.fromkeys(found, 0)
    assert {one.accuracy for one in found.values()} == {found["evaluate"].accuracy}
    assert found["evaluate"].accuracy > 0.5
    assert max(one.probability for one in found.values()) < 1e-5


def test_a_difference_is_seen():
    expected = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    found = agreement.compare(np.array([[0.1, 0.9], [0.2, 0.8], [0.4, 0.6]]), expected, np.array([0, 1, 0]))
    assert (found.other_labels, found.close_calls, found.accuracy) == (1, 1, pytest.approx(1 / 3))
    assert found.probability == pytest.approx(0.8)
