"""Classes and groups from file names, clips of frames, and what a folder is asked about in predict."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from tracked_cls.config import DataConfig
from tracked_cls.data.sources import list_clips, list_images, scan
from tracked_cls.errors import UserError


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(path)).save(root / path)


def scan_folder(root, **options):
    return scan(DataConfig(source="folder", root=str(root), **options), root)


def listed(source):
    return [(sample.path, *sample.labels, sample.split) for sample in source.samples]


# ---- label_pattern ---------------------------------------------------------------------------------------------------

PATTERNS = {
    "prefix, flat": (
        "prefix",
        ["cat_1.png", "dog-2.png", "猫 3.png", "cat.png"],
        {"cat_1.png": "cat", "dog-2.png": "dog", "猫 3.png": "猫", "cat.png": "cat"},
    ),
    "prefix at any depth": ("prefix", ["x_y/cat_1.png", "z/z/dog_1.png"], {"x_y/cat_1.png": "cat", "z/z/dog_1.png": "dog"}),
    "of the file name": (r"_(\w+)\.", ["1_NA.png", "x/2_007.png"], {"1_NA.png": "NA", "x/2_007.png": "007"}),
    "of the folder": (r"^[^/]+/([^/]+)/", ["p1/cat/1.png", "p2/dog/1.png"], {"p1/cat/1.png": "cat", "p2/dog/1.png": "dog"}),
}


@pytest.mark.parametrize(("pattern", "files", "labels"), PATTERNS.values(), ids=PATTERNS)
def test_classes_are_read_from_paths(tmp_path, pattern, files, labels):
    put(tmp_path, *files)
    source = scan_folder(tmp_path, label_pattern=pattern)
    assert {sample.path: sample.labels[0] for sample in source.samples} == labels
    assert {sample.split for sample in source.samples} == {None}


def test_split_folders_count_with_images_directly_in_them(tmp_path):
    put(tmp_path, "train/a_1.png", "train/deep/b_1.png", "validation/a_2.png", "test/b_2.png")
    assert listed(scan_folder(tmp_path, label_pattern="prefix")) == [
        ("train/a_1.png", "a", "train"),
        ("train/deep/b_1.png", "b", "train"),
        ("validation/a_2.png", "a", "val"),
        ("test/b_2.png", "b", "test"),
    ]


PATTERN_MISTAKES = {
    "no match": (
        "([a-z]+)_",
        ["a_1.png", "b_1.png", "x/9.png", "8.png"],
        r"'8\.png' does not match data.label_pattern .*2 of 4",
    ),
    "nothing matched": ("([a-z]*)", ["a_1.png", "9.png"], r"'9\.png' does not match"),
    "no prefix": ("prefix", ["a_1.png", "_1.png"], r"'_1\.png' does not match data.label_pattern 'prefix', like 1 of 2"),
    "no images": ("prefix", [], "no images in it"),
    "image beside the splits": ("prefix", ["train/a_1.png", "train/b_1.png", "c_1.png"], r"'c_1\.png' lies beside the split"),
    "no train": ("prefix", ["test/a_1.png", "val/b_1.png"], "no folder 'train' with images in it, only test, val"),
}


@pytest.mark.parametrize(("pattern", "files", "message"), PATTERN_MISTAKES.values(), ids=PATTERN_MISTAKES)
def test_a_path_without_a_class_is_named(tmp_path, pattern, files, message):
    put(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        scan_folder(tmp_path, label_pattern=pattern)


def test_images_in_the_root_point_to_the_pattern(tmp_path):
    put(tmp_path, "a_1.png")
    with pytest.raises(UserError, match="or set data.label_pattern"):
        scan_folder(tmp_path)


# ---- group_pattern ---------------------------------------------------------------------------------------------------


def test_groups_are_read_from_paths(tmp_path):
    put(tmp_path, "cat/p1_1.png", "cat/p2_1.png", "dog/p1_2.png")
    source = scan_folder(tmp_path, group_pattern=r"/(p\d+)_")
    assert [sample.group for sample in source.samples] == ["p1", "p2", "p1"]
    assert source.path_of(source.samples[0]) == str(tmp_path / "cat/p1_1.png")
    with pytest.raises(UserError, match=r"'cat/p2_1\.png' does not match data.group_pattern '\(p1\)', like 1 of 3"):
        scan_folder(tmp_path, group_pattern="(p1)").samples  # noqa: B018


def test_groups_from_paths_do_not_hide_the_arrays_of_a_source(tmp_path):
    source = scan(DataConfig(group_pattern="([0-9])$"), None)
    sample = source.samples[7]
    assert sample.group == "7"
    assert source.array(sample).shape == (8, 8)


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_with_frames_a_folder_in_a_class_folder_is_one_sample(tmp_path):
    put(tmp_path, "wave/c1/1.png", "wave/c1/deep/2.png", "wave/still.png", "jump/c10/1.png", "jump/c9/1.png")
    source = scan_folder(tmp_path, frames=4)
    assert listed(source) == [
        ("jump/c9", "jump", None),
        ("jump/c10", "jump", None),
        ("wave/c1", "wave", None),
        ("wave/still.png", "wave", None),
    ]
    assert source.path_of(source.samples[2]) == str(tmp_path / "wave/c1")


def test_the_stamp_of_a_clip_is_that_of_all_its_frames(tmp_path):
    put(tmp_path, "a/c/1.png", "a/c/deep/2.png", "b/c/1.png")
    os.utime(tmp_path / "a/c/1.png", (2_000_000_000, 2_000_000_000))
    size = sum((tmp_path / "a/c" / name).stat().st_size for name in ("1.png", "deep/2.png"))
    before = scan_folder(tmp_path, frames=2)
    assert before.stamp(before.samples[0]) == (size, 2_000_000_000_000)
    os.utime(tmp_path / "a/c/deep/2.png", (2_000_000_001, 2_000_000_001))
    after = scan_folder(tmp_path, frames=2)
    assert after.stamp(after.samples[0]) == (size, 2_000_000_001_000)
    assert after.fingerprint != before.fingerprint


def test_clips_have_splits_and_patterns_too(tmp_path):
    put(tmp_path, "train/a/c1/1.png", "train/b/c2/1.png", "test/a/c3/1.png")
    assert listed(scan_folder(tmp_path, frames=2)) == [
        ("train/a/c1", "a", "train"),
        ("train/b/c2", "b", "train"),
        ("test/a/c3", "a", "test"),
    ]
    put(tmp_path / "flat", "wave_1/1.png", "wave_1/2.png", "jump_1.png")
    assert listed(scan_folder(tmp_path / "flat", frames=2, label_pattern="prefix")) == [
        ("jump_1.png", "jump", None),
        ("wave_1", "wave", None),
    ]


def test_a_model_is_asked_about_images_or_clips(tmp_path):
    put(tmp_path, "10.png", "9.png", "clip/a/1.png", "clip/2.png")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert list_images(tmp_path) == ["9.png", "10.png", "clip/2.png", "clip/a/1.png"]
    assert list_clips(tmp_path) == ["9.png", "10.png", "clip"]


def test_pictures_that_are_not_read_are_noted(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/photo.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = scan(DataConfig(source="folder", root=str(tmp_path)), tmp_path)
    assert ["'b/photo.heic'" in note for note in source.notes] == [True]
    assert source.num_ignored == 1
