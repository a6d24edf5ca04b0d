"""A user's own dataset: the items it may give, and every mistake in it by its index."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import RejectedImage
from tracked_cls.data.sources import Sample, scan
from tracked_cls.errors import UserError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)


class Given:
    """A dataset of the items that a test gives it."""

    items: tuple = ()
    asked = 0

    def __init__(self, path="x", size=1):
        self.path = path

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        type(self).asked += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture
def scanned(monkeypatch):
    """Return a function that scans a dataset of given items; keywords in capitals become attributes of the class."""

    def scanned(*items, attributes=None, **options):
        dataset = type("Given", (Given,), {"items": items, **(attributes or {})})
        module = type(sys)("dataset_of_a_test")
        module.Given = dataset
        monkeypatch.setitem(sys.modules, "dataset_of_a_test", module)
        return scan(DataConfig(source="python", dataset="dataset_of_a_test:Given", **options), None)

    return scanned


def test_an_item_is_a_pair_a_triple_or_a_dict(scanned):
    full = {"image": GREY, "label": "b", "id": 9, "split": "valid", "group": "g", "weight": np.float32(0.5)}
    empty = {"image": GREY, "label": "b", "id": None, "split": None, "group": None, "weight": None}
    source = scanned((GREY, "a"), (GREY, "b", "my id"), full, [GREY, "a"], empty)
    assert source.listed() == [
        Sample("Given/000000", ("a",)),
        Sample("my id", ("b",)),
        Sample("9", ("b",), "val", "g", 0.5),
        Sample("Given/000003", ("a",)),
        Sample("Given/000004", ("b",)),
    ]


IMAGES = {
    "PIL grey": (Image.fromarray(GREY), GREY[:, :, None]),
    "PIL colour": (Image.fromarray(COLOUR), COLOUR),
    "array grey": (GREY, GREY),
    "array colour": (COLOUR, COLOUR),
    "tensor grey": (torch.from_numpy(GREY), GREY),
    "tensor colour": (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
    "tensor of one channel": (torch.from_numpy(GREY)[None], GREY[:, :, None]),
}


@pytest.mark.parametrize(("image", "pixels"), IMAGES.values(), ids=IMAGES)
def test_an_image_comes_as_uint8_with_channels_last(scanned, image, pixels):
    source = scanned((image, "a"), (GREY, "b"))
    array = source.array(source.samples[0])
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, pixels)


def test_frames_come_as_arrays_or_tensors(scanned):
    clip = np.stack([COLOUR, COLOUR[::-1]])
    source = scanned((clip, "a"), (torch.from_numpy(clip).permute(0, 3, 1, 2), "b"), frames=2)
    for sample in source.samples:
        np.testing.assert_array_equal(source.array(sample), clip)


def test_a_number_is_an_index_into_classes_or_a_name(scanned):
    labels = [0, np.int64(1), torch.tensor(1)]
    items = [(GREY, label) for label in labels]
    assert scanned(*items).class_names == ("0", "1")
    assert [sample.labels for sample in scanned(*items, attributes={"classes": ["x", "y"]}).samples] == [("x",), ("y",), ("y",)]


def test_odd_labels_are_names_like_any_other(scanned):
    labels = ["NA", "None", "007", "猫", "a|b", "two words"]
    source = scanned(*((GREY, label) for label in labels))
    assert [sample.labels[0] for sample in source.samples] == labels


def test_several_labels_come_as_a_list_a_tuple_or_a_set(scanned):
    source = scanned((GREY, ["b", "a"]), (GREY, ()), (GREY, {1}), multi_label=True, attributes={"classes": ("x", "y")})
    assert [sample.labels for sample in source.samples] == [("a", "b"), (), ("y",)]


def test_images_are_decoded_when_they_are_asked_for(scanned):
    source = scanned(*((GREY + index, str(index)) for index in range(5)), attributes={"fingerprint": "v1"})
    dataset = sys.modules["dataset_of_a_test"].Given
    assert dataset.asked == 0
    assert len(source.samples) == 5
    assert dataset.asked == 5
    np.testing.assert_array_equal(source.array(source.samples[3]), GREY + 3)
    assert dataset.asked == 6


def test_a_fingerprint_of_its_own_decides_whether_a_dataset_has_changed(scanned):
    def of(value, **args):
        return scanned((GREY, "a"), (GREY, "b"), attributes={"fingerprint": value}, dataset_args=args).fingerprint

    assert of("v1") == of(lambda self: "v1")
    assert len({of("v1"), of("v2"), of("v1", path="y")}) == 3


def test_without_a_fingerprint_every_pixel_and_label_counts(scanned):
    changed = GREY.copy()
    changed[3, 3] += 1
    first = scanned((GREY, "a"), (GREY, "b"))
    assert "has no fingerprint" in first.notes[0]
    others = [
        scanned((changed, "a"), (GREY, "b")),
        scanned((GREY, "b"), (GREY, "a")),
        scanned((GREY.reshape(8, 6), "a"), (GREY, "b")),
    ]
    assert scanned((GREY, "a"), (GREY, "b")).fingerprint == first.fingerprint
    assert len({first.fingerprint, *(source.fingerprint for source in others)}) == 4


def test_a_damaged_file_behind_a_pil_image_is_a_rejected_image(scanned, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-2000])
    source = scanned((Image.open(tmp_path / "cut.png"), "a"), (Image.fromarray(GREY.astype(np.float32)), "a"), (GREY, "b"))
    for sample, code in zip(source.samples[:2], ("E_CORRUPT", "E_MODE"), strict=True):
        with pytest.raises(RejectedImage, match=code):
            source.array(sample)


ITEM_MISTAKES = {
    "exception": ([ValueError("no file 7")], {}, "item 1: __getitem__ raised ValueError: no file 7"),
    "single": ([GREY], {}, r"item 1: an item must be \(image, label\).*got a ndarray"),
    "four parts": ([(GREY, "a", "b", "c")], {}, "got a tuple of 4"),
    "no label": ([{"image": GREY}], {}, "item 1: .*'label' is missing"),
    "label None": ([(GREY, None)], {}, "item 1: .*'label' is None"),
    "unknown key": ([{"image": GREY, "lable": "a"}], {}, "item 1: unknown key 'lable'; did you mean 'label'"),
    "float label": ([(GREY, 1.0)], {}, "item 1: its label must be text or a whole number, got a float"),
    "bool label": ([(GREY, True)], {}, "got a bool"),
    "empty label": ([(GREY, "")], {}, "item 1: E_LABEL_MISSING"),
    "blank in the label": ([(GREY, "a ")], {}, "item 1: E_LABEL: the label 'a ' begins or ends with a blank"),
    "several labels": ([(GREY, ["a", "b"])], {}, r"one label \(several need data.multi_label=true\)"),
    "one label of several": ([(GREY, "a")], {"multi_label": True}, "item 1: the label must be a list of labels, got 'a'"),
    "label without a class": (
        [(GREY, 2)],
        {"attributes": {"classes": ["a", "b"]}},
        "item 1: its label is 2, but classes has 2 names",
    ),
    "label below the classes": ([(GREY, -1)], {"attributes": {"classes": ["a", "b"]}}, "item 1: its label is -1"),
    "id twice": (
        [(GREY, "b", "x"), (GREY, "b", "x")],
        {},
        "item 2: E_LABEL_CONFLICT: 'x' is listed twice, in item 1 and item 2",
    ),
    "empty id": ([(GREY, "b", "")], {}, "item 1: its id is empty"),
    "odd id": ([(GREY, "b", 1.5)], {}, "item 1: its id must be text or a whole number"),
    "odd split": ([{"image": GREY, "label": "b", "split": "trian"}], {}, "item 1: E_SPLIT: .*did you mean 'train'"),
    "odd weight": ([{"image": GREY, "label": "b", "weight": -2}], {}, "item 1: E_WEIGHT"),
    "float array": ([(GREY / 255, "b")], {}, "item 1: .*got ndarray of float64; scale it to 0-255"),
    "float tensor": ([(torch.zeros(3, 8, 8), "b")], {}, "item 1: .*got Tensor of float32; scale it"),
    "half tensor": ([(torch.zeros(3, 8, 8, dtype=torch.float16), "b")], {}, "got Tensor of float16; scale it"),
    "whole numbers": ([(GREY.astype(np.int64), "b")], {}, "item 1: .*got ndarray of int64"),
    "a path": ([("x.png", "b")], {}, "item 1: an image must be a PIL image.*got a str"),
    "four channels": ([(np.zeros((8, 8, 4), np.uint8), "b")], {}, r"got the shape \[8, 8, 4\]"),
    "tensor with channels last": ([(torch.from_numpy(COLOUR), "b")], {}, r"got the shape \[6, 8, 3\]"),
    "nothing in it": ([(np.zeros((0, 8), np.uint8), "b")], {}, r"got the shape \[0, 8\]"),
    "frames unasked": ([(np.zeros((2, 8, 8, 3), np.uint8), "b")], {}, r"frames \[T,H,W,C\] need data.frames"),
    "groups twice": (
        [{"image": GREY, "label": "b", "group": "g"}],
        {"group_pattern": "(.)"},
        "which data.group_pattern contradicts",
    ),
}


@pytest.mark.parametrize(("items", "options", "message"), ITEM_MISTAKES.values(), ids=ITEM_MISTAKES)
def test_a_wrong_item_is_named_by_its_index(scanned, items, options, message):
    first = (GREY, ["a"]) if "multi_label" in options else (GREY, "a")
    with pytest.raises(UserError, match=message) as caught:
        scanned(first, *items, **options).samples  # noqa: B018
    assert "\n" not in str(caught.value)


def _boom(*_):
    raise OSError("the disk is gone")


CLASS_MISTAKES = {
    "unknown argument": ({}, {"pth": 1}, r"data.dataset_args: .*unexpected keyword argument 'pth'; did you mean 'path'"),
    "missing argument": ({"__init__": lambda self, root: None}, {}, "missing a required argument: 'root'; it takes root"),
    "constructor": ({"__init__": _boom}, {}, "data.dataset: making dataset_of_a_test:Given raised OSError: the disk is gone"),
    "length": ({"__len__": _boom}, {}, "len.. of dataset_of_a_test:Given raised OSError: the disk is gone"),
    "empty": ({"__len__": lambda self: 0}, {}, "is empty"),
    "no items": ({"__getitem__": property(_boom)}, {}, "item 0: __getitem__ raised OSError"),
    "fingerprint": ({"fingerprint": _boom}, {}, r"fingerprint\(\) raised OSError"),
    "fingerprint that is no text": ({"fingerprint": 7}, {}, "the fingerprint of .* must be text, got 7"),
    "classes that are no names": ({"classes": {"a": 0}}, {}, "classes of .* must be a list of names"),
    "a class twice": ({"classes": ["a", "a"]}, {}, "names a class twice"),
}


@pytest.mark.parametrize(("attributes", "args", "message"), CLASS_MISTAKES.values(), ids=CLASS_MISTAKES)
def test_a_wrong_class_is_one_line_that_says_why(scanned, attributes, args, message):
    with pytest.raises(UserError, match=message) as caught:
        scanned((GREY, "a"), (GREY, "b"), attributes=attributes, dataset_args=args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "message"), [(3, "is no class, but a int"), (object, "has no __len__ and no __getitem__")])
def test_what_is_no_dataset_is_refused(monkeypatch, value, message):
    module = type(sys)("dataset_of_a_test")
    module.Given = value
    monkeypatch.setitem(sys.modules, "dataset_of_a_test", module)
    with pytest.raises(UserError, match=message):
        scan(DataConfig(source="python", dataset="dataset_of_a_test:Given"), None)


def test_a_dataset_is_found_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "dataset_in_a_file.py").write_text(
        "import numpy as np\n"
        "class Stripes:\n"
        "    fingerprint = '1'\n"
        "    def __init__(self, count): self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def __getitem__(self, index): return np.full((8, 8), index, np.uint8), index % 2\n"
    )
    source = scan(DataConfig(source="python", dataset="dataset_in_a_file:Stripes", dataset_args={"count": 6}), None)
    assert source.name == "Stripes"
    assert len(source.samples) == 6
    with pytest.raises(UserError, match="no 'Stripe' in .*did you mean 'Stripes'"):
        scan(DataConfig(source="python", dataset="dataset_in_a_file:Stripe"), None)
