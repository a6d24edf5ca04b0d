"""Columns that an evaluation is cut along."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT

from tracked_cls.config import EvaluateConfig, load
from tracked_cls.data.manifest import make_manifest
from tracked_cls.errors import UserError
from tracked_cls.slices import columns_of


def manifest(paths, labels, **columns):
    """Return a manifest of these paths and labels, all of them in the training split."""
    names = [f"{index:04d}" for index in range(len(paths))]
    labels = np.asarray(labels)
    return make_manifest(
        "made up", ["cat", "dog"], labels=labels, splits=np.zeros(len(paths), np.uint8), paths=paths, sha256=names,
        pixel_digests=names, geometry={}, **columns,
    )  # fmt: skip


def columns(made, names=("auto",), rows=None):
    return columns_of(made, np.arange(len(made)) if rows is None else np.asarray(rows), names)


def test_folders_that_are_the_labels_tell_nothing_new():
    made = manifest(["test/cat/1", "test/cat/2", "test/dog/1"], [0, 0, 1])
    assert columns(made) == {}
    assert columns(made, ["folder"]) == {"folder": ["test/cat", "test/cat", "test/dog"]}


def test_folders_that_divide_the_images_otherwise_are_shown():
    made = manifest(["day/1", "night/1", "day/2", "night/2"], [0, 0, 1, 1])
    assert columns(made) == {"folder": ["day", "night", "day", "night"]}
    assert columns(made, rows=[3, 0, 1]) == {"folder": ["night", "day", "night"]}


def test_groups_are_shown_where_there_are_a_few():
    paths = [str(index) for index in range(200)]
    few = manifest(paths, [0, 1] * 100, groups=["camera 1", "camera 2", "", "camera 2"] * 50)
    assert columns(few)["group"][:4] == ["camera 1", "camera 2", "(none)", "camera 2"]
    many = manifest(paths, [0, 1] * 100, groups=[str(index // 2) for index in range(200)])
    assert columns(many) == {}
    assert len(set(columns(many, ["group"])["group"])) == 100


def test_labels_are_a_column_for_one_and_for_several():
    assert columns(manifest(["1", "2"], [1, 0]), ["label"]) == {"label": ["dog", "cat"]}
    several = manifest(["1", "2", "3"], np.array([[1, 1], [0, 0], [0, 1]], np.uint8))
    assert columns(several, ["label"]) == {"label": ["cat + dog", "(none)", "dog"]}


def test_weights_are_cut_into_quarters():
    made = manifest([str(index) for index in range(100)], [0, 1] * 50, weights=[index / 4 for index in range(100)])
    found = columns(made, ["weight"])["weight"]
    assert [found.count(value) for value in dict.fromkeys(found)] == [25, 25, 25, 25]
    assert found[0] == "0 to 6"
    assert found[-1] == "18.75 to 24.75"


def test_a_few_weights_are_values_of_their_own():
    made = manifest(["1", "2", "3"], [0, 1, 1], weights=[0.5, 2, 0.5])
    assert columns(made, ["weight"]) == {"weight": ["0.5", "2", "0.5"]}


def test_what_is_asked_for_comes_with_what_is_found():
    made = manifest(["day/1", "night/1", "day/2"], [0, 0, 1])
    assert list(columns(made, ["auto", "label"])) == ["folder", "label"]


@pytest.mark.parametrize("name", ["group", "weight", "folder"])
def test_a_column_of_one_value_is_refused_where_it_was_asked_for(name):
    with pytest.raises(UserError, match=f"evaluate.slices: {name} is .* for all of these images"):
        columns(manifest(["1", "2"], [0, 1]), [name])


def test_an_unknown_column_is_refused_with_the_options():
    with pytest.raises(UserError, match=r"unknown column in evaluate.slices 'gruop'; did you mean 'group'\?"):
        load(EvaluateConfig, ["--params", str(ROOT / "params/train.yaml"), "--slices", "gruop"])


def test_slices_are_given_as_a_word_or_a_list():
    words = ["--params", str(ROOT / "params/train.yaml"), "--slices"]
    assert load(EvaluateConfig, words[:-1]).evaluate.slices == ["auto"]
    assert load(EvaluateConfig, [*words, "label"]).evaluate.slices == ["label"]
    assert load(EvaluateConfig, [*words, "[auto, weight]"]).evaluate.slices == ["auto", "weight"]
    assert load(EvaluateConfig, [*words, "[]"]).evaluate.slices == []
