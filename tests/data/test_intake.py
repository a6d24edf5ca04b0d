"""Samples in, outcomes out: files, arrays and known ones mixed, in the order of the source."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tracked_cls.data import intake
from tracked_cls.data.decode import RejectedImage
from tracked_cls.data.ingest import Plan, Record
from tracked_cls.data.intake import first_look, take_in
from tracked_cls.data.sources import Sample, Source

PLAN = Plan(image_size=4, channels=None, fit="crop", interpolation="nearest", max_pixels=10_000)


class Mixed(Source):
    """Even samples are files, odd ones arrays; the pixels of number i are i."""

    def __init__(self, root, num=20, shape=(4, 4)):
        super().__init__("mixed", "print")
        self.root, self.num, self.shape = root, num, shape
        self.read = []
        for index in range(0, num, 2):
            Image.fromarray(np.full(shape, index, np.uint8)).save(root / f"{index:02d}.png")

    def _list(self):
        return [Sample(f"{index:02d}.png", (f"class-{index % 3}",)) for index in range(self.num)]

    def path_of(self, sample):
        return None if int(sample.path[:2]) % 2 else str(self.root / sample.path)

    def array(self, sample):
        self.read.append(sample.path)
        if sample.path == "05.png":
            raise RejectedImage("E_CORRUPT", "broken")
        return np.full(self.shape, int(sample.path[:2]), np.uint8)

    def stamp(self, sample):
        return None


def numbers(kept):
    return [data[0] for data in kept]


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("workers", [1, 2])
def test_files_and_arrays_keep_their_order(tmp_path, monkeypatch, chunk, workers):
    monkeypatch.setattr(intake, "CHUNK", chunk)
    source, kept = Mixed(tmp_path), []
    (tmp_path / "08.png").write_text("no image")
    taken = take_in(source, PLAN, workers=workers, keep=kept.append)
    expected = [index for index in range(20) if index not in (5, 8)]
    assert numbers(kept) == expected
    assert [sample.path for sample in taken.samples] == [f"{index:02d}.png" for index in expected]
    assert [(path, code) for path, code, _ in taken.rejected] == [("05.png", "E_CORRUPT"), ("08.png", "E_NOT_IMAGE")]
    assert len(taken.sha256) == len(taken.pixel_digests) == len(taken.shapes) == len(taken.sums) == 18


def test_what_is_known_is_neither_decoded_nor_read(tmp_path):
    source, kept = Mixed(tmp_path), []
    known = {path: Record(b"\xff" * 16, "f", "p", (4, 4, 1), ((1, 1),)) for path in ("03.png", "04.png")}
    (tmp_path / "04.png").unlink()
    take_in(source, PLAN, workers=1, keep=kept.append, known=known)
    assert numbers(kept) == [0, 1, 2, 255, 255, *range(6, 20)]
    assert "03.png" not in source.read


def test_what_decoding_changed_is_counted_with_examples(tmp_path):
    source = Mixed(tmp_path)
    for index in range(0, 18, 2):
        Image.new("P", (4, 4)).save(tmp_path / f"{index:02d}.png")
    taken = take_in(source, PLAN, workers=1, keep=lambda _: None)
    assert taken.changes == [(f"{index:02d}.png", "palette_or_cmyk_to_rgb") for index in range(0, 18, 2)]
    assert taken.changed() == {
        "palette_or_cmyk_to_rgb": {"count": 9, "examples": ["00.png", "02.png", "04.png", "06.png", "08.png"]}
    }


@pytest.mark.parametrize(("shape", "side", "channels"), [((9, 9), 32, 1), ((30, 40), 30, 1), ((300, 400, 3), 224, 3)])
def test_the_first_look_tells_side_and_channels(tmp_path, shape, side, channels):
    assert first_look(Mixed(tmp_path, shape=shape)) == (side, channels)


def test_the_first_look_opens_folders_of_frames(tmp_path):
    source = Mixed(tmp_path, num=4)
    for index in (0, 2):
        (tmp_path / f"{index:02d}.png").unlink()
        (tmp_path / f"{index:02d}.png").mkdir()
        Image.new("RGB", (90, 80)).save(tmp_path / f"{index:02d}.png" / "1.png")
    source.array = lambda sample: np.zeros((5, 80, 90, 3), np.uint8)
    assert first_look(source) == (80, 3)


def test_tasks_are_smaller_where_images_are_large():
    sizes = [intake._chunk_size(Plan(side, None, "crop", "nearest", 1, frames)) for side, frames in ((28, None), (224, 32))]
    assert sizes[0] == intake.CHUNK
    assert 1 <= sizes[1] < 20
