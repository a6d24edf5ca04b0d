"""Splits that stay where they are, keep groups whole, and leave every class something to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from tracked_cls.config import DataConfig
from tracked_cls.data.manifest import make_manifest
from tracked_cls.data.splits import Listing, assign_splits, joined, k_folds
from tracked_cls.errors import UserError

CLASSES = ("a", "b", "c")
LABELS = np.repeat(np.arange(3), [50, 100, 30])


def split(labels=LABELS, given=None, classes=CLASSES, groups=None, contents=None, **options):
    names = [f"{index}.png" for index in range(len(labels))]
    listing = Listing(
        labels=np.asarray(labels),
        given=given or [None] * len(labels),
        classes=classes,
        paths=names,
        contents=names if contents is None else contents,
        groups=groups or [""] * len(labels),
        copies_apart=options.get("duplicates") == "allow",
    )
    return assign_splits(listing, DataConfig(**options))


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


def test_given_splits_that_leave_a_class_or_a_split_empty_are_told():
    with pytest.raises(UserError, match="class 'b' has 0 usable images for train; it needs at least 1"):
        split(np.array([0, 0, 0, 1, 1]), ["train", "val", "test", "val", "test"], ("a", "b"))
    several = np.array([[1, 0], [1, 1], [1, 0]], np.uint8)
    with pytest.raises(UserError, match=r"class 'b' has no training image \(0 train, 1 val, 0 test\)"):
        split(several, ["train", "val", "test"], ("a", "b"))


def test_the_split_by_class_is_what_it_always_was():
    splits = split(val_fraction=0.2, test_fraction=0.3, split_seed=7)
    assert np.flatnonzero(splits[:50] == 1).tolist() == [9, 10, 20, 22, 23, 37, 39]
    assert np.flatnonzero(splits[150:] == 2).tolist() == [0, 3, 9, 14, 16, 17, 19, 21, 29]


# ---- by content ------------------------------------------------------------------------------------------------------


def contents(num, start=0):
    return [f"{index:032x}" for index in range(start, start + num)]


def test_the_hash_gives_each_split_its_share():
    labels = np.arange(20_000) % 3
    splits = split(labels, contents=contents(20_000), split="hash", val_fraction=0.1, test_fraction=0.2)
    shares = np.bincount(splits) / len(splits)
    np.testing.assert_allclose(shares, [0.72, 0.08, 0.2], atol=0.01)


def test_added_images_move_none_under_the_hash():
    before = split(np.arange(600) % 3, contents=contents(600, 1000), split="hash")
    names = [*contents(500), *contents(600, 1000), *contents(400, 5000)]
    after = split(np.arange(1500) % 3, contents=names, split="hash")
    np.testing.assert_array_equal(after[500:1100], before)
    assert (split(np.arange(600) % 3, contents=contents(600, 1000), split="hash", split_seed=1) != before).any()


def test_copies_and_groups_share_a_split_under_the_hash():
    splits = split(np.arange(600) % 3, contents=contents(300) * 2, split="hash")
    np.testing.assert_array_equal(splits[:300], splits[300:])
    groups = [f"g{index // 6}" for index in range(600)]
    splits = split(np.arange(600) % 3, contents=contents(600), groups=groups, split="hash").reshape(100, 6)
    assert (splits == splits[:, :1]).all()
    assert set(splits.ravel()) == {0, 1, 2}


def test_a_given_test_split_is_kept_under_the_hash():
    given = ["train", "test"] * 90
    splits = split(given=given, contents=contents(180), split="hash", val_fraction=0.5)
    assert (splits[1::2] == 2).all()
    assert 30 < (splits[::2] == 1).sum() < 60


def test_a_split_that_the_hash_leaves_empty_is_told():
    with pytest.raises(UserError, match=r"the (val|test) split has no images \(\d train, \d val, \d test\); add images"):
        split(np.array([0, 1]), classes=("a", "b"), contents=contents(2), split="hash", val_fraction=0.01, test_fraction=0.01)


# ---- by group --------------------------------------------------------------------------------------------------------


def test_groups_too_large_to_divide_are_told():
    with pytest.raises(UserError, match=r"no images \(30 train, .*; the groups, 2 in all, stay whole: make"):
        split(np.arange(30) % 2, classes=("a", "b"), groups=["ab"[index % 2] for index in range(30)])


def patients(seed, num=60, num_classes=3):
    """Return (labels, groups) of patients with one to nine images of mixed classes."""
    random = np.random.default_rng(seed)
    groups = [f"p{patient}" for patient, count in enumerate(random.integers(1, 10, num)) for _ in range(count)]
    return random.integers(0, num_classes, len(groups)), groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_right_within_one_group(seed):
    labels, groups = patients(seed)
    splits = split(labels, groups=groups, val_fraction=0.2, test_fraction=0.25, split_seed=seed)
    for group in set(groups):
        assert len({int(code) for code, name in zip(splits, groups, strict=True) if name == group}) == 1
    sizes = np.bincount(splits)
    assert abs(sizes[2] - 0.25 * len(labels)) <= 9
    assert abs(sizes[1] - 0.2 * (len(labels) - sizes[2])) <= 9
    assert set(labels[splits == 0]) == {0, 1, 2}


def test_the_last_group_of_a_class_stays_in_training():
    labels, groups = [0] * 16 + [1] * 4, [*(f"g{index // 2}" for index in range(16)), *["last"] * 4]
    for seed in range(8):
        splits = split(labels, groups=groups, classes=("x", "y"), split_seed=seed, test_fraction=0.6, val_fraction=0.3)
        assert splits[16:].tolist() == [0] * 4


def test_few_large_groups_still_fill_every_split():
    splits = split([0, 1] * 6, groups=[name for name in "abc" for _ in range(4)], classes=("x", "y"))
    assert sorted(np.bincount(splits).tolist()) == [4, 4, 4]


def test_images_without_a_group_stand_alone():
    labels = np.arange(100) % 2
    splits = split(labels, groups=["g", "g", *[""] * 98], classes=("x", "y"))
    assert splits[0] == splits[1]
    assert np.bincount(splits).tolist() == [72, 8, 20]


def test_a_group_that_given_splits_tear_apart_is_named_with_two_files():
    given = ["train", "train", "test", "val"]
    with pytest.raises(UserError, match=r"group 'g' lies in two splits: 0\.png is in train, 2\.png in test"):
        split([0, 1, 0, 1], given, ("a", "b"), groups=["g", "", "g", ""])


def test_images_of_several_labels_are_drawn_by_their_rarest():
    random = np.random.default_rng(0)
    labels = (random.random((400, 3)) < (0.7, 0.3, 0.05)).astype(np.uint8)
    splits = split(labels)
    for code, share in ((1, 0.08), (2, 0.2)):
        np.testing.assert_allclose(labels[splits == code].sum(axis=0) / labels.sum(axis=0), share, atol=0.05)
    one_of_a_kind = np.zeros((30, 2), np.uint8)
    one_of_a_kind[:, 0], one_of_a_kind[4, 1] = 1, 1
    assert split(one_of_a_kind, classes=("common", "rare"))[4] == 0


# ---- exact copies ----------------------------------------------------------------------------------------------------


COPIES = {
    "by class": {},
    "hash": {"split": "hash"},
    "groups": {"groups": [f"g{index % 60}" if index < 150 else "" for index in range(180)]},
}


@pytest.mark.parametrize("options", COPIES.values(), ids=COPIES)
def test_exact_copies_are_drawn_together(options):
    names = contents(90) * 2  # an image of the first half has a copy in the second
    labels = np.tile(np.arange(3), 60)
    splits = split(labels, contents=names, **options)
    np.testing.assert_array_equal(splits[:90], splits[90:])
    assert set(splits) == {0, 1, 2}


def test_allowed_copies_are_images_of_their_own():
    labels, names = np.tile(np.arange(3), 60), contents(90) * 2
    splits = split(labels, contents=names, duplicates="allow")
    np.testing.assert_array_equal(splits, split(labels, contents=contents(180)))
    assert (splits[:90] != splits[90:]).any()


def test_copies_of_several_labels_stay_together_whatever_each_has():
    random = np.random.default_rng(1)
    labels = (random.random((400, 3)) < (0.7, 0.3, 0.1)).astype(np.uint8)
    splits = split(labels, contents=contents(200) * 2)
    np.testing.assert_array_equal(splits[:200], splits[200:])


def test_without_copies_every_way_of_drawing_is_what_it_always_was():
    apart = {"duplicates": "allow"}
    groups = [f"g{index // 3}" if index % 2 else "" for index in range(180)]
    for options in ({}, {"split": "hash"}, {"groups": groups}):
        np.testing.assert_array_equal(split(**options), split(**options, **apart))


def test_copies_of_one_picture_count_once_for_a_class_that_is_to_be_divided():
    with pytest.raises(
        UserError, match="'b' has 1 usable images, exact copies counted once, for train, val, test; it needs at"
    ):
        split(np.array([0, 0, 0, 1, 1, 1]), classes=("a", "b"), contents=["p", "q", "r", "s", "s", "s"])


def test_groups_that_share_a_picture_are_one_whatever_the_order():
    names = ["group a", "group b", "sample x", "group c", "group d"]
    pictures = ["1", "2", "2", "3", "3"]
    assert joined(names, pictures) == ["group a", "group b", "group b", "group c", "group c"]
    chain = [("group b", "1"), ("group c", "1"), ("group c", "2"), ("group a", "2"), ("group d", "3"), ("group e", "4")]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(chain))
        one = dict(
            zip(
                [chain[index][0] for index in order], joined(*zip(*[chain[index] for index in order], strict=True)), strict=True
            )
        )
        assert one == {
            "group a": "group a",
            "group b": "group a",
            "group c": "group a",
            "group d": "group d",
            "group e": "group e",
        }


def test_groups_joined_by_copies_until_nothing_can_be_drawn_are_told():
    groups = [f"g{index // 2}" for index in range(20)]
    pictures = ["blank" if index % 2 else str(index) for index in range(20)]
    labels = np.arange(20) // 2 % 2
    with pytest.raises(UserError, match=r"the groups, 10 in all, stay whole, 9 of them with another that has a copy .*allow"):
        split(labels, classes=("a", "b"), groups=groups, contents=pictures)
    assert set(split(labels, classes=("a", "b"), groups=groups, contents=pictures, duplicates="allow")) == {0, 1, 2}


# ---- folds -----------------------------------------------------------------------------------------------------------


def prepared(labels, groups=None, test_every=5, pictures=None):
    names = [f"{index:05d}" for index in range(len(labels))]
    splits = np.array([2 if index % test_every == 0 else index % 2 for index in range(len(labels))], np.uint8)
    return make_manifest(
        "set", [f"c{label}" for label in range(3)], labels=np.asarray(labels), splits=splits, paths=names, sha256=names,
        pixel_digests=pictures or names, geometry={}, groups=groups,
    )  # fmt: skip


SETS = {
    "one label": (np.arange(200) % 3, None),
    "groups": (np.arange(200) % 3, [f"g{index // 4}" for index in range(200)]),
    "several labels": ((np.random.default_rng(0).random((200, 3)) < 0.3).astype(np.uint8), None),
}


@pytest.mark.parametrize(("labels", "groups"), SETS.values(), ids=SETS)
def test_each_image_of_the_pool_is_validated_in_exactly_one_fold(labels, groups):
    whole = prepared(labels, groups, test_every=5 if groups is None else 1000)
    folds = [k_folds(whole, 4, fold, seed=3) for fold in range(4)]
    times = sum((fold.splits == 1).astype(int) for fold in folds)
    np.testing.assert_array_equal(times, np.where(whole.splits == 2, 0, 1))
    assert all((fold.splits[whole.splits == 2] == 2).all() for fold in folds)
    assert len({fold.digest for fold in folds} | {whole.digest}) == 5
    for fold in folds if groups else ():
        assert len({(group, code) for group, code in zip(groups, fold.splits.tolist(), strict=True) if code < 2}) == 50


def test_exact_copies_of_a_picture_are_validated_in_the_same_fold():
    pictures = [f"p{index // 2}" if index < 100 else f"q{index}" for index in range(200)]
    whole = prepared(np.arange(200) % 3, pictures=pictures, test_every=1000)
    for fold in range(4):
        splits = k_folds(whole, 4, fold, seed=0).splits
        assert len({(picture, code) for picture, code in zip(pictures[1:], splits[1:].tolist(), strict=True)}) == 150
        assert 40 <= (splits == 1).sum() <= 60


def test_groups_that_share_a_picture_are_validated_in_the_same_fold():
    groups = [f"g{index // 4}" for index in range(200)]
    pictures = [f"p{index}" for index in range(200)]
    pictures[1] = pictures[101]
    whole = prepared(np.arange(200) % 3, groups, pictures=pictures, test_every=1000)
    together = [k_folds(whole, 4, fold, seed=0).splits for fold in range(4)]
    assert all(len({*splits[1:4].tolist(), *splits[100:104].tolist()}) == 1 for splits in together)
    apart = [k_folds(whole, 4, fold, seed=seed, copies_apart=True).splits for fold in range(4) for seed in range(3)]
    assert any(splits[1] != splits[101] for splits in apart)


def test_folds_are_stratified_and_follow_the_seed():
    whole = prepared(np.arange(300) % 3)
    fold = k_folds(whole, 5, 1, seed=0)
    assert fold.counts()["val"] == {"c0": 16, "c1": 16, "c2": 16}
    assert fold.digest == k_folds(whole, 5, 1, seed=0).digest != k_folds(whole, 5, 1, seed=2**40).digest


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "class 'c2' has 3 images outside the test split, too few for data.folds=4; .*at most 3"),
        (
            ["h", "g", "g", "g"] + [f"h{index}" for index in range(26)],
            "class 'c2' has 1 groups outside the test split, too few for data.folds=4; add images$",
        ),
    ],
)
def test_a_class_with_too_few_images_for_the_folds_is_named(groups, message):
    with pytest.raises(UserError, match=message):
        k_folds(prepared([0, 2, 2, 2] + [0, 1] * 13, groups, test_every=1000), 4, 0, seed=0)
