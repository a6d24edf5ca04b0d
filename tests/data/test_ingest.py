"""One raw item to one checked record."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tracked_cls.data.decode import decode
from tracked_cls.data.ingest import Plan, digest_of_pixels, digests, header_shapes, ingest_array, ingest_files
from tracked_cls.data.preprocess import Geometry
from tracked_cls.data.reading import read

PLAN = Plan(image_size=8, channels=None, fit="crop", interpolation="bilinear", max_pixels=1000)
COLOUR = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_the_pixel_digest_tells_shapes_apart_and_files_alike(tmp_path):
    wide, tall = np.full((3, 6), 9, np.uint8), np.full((6, 3), 9, np.uint8)
    assert ingest_array(wide, PLAN).pixel_digest != ingest_array(tall, PLAN).pixel_digest
    for name in ("a.png", "a.bmp"):
        Image.fromarray(wide).save(tmp_path / name)
    png, bmp = ingest_files([str(tmp_path / "a.png"), str(tmp_path / "a.bmp")], PLAN)
    assert png.pixel_digest == bmp.pixel_digest == ingest_array(wide, PLAN).pixel_digest
    assert png.sha256 == sha256((tmp_path / "a.png").read_bytes()) != bmp.sha256


def test_a_bad_item_is_a_rejection_and_the_others_go_on(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    bad, good = ingest_files([str(tmp_path / "bad.png"), str(tmp_path / "good.png")], PLAN)
    assert bad.code == "E_NOT_IMAGE"
    assert len(good.kept) == 8 * 8 * 3
    assert ingest_array(np.zeros((9, 9)), PLAN).code == "E_ARRAY"


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("pixels", [COLOUR, COLOUR[:, :, 0]], ids=["colour", "grey"])
def test_sums_are_those_of_the_sized_pixels(pixels, frames):
    record = ingest_array(pixels, replace(PLAN, frames=frames))
    sized = np.frombuffer(record.kept, np.uint8).reshape(-1, record.shape[2]).astype(int)
    assert record.sums == tuple(zip(sized.sum(axis=0).tolist(), (sized**2).sum(axis=0).tolist(), strict=True))


def test_a_cache_of_files_keeps_the_file_or_a_lossless_copy_of_the_array(tmp_path):
    plan = replace(PLAN, keep="files")
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
    [record] = ingest_files([str(tmp_path / "a.jpg")], plan)
    assert record.kept == (tmp_path / "a.jpg").read_bytes()
    for pixels in (COLOUR, COLOUR[:, :, :1]):
        record = ingest_array(pixels, plan)
        np.testing.assert_array_equal(decode(record.kept), pixels)
        assert record.sha256 == sha256(pixels.tobytes())


def test_a_folder_of_frames_is_one_item(tmp_path):
    for index in range(11):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    [record] = ingest_files([str(tmp_path)], replace(PLAN, frames=3))
    clip = np.frombuffer(record.kept, np.uint8).reshape(3, 8, 8, 1)
    assert clip[:, 0, 0, 0].tolist() == [0, 5, 10]
    assert record.pixel_digest == digest_of_pixels(clip)
    files = [(tmp_path / f"{index}.png").read_bytes() for index in range(11)]
    assert record.sha256 == sha256("".join(map(sha256, files)).encode())
    assert record.shape == (8, 8, 1)


def test_a_folder_with_a_bad_frame_or_with_none_is_a_rejection(tmp_path):
    plan = replace(PLAN, frames=2)
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "bad" / "1.png")
    (tmp_path / "bad" / "2.png").write_text("no image")
    codes = [outcome.code for outcome in ingest_files([str(tmp_path / "empty"), str(tmp_path / "bad")], plan)]
    assert codes == ["E_FRAMES", "E_NOT_IMAGE"]


def test_a_name_that_promises_another_format_is_noted(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for name in ("b.jpg", "c.PNG", "d"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    records = ingest_files([str(tmp_path / name) for name in ("a.png", "b.jpg", "c.PNG", "d")], PLAN)
    assert [record.changes for record in records] == [(), ("wrong_extension",), (), ()]


def test_an_array_below_the_least_side_is_a_rejection():
    assert ingest_array(COLOUR, replace(PLAN, min_side=9)).shape == (9, 12, 3)
    assert ingest_array(COLOUR, replace(PLAN, min_side=10)).code == "E_TOO_SMALL"


@pytest.mark.parametrize("frames", [None, 3])
def test_what_a_classifier_is_asked_is_what_was_prepared(tmp_path, frames):
    (tmp_path / "clip").mkdir()
    for index in range(5):
        Image.fromarray(np.roll(COLOUR, index, axis=0)).save(tmp_path / "clip" / f"{index}.png")
    path = str(tmp_path / "clip") if frames else str(tmp_path / "clip" / "0.png")
    [record] = ingest_files([path], replace(PLAN, frames=frames))
    [sized] = read([path], frames, Geometry(8, 3), digests=True)
    assert record.kept == sized.pixels.tobytes()
    [whole] = read([path], frames, None, digests=False)
    assert record.pixel_digest == digest_of_pixels(whole.pixels)
    assert digests([path]) == [record.sha256] == [sized.sha256]
    assert header_shapes([path]) == [(9, 12, 3)]
