"""From a source to a prepared set, end to end."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tracked_cls import preparation
from tracked_cls.config import DataConfig
from tracked_cls.data import cache, intake, sources
from tracked_cls.data.decode import decode, read_file
from tracked_cls.errors import UserError

RNG = np.random.default_rng(0)


def make(cfg, home, root):
    """Find or build, and say whether it was built: what `prepare` does, without a tracking store."""
    store, source = home / cfg.store, sources.scan(cfg, root)
    found = preparation.find(cfg, store, source)
    prepared = found or preparation.build(cfg, store, source)
    cache.set_current(prepared.folder)
    return prepared, found is None


def prepare(home, root=None, **options):
    source = {} if root is None else {"source": "folder", "root": str(root), "name": "set"}
    return make(DataConfig(**{**source, **options}), home, root)


def put(root, num=8, classes=("cat", "dog"), shape=(12, 10), suffix="png"):
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(num):
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(root / label / f"{index}.{suffix}")
    return root


def test_digits_need_nothing(tmp_path):
    prepared, is_new = prepare(tmp_path)
    assert is_new
    assert prepared.pixels.shape == (1797, 32, 32, 1)
    assert prepared.folder.parent == tmp_path / "data" / "digits"
    assert (prepared.folder.parent / "current").read_text().strip() == prepared.folder.name
    assert {split: sum(counts.values()) for split, counts in prepared.manifest.counts().items()} == {
        "train": 1295,
        "val": 143,
        "test": 359,
    }


@pytest.mark.parametrize("options", [{}, {"fit": "pad", "interpolation": "lanczos"}, {"channels": 1}, {"image_size": 9}])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cached_pixels_are_those_of_the_decoded_files(tmp_path, options, suffix):
    root = put(tmp_path / "in", shape=(40, 30, 3), suffix=suffix)
    Image.new("L", (31, 31), 99).save(root / "cat" / f"grey.{suffix}")
    prepared, _ = prepare(tmp_path, root, **options)
    assert len(prepared.manifest) == 17
    for index, path in enumerate(prepared.manifest.paths):
        expected = prepared.preprocess.geometry.apply(decode(read_file(root / path)))
        np.testing.assert_array_equal(prepared.pixels[index], expected)
        assert prepared.manifest.classes[prepared.manifest.labels[index]] == path.split("/")[0]


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    prepared, _ = prepare(tmp_path, put(tmp_path / "in", num=20, shape=(16, 16, 3)), image_size=16)
    train = prepared.pixels[prepared.manifest.indices("train")].astype(np.float64) / 255
    np.testing.assert_allclose(prepared.preprocess.mean, train.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(prepared.preprocess.std, train.std(axis=(0, 1, 2)), rtol=1e-9)


def test_the_std_of_flat_images_is_not_zero(tmp_path):
    for label in "ab":
        (tmp_path / "in" / label).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (9, 9), 50).save(tmp_path / "in" / label / f"{index}.png")
    assert prepare(tmp_path, tmp_path / "in")[0].preprocess.std == (0.001,)


def test_channels_are_three_as_soon_as_one_image_is_in_colour(tmp_path):
    root = put(tmp_path / "in")
    assert prepare(tmp_path, root)[0].pixels.shape[3] == 1
    Image.new("RGB", (12, 12), "red").save(root / "cat" / "colour.png")
    assert prepare(tmp_path, root)[0].pixels.shape[3] == 3


@pytest.mark.parametrize(("shape", "side"), [((8, 8), 32), ((23, 40), 32), ((24, 40), 24), ((50, 45), 45), ((300, 400), 224)])
def test_the_automatic_size_is_the_usual_shorter_side(tmp_path, shape, side):
    assert prepare(tmp_path, put(tmp_path / "in", num=3, shape=shape))[0].pixels.shape[1] == side


def test_an_unchanged_input_is_found_again_and_not_decoded(tmp_path, monkeypatch):
    root = put(tmp_path / "in")
    first, is_new = prepare(tmp_path, root)
    assert is_new
    monkeypatch.setattr(intake, "take_in", None)
    again, is_new = prepare(tmp_path, root)
    assert not is_new
    assert again.folder == first.folder
    assert again.manifest.digest == first.manifest.digest


def test_changed_options_or_files_make_another_set_and_leave_the_first(tmp_path):
    root = put(tmp_path / "in")
    first, _ = prepare(tmp_path, root)
    other, is_new = prepare(tmp_path, root, split_seed=1)
    assert is_new
    assert other.manifest.content_digest == first.manifest.content_digest
    put(root, num=9)
    third, is_new = prepare(tmp_path, root)
    assert is_new
    assert third.manifest.content_digest != first.manifest.content_digest
    assert len({first.folder, other.folder, third.folder}) == 3
    cache.verify_prepared(first.folder)


def test_a_half_written_set_is_never_read(tmp_path):
    root = put(tmp_path / "in")
    first, _ = prepare(tmp_path, root)
    (first.folder / "COMPLETE").unlink()
    (first.folder / "pixels.npy").write_bytes(b"half")
    again, is_new = prepare(tmp_path, root)
    assert is_new
    assert again.pixels.shape == first.pixels.shape
    cache.verify_prepared(again.folder)


def test_the_manifest_does_not_depend_on_the_order_of_creation_nor_on_the_place(tmp_path):
    root = put(tmp_path / "in", num=12)
    reverse = tmp_path / "reverse"
    for path in sorted(root.rglob("*.png"), reverse=True):
        (reverse / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, reverse / path.parent.name / path.name)
    first, second = prepare(tmp_path / "1", root)[0], prepare(tmp_path / "2", reverse)[0]
    assert first.manifest.digest == second.manifest.digest
    assert first.manifest.paths == second.manifest.paths
    assert (first.folder / "pixels.npy").read_bytes() == (second.folder / "pixels.npy").read_bytes()


def test_decoding_in_processes_gives_the_same_bytes(tmp_path, monkeypatch):
    root = put(tmp_path / "in", num=20)
    (root / "cat" / "bad.png").write_text("no image")
    alone = prepare(tmp_path / "1", root, workers=1)[0]
    monkeypatch.setattr(intake, "_FEW_FILES", 0)
    monkeypatch.setattr(intake, "CHUNK", 6)
    together = prepare(tmp_path / "2", root, workers=2)[0]
    assert together.manifest.digest == alone.manifest.digest
    assert (together.folder / "pixels.npy").read_bytes() == (alone.folder / "pixels.npy").read_bytes()
    assert json.loads((together.folder / "report.json").read_text())["rejected"][0]["path"] == "cat/bad.png"


def test_a_decoding_process_that_dies_is_told_in_one_line(tmp_path, monkeypatch):
    root = put(tmp_path / "in")
    monkeypatch.setattr(intake, "_FEW_FILES", 0)
    monkeypatch.setattr(intake, "start_worker", os.abort)
    with pytest.raises(RuntimeError, match=r"a decoding process died.*cat/0\.png.*data\.workers=1"):
        prepare(tmp_path, root, workers=2)
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_decoding_processes_import_neither_torch_nor_mlflow_nor_pydantic():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import tracked_cls.data.ingest
print(sorted({{"torch", "mlflow", "sklearn", "pydantic", "pyarrow", "jinja2"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preparation_starts_without_torch_and_mlflow_being_imported_for_the_digits(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import tracked_cls.data.sources, tracked_cls.data.cache, tracked_cls.report
print(sorted({{"torch", "mlflow", "sklearn", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- bad files -------------------------------------------------------------------------------------------------------


def test_every_bad_file_is_named_with_its_reason_and_the_rest_is_used(tmp_path):
    root = put(tmp_path / "in")
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[:-30])
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "dog" / "page.jpg").write_text("<html></html>")
    (root / "dog" / "dangling.png").symlink_to("nowhere")
    (root / "dog" / "folder.png").mkdir()
    os.mkfifo(root / "dog" / "pipe.png")
    Image.new("L", (200, 200)).save(root / "dog" / "large.png")
    (root / os.fsdecode(b"dog/\xff.png")).write_bytes(whole)
    prepared, _ = prepare(tmp_path, root, max_pixels=10_000)
    report = json.loads((prepared.folder / "report.json").read_text())
    assert {entry["path"]: entry["code"] for entry in report["rejected"]} == {
        "cat/cut.png": "E_TRUNCATED",
        "cat/empty.png": "E_EMPTY",
        "dog/page.jpg": "E_NOT_IMAGE",
        "dog/dangling.png": "E_LINK",
        "dog/folder.png": "E_NOT_FILE",
        "dog/pipe.png": "E_NOT_FILE",
        "dog/large.png": "E_TOO_LARGE",
        "dog/\\udcff.png": "E_NAME",
    }
    assert len(prepared.manifest) == 16


def test_a_class_that_lost_all_its_images_is_named(tmp_path):
    root = put(tmp_path / "in")
    (root / "fox").mkdir()
    (root / "fox" / "1.png").write_text("no image")
    with pytest.raises(UserError, match=r"class 'fox': none of its 1 images can be used, e\.g\. fox/1\.png .*text"):
        prepare(tmp_path, root)
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_images_that_are_all_bad_are_told_with_the_first_reasons(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / "1.png").write_text("no image")
    with pytest.raises(UserError, match=r"none of the 2 images can be used: cat/1\.png"):
        prepare(tmp_path, tmp_path / "in")


# ---- the same images in another form ---------------------------------------------------------------------------------


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_a_folder_and_idx_files_of_the_same_images_have_one_content_digest(tmp_path):
    images = RNG.integers(0, 256, (40, 9, 7), dtype=np.uint8)
    labels = (np.arange(40) % 4).astype(np.uint8)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "in" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / str(label) / f"{index}.png")
    folder, _ = prepare(tmp_path, tmp_path / "in")
    idx, _ = prepare(tmp_path, tmp_path / "idx", source="idx", name="other")
    assert idx.manifest.content_digest == folder.manifest.content_digest
    assert sorted(idx.manifest.ids) == sorted(folder.manifest.ids)
    image = Image.fromarray(images[0])
    image.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    image.save(tmp_path / "in" / "0" / "0.png")
    assert prepare(tmp_path, tmp_path / "in")[0].manifest.content_digest != folder.manifest.content_digest
