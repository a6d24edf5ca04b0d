"""The manifest: ids, digests, and splits that stay where they are."""

from __future__ import annotations

import numpy as np
import pytest

from tracked_cls.config import DataConfig
from tracked_cls.data.manifest import assign_splits, load_manifest, make_manifest, save_manifest
from tracked_cls.errors import UserError

CLASSES = ("a", "b", "c")
LABELS = np.repeat(np.arange(3), [50, 100, 30])


def split(labels=LABELS, given=None, classes=CLASSES, **options):
    return assign_splits(labels, given or [None] * len(labels), DataConfig(**options), classes)


def manifest(pixel_digests=("aa", "bb", "aa"), labels=(0, 1, 0), splits=(0, 1, 2), paths=("x", "y", "z"), **change):
    values = {
        "labels": np.array(labels, np.int64),
        "splits": np.array(splits, np.uint8),
        "paths": paths,
        "sha256": ["0" * 64] * len(paths),
        "pixel_digests": pixel_digests,
        "geometry": {"image_size": 8},
    }
    return make_manifest("set", ("cat", "dog"), **{**values, **change})


def test_every_class_gives_its_share_to_every_split():
    splits = split(val_fraction=0.1, test_fraction=0.2)
    counts = [[int(((splits == code) & (label == LABELS)).sum()) for label in range(3)] for code in range(3)]
    # test is 20% of all, val 10% of what is left of each class
    assert counts == [[36, 72, 22], [4, 8, 2], [10, 20, 6]]


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    np.testing.assert_array_equal(split(split_seed=3), split(split_seed=3))
    assert (split(split_seed=3) != split(split_seed=4)).any()
    assert len(split(split_seed=2**70)) == len(LABELS)


def test_more_images_of_one_class_move_no_image_of_another():
    more = np.repeat(np.arange(3), [90, 100, 30])
    np.testing.assert_array_equal(split()[50:], split(more)[90:])


def test_given_splits_are_kept_and_the_missing_one_is_drawn_from_train():
    given = ["train", "test"] * 90
    splits = split(given=given)
    assert (splits[1::2] == 2).all()
    assert set(splits[::2]) == {0, 1}
    given = ["train", "val"] * 90
    splits = split(given=given)
    assert (splits[1::2] == 1).all()
    assert set(splits[::2]) == {0, 2}


def test_nothing_is_drawn_where_all_splits_are_given():
    given = ["train", "val", "test"] * 60
    assert split(given=given).tolist() == [0, 1, 2] * 60


@pytest.mark.parametrize("fractions", [(0.01, 0.01), (0.9, 0.05), (0.05, 0.9)])
def test_three_images_are_enough_for_one_in_each_split(fractions):
    splits = split(np.zeros(3, int), classes=("a",), val_fraction=fractions[0], test_fraction=fractions[1])
    assert sorted(splits) == [0, 1, 2]


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UserError, match="class 'b' has 2 usable images for train, val, test; it needs at least 3"):
        split(np.array([0, 0, 0, 1, 1]), classes=("a", "b"))
    with pytest.raises(UserError, match="class 'b' has 1 usable images for train, val; it needs at least 2"):
        split(np.array([0, 0, 1, 1]), ["train", "train", "train", "test"], ("a", "b"))


def test_exact_copies_get_an_ordinal_and_a_key_of_their_own():
    made = manifest()
    assert made.ids == ["aa", "bb", "aa-1"]
    assert len(set(made.keys.tolist())) == 3
    assert made.keys.dtype == np.uint64


def test_indices_and_counts_agree_with_the_splits():
    made = manifest(splits=(0, 0, 2))
    assert made.indices("train").tolist() == [0, 1]
    assert made.indices("val").tolist() == []
    assert made.counts() == {"train": {"cat": 1, "dog": 1}, "val": {"cat": 0, "dog": 0}, "test": {"cat": 1, "dog": 0}}
    with pytest.raises(UserError, match="unknown split"):
        made.indices("training")


CHANGES = {
    "labels": ({"labels": np.array([0, 1, 1])}, True, True),
    "splits": ({"splits": np.array([0, 1, 1])}, True, False),
    "pixels": ({"pixel_digests": ["aa", "bb", "cc"]}, True, True),
    "geometry": ({"geometry": {"image_size": 9}}, True, False),
    "paths": ({"paths": ["p", "q", "r"]}, False, False),
    "files": ({"sha256": ["1" * 64] * 3}, False, False),
}


@pytest.mark.parametrize(("change", "digest_moves", "content_moves"), CHANGES.values(), ids=CHANGES)
def test_digests_move_with_what_they_stand_for(change, digest_moves, content_moves):
    before, after = manifest(), manifest(**change)
    assert (after.digest != before.digest) == digest_moves
    assert (after.content_digest != before.content_digest) == content_moves
    assert len(before.digest) == len(before.content_digest) == 16


def test_a_manifest_survives_the_disk(tmp_path):
    made = manifest(paths=("a,b\n.png", "caf\u00e9.png", '"q".png'))
    save_manifest(made, tmp_path)
    read = load_manifest(tmp_path, name="set", classes=made.classes, digest=made.digest, content_digest=made.content_digest)
    assert (read.ids, read.paths, read.sha256) == (made.ids, ["a,b\n.png", "caf\u00e9.png", '"q".png'], made.sha256)
    for column in ("labels", "splits", "keys"):
        stored = getattr(read, column)
        assert isinstance(stored, np.memmap)
        assert stored.dtype == getattr(made, column).dtype
        np.testing.assert_array_equal(stored, getattr(made, column))
