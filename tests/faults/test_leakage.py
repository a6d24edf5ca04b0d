"""What is learnt from is not what is tested on: exact copies refused or settled, near copies found and shown."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tracked_cls import assembly
from tracked_cls.config import DataConfig
from tracked_cls.data import cache, intake, likeness, sources
from tracked_cls.data.decode import decode
from tracked_cls.data.likeness import near_copies
from tracked_cls.errors import UserError

RNG = np.random.default_rng(0)


class InThisProcess(contextlib.nullcontext):
    """Decodes without the processes that protect from bad files: starting them takes longer than these tests."""

    def __init__(self, work, num, limits):
        super().__init__(self)
        self.submit = lambda paths: partial(work, paths)


@pytest.fixture(autouse=True)
def _decode_here(monkeypatch):
    monkeypatch.setattr(intake, "Decoders", InThisProcess)


def photos(num, side=32, channels=3, seed=0):
    """Return pictures uint8 [N,S,S,C] whose detail falls off with its frequency, as a photo's does."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(side) * side] * 2))
    noise = random.normal(size=(num, 1, side, side)) + 0.2 * random.normal(size=(num, channels, side, side))
    values = np.moveaxis(np.fft.ifft2(np.fft.fft2(noise) / np.maximum(frequency, 1) ** 1.3).real, 1, 3)
    values = (values - values.mean(axis=(1, 2), keepdims=True)) / values.std(axis=(1, 2), keepdims=True)
    return np.clip(values * 45 + 128, 0, 255).astype(np.uint8)


def put(root, images):
    for path, image in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / path)
    return root


def split_folders(root, per_class=4, side=32):
    """Put different pictures into train, val and test folders of the classes a and b."""
    names = [f"{split}/{name}/{index}.png" for split in sources.SPLITS for name in "ab" for index in range(per_class)]
    return put(root, dict(zip(names, photos(len(names), side), strict=True)))


def prepare(home, root, **options):
    cfg = DataConfig(source="folder", root=str(root), name="set", **options)
    prepared = assembly.build(cfg, home / "data", sources.scan(cfg, root))
    cache.set_current(prepared.folder)
    return prepared


def report_of(prepared):
    return json.loads((prepared.folder / "report.json").read_text())


def copy(root, source, *targets):
    for target in targets:
        shutil.copyfile(root / source, root / target)


# ---- exact copies ----------------------------------------------------------------------------------------------------

REFUSED = {
    "two splits": (
        [("train/a/0.png", "test/a/x.png"), ("train/b/1.png", "val/b/y.png")],
        r"^E_LEAK: 2 pictures are, pixel for pixel, in two splits: train/a/0\.png \(train\) and test/a/x\.png \(test\), "
        r"train/b/1\.png \(train\) and val/b/y\.png \(val\); data\.duplicates=keep_test keeps",
    ),
    "two labels": (
        [("train/a/0.png", "train/b/x.png")],
        r"^E_LABEL_CONFLICT: 1 picture is, pixel for pixel, under two labels: train/a/0\.png \(a\) and train/b/x\.png \(b\); ",
    ),
    "both": (
        [("train/a/0.png", "test/b/x.png")],
        r"^E_LEAK: 1 picture .*; E_LABEL_CONFLICT: 1 picture is, pixel for pixel, under two labels: .*keep_train.*allow keeps",
    ),
    "many": ([(f"train/a/{index}.png", f"test/a/x{index}.png") for index in range(4)], r"4 pictures .*, \.\.\.; data"),
}


@pytest.mark.parametrize(("copies", "message"), REFUSED.values(), ids=REFUSED)
def test_the_same_pixels_in_two_splits_or_under_two_labels_are_refused(tmp_path, copies, message):
    root = split_folders(tmp_path / "in")
    for source, target in copies:
        copy(root, source, target)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, root)
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_pixels_count_and_not_bytes(tmp_path):
    root = split_folders(tmp_path / "in")
    with Image.open(root / "train/a/0.png") as image:
        image.save(root / "test/a/same.bmp")
    with pytest.raises(UserError, match=r"E_LEAK.*train/a/0\.png \(train\) and test/a/same\.bmp"):
        prepare(tmp_path, root)


def test_copies_of_one_label_in_one_split_are_reported_only(tmp_path):
    root = split_folders(tmp_path / "in")
    copy(root, "train/a/0.png", "train/a/x.png")
    copy(root, "test/b/0.png", "test/b/x.png")
    prepared = prepare(tmp_path, root)
    assert len(prepared.manifest) == 26
    assert report_of(prepared)["duplicates"]["within_splits"] == 2


# of these, one picture is in all splits, one twice in test with two labels, one in train under two labels, one in train twice
TANGLE = [
    ("train/a/0.png", "val/a/x.png", "test/a/x.png"),
    ("train/a/1.png", "test/a/y.png", "test/b/y.png"),
    ("train/a/2.png", "train/b/z.png"),
    ("train/b/0.png", "train/b/twice.png"),
]
SETTLED = {
    "keep_test": {
        "E_LEAK": ["train/a/0.png", "train/a/1.png", "val/a/x.png"],
        "E_LABEL_CONFLICT": ["test/a/y.png", "test/b/y.png", "train/a/2.png", "train/b/z.png"],
    },
    "keep_train": {
        "E_LEAK": ["test/a/x.png", "test/a/y.png", "test/b/y.png", "val/a/x.png"],
        "E_LABEL_CONFLICT": ["train/a/2.png", "train/b/z.png"],
    },
    "allow": {},
}


@pytest.mark.parametrize("kept_as", ["pixels", "files"])
@pytest.mark.parametrize(("rule", "left_out"), SETTLED.items(), ids=SETTLED)
def test_a_rule_settles_which_copies_stay(tmp_path, rule, left_out, kept_as):
    root = split_folders(tmp_path / "in")
    for source, *targets in TANGLE:
        copy(root, source, *targets)
    prepared = prepare(tmp_path, root, duplicates=rule, cache=kept_as)
    rejected = report_of(prepared)["rejected"]
    found = {code: sorted(entry["path"] for entry in rejected if entry["code"] == code) for code in left_out}
    assert found == left_out
    assert len(prepared.manifest) == 30 - len(rejected)
    assert {entry["path"] for entry in rejected}.isdisjoint(prepared.manifest.paths)
    for index, path in enumerate(prepared.manifest.paths):  # the cache holds what the manifest says, row by row
        np.testing.assert_array_equal(prepared.sized([index])[0], decode((root / path).read_bytes()))
    if rejected:
        rows = list(csv.DictReader((prepared.folder / assembly.REJECTED).open()))
        assert {row["path"]: row["code"] for row in rows} == {entry["path"]: entry["code"] for entry in rejected}
        reasons = {entry["path"]: entry["reason"] for entry in rejected}
        kept = {"keep_test": "test", "keep_train": "train"}[rule]
        assert reasons["val/a/x.png"] == f"the same pixels as {kept}/a/{'x' if kept == 'test' else '0'}.png, which is in {kept}"
        assert reasons["train/b/z.png"] == "the same pixels are labelled 'a' and 'b', e.g. train/a/2.png"


def test_what_a_rule_left_out_is_an_image_again_under_another(tmp_path):
    root = split_folders(tmp_path / "in")
    copy(root, "train/a/0.png", "test/a/x.png")
    assert len(prepare(tmp_path, root, duplicates="keep_test").manifest) == 24
    again = prepare(tmp_path, root, duplicates="allow")
    assert len(again.manifest) == 25
    assert (report_of(again)["decoded"], report_of(again)["reused"]) == (1, 24)
    (root / "test/a/x.png").unlink()
    assert len(prepare(tmp_path, root).manifest) == 24


def test_a_class_that_loses_all_its_images_to_the_rule_is_named(tmp_path):
    root = split_folders(tmp_path / "in")
    shutil.rmtree(root / "train/b")
    (root / "train/b").mkdir()
    for split in ("val", "test"):
        shutil.rmtree(root / split / "b")
    copy(root, "train/a/0.png", "train/b/x.png")
    with pytest.raises(UserError, match=r"class 'b': none of its 1 images can be used.*labelled 'a' and 'b'"):
        prepare(tmp_path, root, duplicates="keep_test")


def test_drawn_splits_keep_copies_together(tmp_path):
    images = dict(zip([f"{name}/{index}.png" for name in "ab" for index in range(40)], photos(80), strict=True))
    root = put(tmp_path / "in", images)
    for index in range(40):
        copy(root, f"a/{index}.png", f"a/copy{index}.png")
    for options in ({}, {"split": "hash"}, {"group_pattern": r"(\d)\.png$"}):
        manifest = prepare(tmp_path, root, near_duplicates="off", **options).manifest
        split_of = dict(zip(manifest.paths, manifest.splits.tolist(), strict=True))
        assert all(split_of[f"a/{index}.png"] == split_of[f"a/copy{index}.png"] for index in range(40))
        assert set(split_of.values()) == {0, 1, 2}


# ---- near copies -----------------------------------------------------------------------------------------------------


def encoded(quality):
    def change(image):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(io.BytesIO(stream.getvalue()))

    return change


def resized(scale):
    return lambda image: image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)


CHANGES = {
    "jpeg 50": encoded(50),
    "jpeg 95": encoded(95),
    "half": resized(0.5),
    "three quarters": resized(0.75),
    "double": resized(2),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored, half, jpeg 75": lambda image: encoded(75)(resized(0.5)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))),
}


def changed(images, change):
    side = images.shape[1]
    pictures = [change(Image.fromarray(image)).resize((side, side), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])


def look(train, test, **options):
    images = np.concatenate([train, test])
    splits = np.repeat(np.array([0, 2], np.uint8), [len(train), len(test)])
    return near_copies(lambda indices: images[indices], splits, **options)


@pytest.mark.parametrize("side", [28, 40])
@pytest.mark.parametrize("name", CHANGES)
def test_planted_near_copies_are_found_and_nothing_else(name, side):
    train, others = photos(200, side), photos(60, side, seed=1)
    found = look(train, np.concatenate([changed(train[:60], CHANGES[name]), others]))
    assert (found.compared, found.held_out) == (120, 120)
    right = [pair for pair in found.pairs if pair.held_out - 200 == pair.other]
    assert len(right) >= 57  # of 60
    assert len(found.pairs) == len(right)
    assert {pair.flipped for pair in found.pairs} == {"mirrored" in name}
    assert [pair.likeness for pair in found.pairs] == sorted((pair.likeness for pair in found.pairs), reverse=True)


def test_val_is_compared_with_train_and_test_with_both():
    images = np.concatenate([photos(30), photos(30)[[3]], photos(30)[[4]], photos(6, seed=2), photos(6, seed=2)[[0]]])
    splits = np.array([0] * 30 + [1, 2] + [1] * 6 + [2], np.uint8)
    pairs = near_copies(lambda indices: images[indices], splits).pairs
    assert {(pair.held_out, pair.other) for pair in pairs} == {(30, 3), (31, 4), (38, 32)}


def test_of_pictures_that_are_all_alike_only_copies_are_told():
    base = photos(1).astype(float)
    alike = np.clip(base + 0.35 * (photos(200, seed=3) - 128.0), 0, 255).astype(np.uint8)
    found = look(alike[:150], np.concatenate([alike[150:], changed(alike[:10], encoded(90))]))
    assert {pair.held_out for pair in found.pairs} == set(range(200, 210))


def test_empty_pictures_are_like_nothing():
    faint = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None] // 8 + 120, (40, 32, 32, 3)).copy()
    faint[np.arange(40), np.arange(40) % 32, 5] += 3  # all but the same, and no picture
    assert look(faint[:30], faint[30:]).pairs == []
    assert look(np.full((9, 32, 32, 1), 7, np.uint8), np.full((9, 32, 32, 1), 7, np.uint8)).pairs == []


def test_the_most_similar_of_many_are_proposed():
    vectors = RNG.normal(size=(1500, 63)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    base, some = vectors[:1400], vectors[1400:]
    places, similarity = likeness._Base(base).nearest(some)
    expected = some[:, :31] @ base[:, :31].T + np.abs(some[:, 31:] @ base[:, 31:].T)
    np.testing.assert_array_equal(np.sort(places), np.sort(np.argsort(expected)[:, -8:]))
    np.testing.assert_allclose(np.sort(similarity), np.sort(expected)[:, -8:], atol=1e-5)


def test_few_or_small_pictures_can_be_compared():
    one = photos(2, side=6)
    assert [pair.other for pair in look(one[:1], one[:1]).pairs] == [0]
    assert look(one, np.zeros((0, 6, 6, 3), np.uint8)).compared == 0


def test_beyond_the_limit_evenly_spaced_images_stand_for_all():
    train = photos(100)
    found = look(train, train[:50], max_comparisons=2 * 100 * 10)
    assert (found.compared, found.held_out, len(found.pairs)) == (10, 50, 10)
    assert {pair.other for pair in found.pairs} == set(np.linspace(0, 49, 10).astype(int).tolist())


def test_of_clips_the_middle_frame_counts():
    clips = np.stack([photos(20, seed=seed) for seed in range(3)], axis=1)
    again = clips[:5].copy()
    again[:, [0, 2]] = 0
    assert len(look(clips, again).pairs) == 5


# ---- in the report ---------------------------------------------------------------------------------------------------


def test_near_copies_are_told_and_shown_and_do_not_stop_the_preparation(tmp_path, capsys):
    root = split_folders(tmp_path / "in", per_class=12)
    with Image.open(root / "train/a/3.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "test/b/leak.jpg", quality=80)
    prepared = prepare(tmp_path, root)
    near = report_of(prepared)["near_duplicates"]
    assert (near["count"], near["across_classes"], near["compared"], near["held_out"]) == (1, 1, 49, 49)
    (pair,) = near["pairs"]
    assert pair["paths"] == ["test/b/leak.jpg", "train/a/3.png"]
    assert (pair["splits"], pair["classes"], pair["flipped"]) == (["test", "train"], ["b", "a"], True)
    assert 0.97 < pair["likeness"] < 1
    said = capsys.readouterr().out
    assert "W_NEAR_LEAK: 1 of 49 images of val and test" in said
    assert "test/b/leak.jpg and train/a/3.png" in said
    page = (prepared.folder / "report.html").read_text()
    assert page.count('alt="test/b/leak.jpg"') == page.count('alt="train/a/3.png"') == 1
    assert "1 pair has two different labels" in page
    assert "mirrored" in page


def test_exact_copies_are_not_told_twice(tmp_path):
    root = split_folders(tmp_path / "in", per_class=12)
    copy(root, "train/a/0.png", "test/a/x.png")
    report = report_of(prepare(tmp_path, root, duplicates="allow"))
    assert report["duplicates"]["across_splits"] == 1
    assert report["near_duplicates"]["count"] == 0


NOT_LOOKED = {
    "off": ({"near_duplicates": "off"}, 32, "data.near_duplicates=off"),
    "small": ({}, 15, "images below 16 pixels"),
    "many files": ({"cache": "files"}, 32, "more than 20 files"),
}


@pytest.mark.parametrize(("options", "side", "reason"), NOT_LOOKED.values(), ids=NOT_LOOKED)
def test_where_nothing_is_looked_for_the_report_says_why(tmp_path, monkeypatch, capsys, options, side, reason):
    monkeypatch.setattr(assembly, "_MANY_FILES", 20)
    root = split_folders(tmp_path / "in", side=side)
    with Image.open(root / "train/a/0.png") as image:
        image.save(root / "test/a/x.jpg", quality=95)
    prepared = prepare(tmp_path, root, **options)
    near = report_of(prepared)["near_duplicates"]
    assert (near["looked"], near["count"]) == (False, 0)
    assert reason in near["why_not"]
    assert reason in (prepared.folder / "report.html").read_text()
    assert "W_NEAR" not in capsys.readouterr().out
    if "cache" in options:
        assert report_of(prepare(tmp_path, root, near_duplicates="report", **options))["near_duplicates"]["count"] == 1


def test_an_unchanged_input_is_found_and_not_compared_again(tmp_path):
    root = split_folders(tmp_path / "in")
    prepared = prepare(tmp_path, root)
    cfg = DataConfig(source="folder", root=str(root), name="set")
    assert cache.find_prepared(tmp_path / "data", cfg, sources.scan(cfg, root).fingerprint) == prepared.folder
