"""From a source to a prepared set, end to end."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracked_cls import preparation, tracking
from tracked_cls.config import DataConfig, PrepareConfig, TrackingConfig
from tracked_cls.data import cache, exchange, ingest, intake, sources
from tracked_cls.data.decode import RejectedImage, decode, read_file
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
    assert prepare(tmp_path, tmp_path / "in", duplicates="allow")[0].preprocess.std == (0.001,)


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
    assert list(first.manifest.paths) == list(second.manifest.paths)
    assert (first.folder / "pixels.npy").read_bytes() == (second.folder / "pixels.npy").read_bytes()


def test_decoding_in_processes_gives_the_same_bytes(tmp_path, monkeypatch):
    root = put(tmp_path / "in", num=20)
    (root / "cat" / "bad.png").write_text("no image")
    alone = prepare(tmp_path / "1", root, workers=1)[0]
    monkeypatch.setattr(intake, "CHUNK", 6)
    together = prepare(tmp_path / "2", root, workers=2)[0]
    assert together.manifest.digest == alone.manifest.digest
    assert (together.folder / "pixels.npy").read_bytes() == (alone.folder / "pixels.npy").read_bytes()
    assert json.loads((together.folder / "report.json").read_text())["rejected"][0]["path"] == "cat/bad.png"


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
import tracked_cls.data.sources, tracked_cls.data.cache, tracked_cls.report.data
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


# ---- what has not changed is not decoded again -----------------------------------------------------------------------


def contents(prepared, *, but=("report.json", "report.html", "COMPLETE")):
    return {path.name: path.read_bytes() for path in sorted(prepared.folder.iterdir()) if path.name not in but}


def report_of(prepared):
    return json.loads((prepared.folder / "report.json").read_text())


def counts_of_work(prepared):
    report = report_of(prepared)
    return report["decoded"], report["reused"]


def add(root):
    Image.fromarray(RNG.integers(0, 256, (14, 14, 3), dtype=np.uint8)).save(root / "cat" / "00.png")


def remove(root):
    (root / "dog" / "3.png").unlink()


def change(root):
    Image.fromarray(RNG.integers(0, 256, (12, 10), dtype=np.uint8)).save(root / "dog" / "3.png")
    os.utime(root / "dog" / "3.png", (0, 0))


def damage(root):
    (root / "dog" / "3.png").write_text("no image")


def nothing(root):
    (root / "cat" / "notes.txt").write_text("x")


REUSES = {
    "added, in colour": (add, {}, (1, 17)),
    "removed": (remove, {}, (0, 16)),
    "changed": (change, {}, (1, 16)),
    "damaged": (damage, {}, (1, 16)),
    "another split seed": (nothing, {"split_seed": 3}, (0, 17)),
    "another split": (nothing, {"split": "hash", "val_fraction": 0.3}, (0, 17)),
    "another size": (nothing, {"image_size": 9}, (17, 0)),
    "other channels": (nothing, {"channels": 3}, (17, 0)),
}


@pytest.mark.parametrize("kind", ["pixels", "files"])
@pytest.mark.parametrize(("change", "options", "work"), REUSES.values(), ids=REUSES)
def test_what_has_not_changed_is_taken_over_and_the_result_is_that_of_a_fresh_start(tmp_path, change, options, work, kind):
    root = put(tmp_path / "in")
    (root / "cat" / "bad.png").write_text("no image")
    prepare(tmp_path / "1", root, image_size=10, cache=kind)
    change(root)
    options = {"image_size": 10, "cache": kind, **options}
    reusing, fresh = prepare(tmp_path / "1", root, **options)[0], prepare(tmp_path / "2", root, **options)[0]
    assert counts_of_work(reusing) == work
    assert counts_of_work(fresh) == (sum(work), 0)
    assert reusing.manifest.digest == fresh.manifest.digest
    assert contents(reusing) == contents(fresh)
    for key in ("rejected", "changed", "original_sizes", "duplicates"):
        assert report_of(reusing)[key] == report_of(fresh)[key]


def test_arrays_of_an_unchanged_source_are_taken_over_too(tmp_path):
    prepare(tmp_path)
    assert counts_of_work(prepare(tmp_path, split_seed=1)[0]) == (0, 1797)


def test_a_chain_of_additions_decodes_each_image_once(tmp_path):
    root = put(tmp_path / "in")
    for index in range(3):
        Image.new("RGB", (12, 12), (index * 50, 9, 9)).save(root / "cat" / f"new-{index}.png")
        prepared, _ = prepare(tmp_path, root)
        assert counts_of_work(prepared) == ((17, 0), (1, 17), (1, 18))[index]
    assert contents(prepared) == contents(prepare(tmp_path / "fresh", root)[0])


@pytest.mark.parametrize("name", ["pixels.npy", "intake.parquet", "meta.json", "manifest.parquet", "COMPLETE"])
def test_a_damaged_earlier_set_spoils_nothing(tmp_path, name):
    root = put(tmp_path / "in", num=12)
    first, _ = prepare(tmp_path, root)
    data = bytearray((first.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (first.folder / name).write_bytes(data)
    second, _ = prepare(tmp_path, root, split_seed=1)
    assert counts_of_work(second) == (24, 0)
    assert contents(second) == contents(prepare(tmp_path / "fresh", root, split_seed=1)[0])


def test_an_image_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    root = put(tmp_path / "in")

    def fail_once(path):
        if path.endswith("cat/0.png"):
            raise RejectedImage("E_READ", "the network is down")
        return read_file(path)

    class InThisProcess(contextlib.nullcontext):
        def __init__(self, work, num, limits):
            super().__init__(self)
            self.submit = lambda paths: partial(work, paths)

    with monkeypatch.context() as patch:
        patch.setattr(intake, "Decoders", InThisProcess)
        patch.setattr(ingest, "read_file", fail_once)
        assert len(prepare(tmp_path, root)[0].manifest) == 15
    again, _ = prepare(tmp_path, root, split_seed=1)
    assert len(again.manifest) == 16
    assert counts_of_work(again) == (1, 15)


# ---- the cache of files ----------------------------------------------------------------------------------------------


def test_a_cache_of_files_gives_the_whole_photo_and_what_the_model_sees(tmp_path):
    root = put(tmp_path / "in", shape=(40, 30, 3), suffix="jpg")
    Image.new("L", (31, 31), 99).save(root / "cat" / "grey.jpg")
    files, pixels = (prepare(tmp_path, root, cache=kind, image_size=20)[0] for kind in ("files", "pixels"))
    assert (files.pixels, pixels.files) == (None, None)
    assert files.manifest.digest == pixels.manifest.digest
    assert files.preprocess == pixels.preprocess
    np.testing.assert_array_equal(files.sized([3, 16, 0]), pixels.sized([3, 16, 0]))
    for index, path in enumerate(files.manifest.paths):
        assert files.files.read(index) == (root / path).read_bytes()
        np.testing.assert_array_equal(files.original(index), decode((root / path).read_bytes()))
        np.testing.assert_array_equal(pixels.original(index), pixels.pixels[index])
    assert (files.image_size, files.num_channels, files.frames) == (20, 3, None)


def test_arrays_are_kept_as_lossless_files(tmp_path):
    files, pixels = (prepare(tmp_path, cache=kind)[0] for kind in ("files", "pixels"))
    some = [0, 700, 1796]
    np.testing.assert_array_equal(files.sized(some), pixels.sized(some))
    assert files.original(0).shape == (8, 8, 1)


def test_the_automatic_cache_is_of_pixels_up_to_the_limit(tmp_path):
    root = put(tmp_path / "in")
    at_most = 16 * 9 * 9  # the images are grey
    assert prepare(tmp_path, root, image_size=9, cache_limit_bytes=at_most)[0].files is None
    assert prepare(tmp_path, root, image_size=9, cache_limit_bytes=at_most - 1)[0].pixels is None


def test_a_changed_file_in_the_cache_is_refused(tmp_path):
    prepared, _ = prepare(tmp_path, put(tmp_path / "in"), cache="files")
    shard = prepared.folder / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00000\.bin: image 15 has changed"):
        prepared.sized([15])
    with pytest.raises(UserError, match=r"shard-00000\.bin: its content has changed"):
        cache.verify_prepared(prepared.folder)


# ---- clips -----------------------------------------------------------------------------------------------------------


def put_clips(root, num=6):
    for label, base in (("left", 0), ("right", 100)):
        (root / label).mkdir(parents=True)
        for index in range(num):
            frames = [Image.new("RGB", (10, 10), (base + index, 10 * frame, 0)) for frame in range(5)]
            if index % 2:
                frames[0].save(root / label / f"{index}.tif", save_all=True, append_images=frames[1:])
                continue
            (root / label / str(index)).mkdir()
            for number, frame in enumerate(frames):
                frame.save(root / label / str(index) / f"{number}.png")
    return root


def test_films_and_folders_of_frames_become_clips(tmp_path):
    root = put_clips(tmp_path / "in")
    prepared, _ = prepare(tmp_path, root, frames=3, image_size=8)
    assert prepared.pixels.shape == (12, 3, 8, 8, 3)
    assert prepared.frames == prepared.preprocess.frames == 3
    np.testing.assert_array_equal(prepared.pixels[:, :, 0, 0, 1], [[0, 20, 40]] * 12)
    np.testing.assert_array_equal(prepared.sized([2, 1]), prepared.pixels[[2, 1]])
    train = prepared.pixels[prepared.manifest.indices("train")] / 255
    np.testing.assert_allclose(prepared.preprocess.mean, train.mean(axis=(0, 1, 2, 3)), rtol=1e-12)
    again, _ = prepare(tmp_path, root, frames=3, image_size=8, split_seed=1)
    assert counts_of_work(again) == (0, 12)
    assert prepare(tmp_path, root, frames=2, image_size=8)[0].manifest.digest != prepared.manifest.digest


def test_clips_are_not_kept_as_files(tmp_path):
    root = put_clips(tmp_path / "in")
    with pytest.raises(UserError, match=r"data\.cache=files does not go with data\.frames"):
        prepare(tmp_path, root, frames=3, cache="files")
    with pytest.raises(UserError, match=r"the clips take .* bytes, more than data\.cache_limit_bytes \(99\)"):
        prepare(tmp_path, root, frames=3, cache_limit_bytes=99)


# ---- labels, weights, groups, folds ----------------------------------------------------------------------------------


def put_table(root, rows):
    (root / "images").mkdir(parents=True)
    for index, _ in enumerate(rows):
        Image.fromarray(RNG.integers(0, 256, (9, 9), dtype=np.uint8)).save(root / "images" / f"{index}.png")
    lines = ["path,label,group,weight", *(f"images/{index}.png,{row}" for index, row in enumerate(rows))]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


def test_several_labels_weights_and_groups_reach_the_manifest(tmp_path):
    rows = [f"{('a|b', 'b', '', 'a')[index % 4]},{'g' if index < 3 else ''},{index % 3 / 2}" for index in range(40)]
    root = put_table(tmp_path / "in", rows)
    prepared, _ = prepare(tmp_path, root, source="csv", multi_label=True)
    manifest = prepared.manifest
    by_path = {path: index for index, path in enumerate(manifest.paths)}
    order = [by_path[f"images/{index}.png"] for index in range(40)]
    np.testing.assert_array_equal(manifest.labels[order][:4], [[1, 1], [0, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(manifest.weights[order][:4], np.array([0, 0.5, 1, 0], np.float32))
    assert [manifest.groups[index] for index in order[:4]] == ["g", "g", "g", ""]
    assert len({int(manifest.splits[index]) for index in order[:3]}) == 1


def test_folds_are_views_of_one_prepared_set(tmp_path):
    root = put(tmp_path / "in", num=20)
    views = [prepare(tmp_path, root, folds=4, fold=fold) for fold in range(4)]
    plain = prepare(tmp_path, root)
    assert {prepared.folder for prepared, _ in [*views, plain]} == {plain[0].folder}
    assert [is_new for _, is_new in views] == [True, False, False, False]
    store, source = tmp_path / "data", sources.scan(DataConfig(source="folder", root=str(root), name="set"), root)
    cfg = DataConfig(source="folder", root=str(root), name="set", folds=4)
    found = [preparation.find(cfg.model_copy(update={"fold": fold}), store, source).manifest for fold in (None, 0, 1, 2, 3)]
    assert found[0].digest == found[1].digest
    pool = np.sort(np.concatenate([manifest.indices("val") for manifest in found[1:]]))
    np.testing.assert_array_equal(pool, np.flatnonzero(plain[0].manifest.splits != 2))


# ---- out again, as folders -------------------------------------------------------------------------------------------


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_an_export_that_is_imported_again_has_the_same_content(tmp_path, kind):
    prepared, _ = prepare(tmp_path, image_size=8, cache=kind)
    exchange.export_folder(prepared, tmp_path / "out")
    again, _ = prepare(tmp_path / "2", tmp_path / "out", image_size=8, name="digits")
    assert again.manifest.content_digest == prepared.manifest.content_digest
    assert again.manifest.counts() == prepared.manifest.counts()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_a_cache_of_files_is_exported_as_the_files_were(tmp_path):
    root = put(tmp_path / "in", shape=(20, 30, 3), suffix="jpg")
    prepared, _ = prepare(tmp_path, root, cache="files")
    exchange.export_folder(prepared, tmp_path / "out")
    written = {(tmp_path / "out" / name).read_bytes() for name in names_below(tmp_path / "out")}
    assert written == {path.read_bytes() for path in root.rglob("*.jpg")}
    assert {name.split("/")[0] for name in names_below(tmp_path / "out")} == {"train", "val", "test"}
    assert all(name.endswith(".jpg") for name in names_below(tmp_path / "out"))


REFUSED = {
    "slash": ({"classes": ["a/b"]}, "class 'a/b' cannot name a folder"),
    "dot": ({"classes": ["."]}, r"class '\.' cannot"),
    "hidden": ({"classes": ["a", ".b"]}, r"class '\.b' cannot"),
    "empty": ({"classes": [""]}, "class '' cannot"),
    "several labels": ({"multi_label": True}, "several labels belongs to several folders"),
    "clips": ({"frames": 3}, "a clip is no image"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_told(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        exchange.check_export(tmp_path / "out", **{"classes": ["a", "b"], "multi_label": False, "frames": None, **change})


def test_an_export_never_writes_into_what_is_there(tmp_path):
    about = {"classes": ["a", "b"], "multi_label": False, "frames": None}
    (tmp_path / "empty").mkdir()
    exchange.check_export(tmp_path / "empty", **about)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name in ("full", "full/x"):
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            exchange.check_export(tmp_path / name, **about)


# ---- the use case ----------------------------------------------------------------------------------------------------


def test_a_preparation_tells_what_it_did_and_logs_what_it_left_out(tmp_path, store):
    root = put(tmp_path / "in")
    (root / "cat" / 'odd, "name".png').write_text("no image")
    (tmp_path / "out").mkdir()
    data = DataConfig(source="folder", root=str(root), name="told", store=str(tmp_path / "data"))
    cfg = PrepareConfig(data=data, tracking=TrackingConfig(uri=store[1]), export=str(tmp_path / "out"))
    with tracking.open_tracker(cfg.tracking) as tracker:
        made = preparation.run(cfg, tracker)
        run_id = made.url.split("/runs/")[1].split("?")[0]
        path = tracker.client.download_artifacts(run_id, "tables/rejected.csv", str(tmp_path))
        again = preparation.run(PrepareConfig(data=data.model_copy(update={"split_seed": 1}), tracking=cfg.tracking), tracker)
    rows = list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["path", "code", "reason", "action"]
    assert (rows[1][0], rows[1][1], rows[1][3]) == ('cat/odd, "name".png', "E_NOT_IMAGE", "left out")
    assert f"  export: {tmp_path / 'out'}" in preparation.lines(made)
    assert len(names_below(tmp_path / "out")) == 16
    assert "  decoded 0; 17 unchanged since the last preparation" in preparation.lines(again)


def test_a_source_file_that_changed_behind_its_time_is_named_on_request(tmp_path, store):
    root = put(tmp_path / "in")
    data = DataConfig(source="folder", root=str(root), name="bits", store=str(tmp_path / "data"))
    cfg = PrepareConfig(data=data, tracking=TrackingConfig(uri=store[1]), verify=True)
    path = root / "cat" / "1.png"
    with tracking.open_tracker(cfg.tracking) as tracker:
        preparation.run(cfg, tracker)
        assert not preparation.run(cfg, tracker).is_new
        times, content = path.stat(), bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(UserError, match=r"1 of 16 files of .* have changed .*: cat/1.png: its content has changed"):
            preparation.run(cfg, tracker)


def test_tables_and_other_places_are_found(tmp_path, store):
    root = put_table(tmp_path / "in", [f"{'ab'[index % 2]},,1" for index in range(20)])
    put(tmp_path / "other", classes=("a", "b"))
    cfg = TrackingConfig(uri=store[1])
    below = DataConfig(
        source="csv", root=str(root), table="list.csv", test={"source": "folder", "root": str(tmp_path / "other")}
    )
    found = preparation.scan_input(below, cfg)
    assert sum(sample.split == "test" for sample in found.samples) == 16
    assert len(found.samples) == 36
    alone = DataConfig(source="csv", table=str(root / "list.csv"))
    assert len(preparation.scan_input(alone, cfg).samples) == 20
    with pytest.raises(UserError, match=r"data\.table: 'nowhere\.csv' does not exist"):
        preparation.scan_input(DataConfig(source="csv", table="nowhere.csv"), cfg)
    with pytest.raises(UserError, match=r"data\.test\.root: 'nowhere' does not exist"):
        preparation.scan_input(DataConfig(test={"source": "folder", "root": "nowhere"}), cfg)
