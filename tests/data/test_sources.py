"""What a source lists, and every mistake in the layout of the input."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracked_cls.config import DataConfig
from tracked_cls.data.sources import Sample, natural_key, read_idx, scan
from tracked_cls.errors import UserError

MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist" / "MNIST" / "raw"


def put(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(path)).save(file)


def scan_folder(root):
    return scan(DataConfig(source="folder", root=str(root)), root)


def test_natural_order_counts_digits_by_value():
    assert sorted(["10", "9", "a10", "a2", "1"], key=natural_key) == ["1", "9", "10", "a2", "a10"]


def test_digits_are_scikit_learns_in_256_levels():
    from sklearn.datasets import load_digits

    source = scan(DataConfig(), None)
    assert len(source.samples) == 1797
    assert source.class_names == tuple("0123456789")
    third = source.samples[2]
    assert third == Sample("digits/0002", ("2",))
    np.testing.assert_array_equal(source.array(third), np.rint(load_digits().images[2] * 255 / 16))


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_folders_are_classes_at_any_depth_and_case_of_extension(tmp_path):
    put(tmp_path, "cat/1.png", "cat/deep/er/2.JPG", "dog/3.bmp")
    source = scan_folder(tmp_path)
    assert [(sample.path, sample.labels) for sample in source.samples] == [
        ("cat/1.png", ("cat",)),
        ("cat/deep/er/2.JPG", ("cat",)),
        ("dog/3.bmp", ("dog",)),
    ]
    assert source.path_of(source.samples[0]) == str(tmp_path / "cat/1.png")


def test_hidden_files_are_skipped_and_other_files_counted(tmp_path):
    put(tmp_path, "cat/1.png", "cat/.hidden.png", ".git/x.png", "__MACOSX/y.png", "dog/2.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "README").write_text("x")
    source = scan_folder(tmp_path)
    assert [sample.path for sample in source.samples] == ["cat/1.png", "dog/2.png"]
    assert source.num_ignored == 2


def test_split_folders_give_the_splits(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "valid/a/1.png", "test/b/1.png")
    source = scan_folder(tmp_path)
    assert source.class_names == ("a", "b")
    assert [(sample.path, sample.split) for sample in source.samples] == [
        ("train/a/1.png", "train"),
        ("train/b/1.png", "train"),
        ("valid/a/1.png", "val"),
        ("test/b/1.png", "test"),
    ]


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, "train/1.png", "bus/1.png")
    assert scan_folder(tmp_path).class_names == ("bus", "train")


def test_odd_names_are_names_like_any_other(tmp_path):
    labels = ["007", "a,b", "NA", "None", "nan", "two words", "it's", 'say "x"', "\u732b"]
    put(tmp_path, *(f"{label}/{name}" for label in labels for name in ("line\nbreak.png", 'a,"b".png')))
    source = scan_folder(tmp_path)
    assert sorted(source.class_names) == sorted(labels)
    assert all(Path(source.path_of(sample)).is_file() for sample in source.samples)
    assert {sample.labels for sample in source.samples if sample.path.startswith("NA/")} == {("NA",)}


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "else", "1.png")
    put(tmp_path / "root", "a/1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "else")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root" / "a")
    assert [sample.path for sample in scan_folder(tmp_path / "root").samples] == ["a/1.png", "b/1.png"]


def test_order_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"{label}/{index}.png" for label in "ab" for index in range(12)]
    put(tmp_path / "x", *names)
    put(tmp_path / "y", *reversed(names))
    listed = [sample.path for sample in scan_folder(tmp_path / "x").samples]
    assert listed == [sample.path for sample in scan_folder(tmp_path / "y").samples]
    assert listed[9:12] == ["a/9.png", "a/10.png", "a/11.png"]


def test_the_fingerprint_changes_with_a_file_and_only_then(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    before = scan_folder(tmp_path).fingerprint
    assert scan_folder(tmp_path).fingerprint == before
    os.utime(tmp_path / "a/1.png", (1, 1))
    after = scan_folder(tmp_path).fingerprint
    assert after != before
    put(tmp_path, "b/2.png")
    assert scan_folder(tmp_path).fingerprint != after


LAYOUTS = {
    "no images": (["cat/x.txt"], "no images"),
    "images in the root": (["1.png", "a/1.png", "b/1.png"], "lie directly in it"),
    "one class": (["cat/1.png"], "at least 2 classes"),
    "empty class folder": (["a/1.png", "b/1.png", "hollow/x.txt"], "hollow: the class folder holds no images"),
    "names that differ by case": (["Cat/1.png", "cat/2.png", "dog/1.png"], "'Cat' and 'cat' differ only in case"),
    "names that differ by a blank": (["cat /1.png", "cat/2.png"], "differ only in case or spelling"),
    "names that differ by composition": (["caf\u00e9/1.png", "cafe\u0301/2.png"], "differ only in case or spelling"),
    "class that train lacks": (
        ["train/a/1.png", "train/b/1.png", "test/c/1.png"],
        "'c' is in test, but has no images",
    ),
    "two names of one split": (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "all mean the split 'val'"),
    "folder beside splits": (["train/a/1.png", "train/b/1.png", "extra/1.png"], "'extra' lies beside the split folders"),
    "splits without train": (["val/a/1.png", "test/b/1.png"], "no folder 'train'"),
    "loose images in a split": (["train/a/1.png", "train/b/1.png", "test/1.png"], "images lie directly in it"),
}


@pytest.mark.parametrize(("files", "message"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_mistaken_layout_is_one_line_that_names_the_place(tmp_path, files, message):
    put(tmp_path, *[file for file in files if file.endswith(".png")])
    for file in files:
        if file.endswith(".txt"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("x")
    with pytest.raises(UserError, match=message) as caught:
        scan_folder(tmp_path).samples  # noqa: B018 - classes are checked when the samples are first listed
    assert "\n" not in str(caught.value)
    assert tmp_path.name in str(caught.value)


def test_a_missing_root_and_a_file_as_root_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        scan_folder(tmp_path / "file")


# ---- IDX -------------------------------------------------------------------------------------------------------------


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def put_idx(folder, prefix, num, pack=lambda data: data, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(num).integers(0, 256, (num, 6, 5), dtype=np.uint8)
    labels = np.arange(num) % 11
    (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
    (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
    return images, labels


def scan_idx(root):
    return scan(DataConfig(source="idx", root=str(root)), root)


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_found_plain_or_gzipped(tmp_path, below, packed):
    options = {"pack": gzip.compress, "suffix": ".gz"} if packed else {}
    images, _ = put_idx(tmp_path / below, "train", 22, **options)
    put_idx(tmp_path / below, "t10k", 11, **options)
    source = scan_idx(tmp_path)
    assert source.class_names == tuple(str(label) for label in range(11))
    assert source.samples[12] == Sample("train/00012", ("1",), "train")
    assert source.samples[-1] == Sample("t10k/00010", ("10",), "test")
    np.testing.assert_array_equal(source.array(source.samples[12]), images[12])


DAMAGE = {
    "magic": (lambda data: b"\0\0\x0d\3" + data[4:], "not an IDX file"),
    "cut": (lambda data: data[:-1], "cut short"),
    "too long": (lambda data: data + b"x", "more follow"),
    "enormous": (lambda data: data[:4] + b"\xff" * 12 + data[16:], "cut short"),
    "empty": (lambda data: b"", "not an IDX file"),
    "no images": (lambda data: data[:4] + bytes(4) + data[8:16], "empty"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message, packed):
    data = damage(idx_bytes(np.ones((3, 4, 5))))
    path = tmp_path / ("some-images.gz" if packed else "some-images")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=f"some-images.*({message}|only)"):
        read_idx(path, 3)


def test_a_cut_gzip_file_is_named(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (30, 9, 9))))[:-200])
    with pytest.raises(UserError, match=r"images\.gz: the file is cut short or damaged"):
        read_idx(path, 3)


def test_idx_files_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \*-images-idx3-ubyte"):
        scan_idx(tmp_path)
    put_idx(tmp_path, "train", 22)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(21)))
    with pytest.raises(UserError, match="22 images, but train-labels-idx1-ubyte has 21 labels"):
        scan_idx(tmp_path).samples  # noqa: B018
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="the file of its labels is missing"):
        scan_idx(tmp_path)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def scan_vision(root, name="MNIST"):
    return scan(DataConfig(source="torchvision", name=name, root=str(root), download=False), root)


def test_an_unknown_torchvision_set_names_the_near_match(tmp_path):
    with pytest.raises(UserError, match="did you mean 'CIFAR10'"):
        scan_vision(tmp_path, "cifar-10")


def test_a_set_that_is_not_there_names_folder_and_cure(tmp_path):
    with pytest.raises(UserError, match=r"MNIST: not complete in .*data.download=true"):
        scan_vision(tmp_path)


def test_every_set_of_the_table_is_one_of_torchvisions():
    from torchvision import datasets

    from tracked_cls.data.sources.vision import _VISION_SETS

    assert {name for name in _VISION_SETS if not hasattr(datasets, name)} == set()


def test_torchvision_mnist_agrees_with_its_idx_files(tmp_path):
    put_idx(tmp_path / "MNIST/raw", "train", 20)
    put_idx(tmp_path / "MNIST/raw", "t10k", 10)
    for path in (tmp_path / "MNIST/raw").glob("*labels*"):  # MNIST knows ten classes
        count = 20 if "train" in path.name else 10
        path.write_bytes(idx_bytes(np.arange(count) % 10))
    vision, idx = scan_vision(tmp_path), scan_idx(tmp_path)
    assert vision.class_names == idx.class_names == tuple("0123456789")
    for left, right in zip(vision.samples, idx.samples, strict=True):
        assert (left.labels, left.split) == (right.labels, right.split)
        np.testing.assert_array_equal(vision.array(left)[:, :, 0], idx.array(right))


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not at {MNIST}")
def test_the_real_mnist_is_read(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in MNIST.glob("*.gz"):
        with gzip.open(path) as packed, (folder / path.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    vision = scan_vision(tmp_path)
    assert len(vision.samples) == 70_000
    assert vision.class_names == tuple("0123456789")
