"""One raw item to one checked record."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from tracked_cls.data.ingest import Plan, ingest_array, ingest_files

PLAN = Plan(image_size=8, channels=None, fit="crop", interpolation="bilinear", max_pixels=1000)


def test_the_pixel_digest_tells_shapes_apart_and_files_alike(tmp_path):
    wide, tall = np.full((3, 6), 9, np.uint8), np.full((6, 3), 9, np.uint8)
    assert ingest_array(wide, PLAN).pixel_digest != ingest_array(tall, PLAN).pixel_digest
    for name in ("a.png", "a.bmp"):
        Image.fromarray(wide).save(tmp_path / name)
    png, bmp = ingest_files([str(tmp_path / "a.png"), str(tmp_path / "a.bmp")], PLAN)
    assert png.pixel_digest == bmp.pixel_digest == ingest_array(wide, PLAN).pixel_digest
    assert png.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest() != bmp.sha256


def test_a_bad_item_is_a_rejection_and_the_others_go_on(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    bad, good = ingest_files([str(tmp_path / "bad.png"), str(tmp_path / "good.png")], PLAN)
    assert bad.code == "E_NOT_IMAGE"
    assert good.pixels.shape == (8, 8, 3)
    assert ingest_array(np.zeros((9, 9)), PLAN).code == "E_ARRAY"
