"""Validation and test images from other sources than the training images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tracked_cls.config import DataConfig
from tracked_cls.data.sources import scan
from tracked_cls.errors import UserError


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(path)).save(root / path)


def scan_parts(root, val=None, test=None, **options):
    """Scan `root`/main with other folders, by name, as val and test."""
    places = {split: {"source": "folder", "root": str(root / name)} for split, name in (("val", val), ("test", test)) if name}
    others = {split: root / name for split, name in (("val", val), ("test", test)) if name}
    return scan(DataConfig(source="folder", root=str(root / "main"), **places, **options), root / "main", others)


def listed(source):
    return [(sample.path, *sample.labels, sample.split) for sample in source.samples]


def test_each_split_comes_from_its_own_source(tmp_path):
    put(tmp_path, "main/a/1.png", "main/b/1.png", "v/a/1.png", "t/b/1.png", "t/a/1.png")
    source = scan_parts(tmp_path, "v", "t")
    assert listed(source) == [
        ("train/a/1.png", "a", None),
        ("train/b/1.png", "b", None),
        ("val/a/1.png", "a", "val"),
        ("test/a/1.png", "a", "test"),
        ("test/b/1.png", "b", "test"),
    ]
    assert [source.path_of(sample) for sample in source.samples[1:3]] == [
        str(tmp_path / "main/b/1.png"),
        str(tmp_path / "v/a/1.png"),
    ]
    status = (tmp_path / "v/a/1.png").stat()
    assert source.stamp(source.samples[2]) == (status.st_size, status.st_mtime_ns // 1_000_000)
    assert source.name == "main"
    assert source.notes == ()


def test_files_and_arrays_go_together(tmp_path):
    put(tmp_path, "3/1.png", "7/1.png")
    (tmp_path / "list.csv").write_text("path,label,split\n3/1.png,3,train\n7/1.png,7,\n")
    cfg = DataConfig(test={"source": "csv", "root": str(tmp_path)})
    source = scan(cfg, None, {"test": tmp_path})
    digit, photo = source.samples[0], source.samples[-1]
    assert (digit.path, photo.path) == ("train/digits/0000", "test/7/1.png")
    assert source.path_of(digit) is None
    assert source.array(digit).shape == (8, 8)
    assert source.path_of(photo) == str(tmp_path / "7/1.png")
    assert source.notes == (f"data.test: {tmp_path.name} has the splits train; all of its images are test here",)


def test_every_sample_of_another_source_takes_its_split(tmp_path):
    put(tmp_path, "main/a/1.png", "main/b/1.png", "v/train/a/1.png", "v/train/b/1.png", "v/test/a/1.png")
    source = scan_parts(tmp_path, val="v")
    assert {sample.split for sample in source.samples if sample.path.startswith("val/")} == {"val"}
    assert source.notes == ("data.val: v has the splits test, train; all of its images are val here",)


def test_given_splits_of_the_main_source_stay(tmp_path):
    put(tmp_path, "main/train/a/1.png", "main/train/b/1.png", "main/test/a/1.png", "v/b/1.png")
    assert [(sample.path, sample.split) for sample in scan_parts(tmp_path, val="v").samples] == [
        ("train/train/a/1.png", "train"),
        ("train/train/b/1.png", "train"),
        ("val/b/1.png", "val"),
        ("test/test/a/1.png", "test"),
    ]
    with pytest.raises(UserError, match=r"data.test.source: main gives a test split itself, e.g. 'test/a/1.png'"):
        scan_parts(tmp_path, test="v").samples  # noqa: B018


def test_a_class_that_training_lacks_is_named(tmp_path):
    put(tmp_path, "main/a/1.png", "main/b/1.png", "v/c/1.png")
    with pytest.raises(UserError, match="class 'c' is in val, but has no images in train"):
        scan_parts(tmp_path, val="v").samples  # noqa: B018


def test_a_mistake_in_a_part_names_the_split(tmp_path):
    put(tmp_path, "main/a/1.png", "main/b/1.png")
    with pytest.raises(UserError, match=r"^data.test: data.root: '.*gone' does not exist"):
        scan_parts(tmp_path, test="gone")


def test_the_fingerprint_follows_every_part(tmp_path):
    put(tmp_path, "main/a/1.png", "main/b/1.png", "v/a/1.png", "w/a/2.png")
    alone = scan_parts(tmp_path).fingerprint
    prints = [
        alone,
        scan_parts(tmp_path, "v").fingerprint,
        scan_parts(tmp_path, "w").fingerprint,
        scan_parts(tmp_path, None, "v").fingerprint,
    ]
    assert len(set(prints)) == 4
    put(tmp_path, "v/b/1.png")
    assert scan_parts(tmp_path, "v").fingerprint not in prints


def test_patterns_see_the_paths_of_each_source(tmp_path):
    put(tmp_path, "main/a/p1_1.png", "main/b/p2_1.png", "v/a/p3_1.png")
    source = scan_parts(tmp_path, val="v", group_pattern=r"^\w/(p\d)_")
    assert [sample.group for sample in source.samples] == ["p1", "p2", "p3"]
    assert all(source.path_of(sample) for sample in source.samples)


def test_a_python_dataset_may_stand_for_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_for_test_split.py").write_text(
        "import numpy as np\n"
        "class Blank:\n"
        "    fingerprint = 'blank'\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, index): return np.full((8, 8), index, np.uint8), 'ab'[index]\n"
    )
    put(tmp_path, "main/a/1.png", "main/b/1.png")
    place = {"source": "python", "dataset": "dataset_for_test_split:Blank"}
    source = scan(DataConfig(source="folder", root="main", test=place), tmp_path / "main", {"test": None})
    assert source.samples[-1].path == "test/Blank/000001"
    np.testing.assert_array_equal(source.array(source.samples[-1]), np.full((8, 8), 1))


ARGUMENTS = {  # of the main class, of the class for test -> the images that each of them makes
    "those of the main class": ({"count": 3}, None, (3, 3)),
    "its own": ({"count": 3}, {"count": 4}, (3, 4)),
    "none": ({"count": 3}, {}, (3, 2)),
}


@pytest.mark.parametrize(("main", "own", "counts"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_class_for_a_split_has_arguments_of_its_own(tmp_path, monkeypatch, main, own, counts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_with_arguments.py").write_text(
        "import numpy as np\n"
        "class Blank:\n"
        "    fingerprint = 'blank'\n"
        "    def __init__(self, count=2): self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def __getitem__(self, index): return np.full((8, 8), index, np.uint8), 'ab'[index % 2]\n"
    )
    named = {"source": "python", "dataset": "dataset_with_arguments:Blank"}
    cfg = DataConfig(**named, dataset_args=main, test={**named, "dataset_args": own})
    splits = [sample.split for sample in scan(cfg, None, {"test": None}).samples]
    assert (splits.count(None), splits.count("test")) == counts


def test_other_arguments_of_a_split_are_another_input(tmp_path, monkeypatch):
    test_a_class_for_a_split_has_arguments_of_its_own(tmp_path, monkeypatch, {}, {"count": 4}, (2, 4))
    named = {"source": "python", "dataset": "dataset_with_arguments:Blank"}
    prints = {
        scan(DataConfig(**named, test={**named, "dataset_args": {"count": count}}), None, {"test": None}).fingerprint
        for count in (4, 5)
    }
    assert len(prints) == 2


@pytest.mark.parametrize("place", [{"dataset_args": {"a": 1}}, {"source": "digits", "dataset_args": {"a": 1}}])
def test_arguments_without_a_class_have_no_effect(place):
    with pytest.raises(ValueError, match=r"data.test.dataset_args has no effect with .*; it belongs to python"):
        DataConfig(test=place)
