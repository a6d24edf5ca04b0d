"""The data report tells the truth, fits in one file and trusts no file name."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tracked_cls import preparation
from tracked_cls.config import DataConfig
from tracked_cls.data import sources

RNG = np.random.default_rng(0)


def prepare(home, root, **options):
    cfg = DataConfig(source="folder", root=str(root), name="set", **options)
    return preparation.build(cfg, home / cfg.store, sources.scan(cfg, root))


def put(root, counts, shape=(20, 30)):
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(root / label / f"{index}.png")
    return root


def read(prepared):
    report = json.loads((prepared.folder / "report.json").read_text(encoding="utf-8"))
    return report, (prepared.folder / "report.html").read_text(encoding="utf-8")


def test_counts_balance_and_sizes_are_those_of_the_folder(tmp_path):
    root = put(tmp_path / "in", {"a": 10, "b": 20})
    Image.new("RGB", (50, 60)).save(root / "a" / "colour.png")
    (root / "a" / "notes.txt").write_text("x")
    prepared = prepare(tmp_path, root)
    report, page = read(prepared)
    assert report["images_per_class"] == {"a": 11, "b": 20}
    assert report["counts"] == prepared.manifest.counts()
    assert report["balance"] == pytest.approx(11 / 20)
    sizes = report["original_sizes"]
    assert sizes["height"] == {"min": 20, "median": 20, "max": 60}
    assert sizes["width"] == {"min": 30, "median": 30, "max": 50}
    assert sizes["most_common"][0] == {"height": 20, "width": 30, "count": 30}
    assert (sizes["num_sizes"], sizes["num_grey"]) == (2, 30)
    assert (report["num_images"], report["num_rejected"], report["num_ignored"]) == (31, 0, 1)
    assert report["preprocess"] == prepared.preprocess.to_dict()
    assert prepared.manifest.digest in page


def test_exact_copies_are_counted_within_and_across_splits_and_classes(tmp_path):
    root = tmp_path / "in"
    put(root / "train", {"a": 4, "b": 4})
    put(root / "val", {"a": 2, "b": 2})
    put(root / "test", {"a": 2, "b": 2})
    original = root / "train" / "a" / "0.png"
    shutil.copyfile(original, root / "train" / "a" / "copy.png")
    Image.open(original).save(root / "train" / "a" / "copy.bmp")  # other bytes, same pixels
    shutil.copyfile(original, root / "test" / "b" / "leak.png")
    report, page = read(prepare(tmp_path, root, duplicates="allow"))
    found = report["duplicates"]
    assert (found["within_splits"], found["across_splits"], found["across_classes"]) == (2, 1, 1)
    (group,) = found["groups"]
    assert set(group["paths"]) == {"train/a/0.png", "train/a/copy.png", "train/a/copy.bmp", "test/b/leak.png"}
    assert (group["splits"], group["classes"]) == (["train", "test"], ["a", "b"])
    assert "<code>test/b/leak.png</code>" in page
    assert "1 pictures in more than one split" in page


def test_names_are_escaped(tmp_path):
    root = put(tmp_path / "in", {"a<b>&": 3, "c": 3})
    (root / "c" / "<script>alert(1)<").mkdir()
    (root / "c" / "<script>alert(1)<" / "script>.png").write_text("no image")
    _, page = read(prepare(tmp_path, root))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png" in page
    assert "a&lt;b&gt;&amp;" in page


def test_the_page_stands_alone(tmp_path):
    _, page = read(prepare(tmp_path, put(tmp_path / "in", {"a": 12, "b": 3})))
    assert not re.search(r"https?://|<script|<link|url\(|@import|\bon\w+=", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    images = re.findall(r'<img src="[^"]*" alt="([^"]+)">', page)
    assert len(images) == 9 + 1  # of 12 images 2 are for the test and 1 for validation; of 3, 1 and 1
    assert "prefers-color-scheme: dark" in page


def test_the_page_stays_below_three_megabytes(tmp_path):
    root = put(tmp_path / "in", {f"class {index}": 16 for index in range(25)}, shape=(64, 64, 3))
    for index in range(300):
        (root / "class 0" / f"bad{index}.png").write_text("no image")
    report, page = read(prepare(tmp_path, root))
    assert len(page.encode()) < 3_000_000
    assert report["num_rejected"] == len(report["rejected"]) == 300
    assert "the first 200 are shown" in page
    assert "The first 20 of 25 classes are shown" in page
    assert page.count("<img") > 20


def test_a_line_break_in_a_name_is_seen_on_the_page(tmp_path):
    root = put(tmp_path / "in", {"a": 10, "b": 10})
    (root / "a" / "torn\npage.png").write_bytes(b"no image")
    (root / "b" / "鸟.png").write_bytes(b"no image")
    _, page = read(prepare(tmp_path, root))
    assert "<code>a/torn\\npage.png</code>" in page
    assert "<code>b/鸟.png</code>" in page


def test_every_change_that_decoding_makes_has_words(tmp_path):
    from tracked_cls.data import decode
    from tracked_cls.report.data import _CHANGES

    with Image.open(put(tmp_path, {"a": 1}) / "a" / "0.png") as image:
        image.load()
        with pytest.MonkeyPatch.context() as patch:
            for name in ("_is_see_through", "_is_animated"):
                patch.setattr(decode, name, lambda *_: True)
            patch.setattr(decode, "_is_16_bit", lambda *_: True)
            patch.setattr(decode, "_orientation", lambda _: 1)
            image = image.convert("P")
            names = decode.changes_of(image, b"")
    assert set(_CHANGES) == {*names, "wrong_extension"}
