"""Pixels to a model's input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_image_of_the_right_size_stays_as_it_is(fit):
    np.testing.assert_array_equal(Geometry(24, 3, fit).apply(COLOUR), COLOUR)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 90, 3), (90, 5, 1), (33, 32, 3), (1, 20_000, 1)])
def test_any_shape_becomes_square(fit, interpolation, shape):
    pixels = np.full(shape, 77, np.uint8)
    for channels in (1, 3):
        result = Geometry(16, channels, fit, interpolation).apply(pixels)
        assert result.shape == (16, 16, channels)
        assert result.dtype == np.uint8
        assert result.max() == 77


def test_crop_keeps_the_middle_square():
    pixels = np.zeros((4, 12, 1), np.uint8)
    pixels[:, 4:8] = 255
    assert (Geometry(4, 1, "crop").apply(pixels) == 255).all()


def test_pad_keeps_the_shape_between_black_bars():
    padded = Geometry(8, 1, "pad").apply(np.full((4, 8, 1), 255, np.uint8))
    assert padded[:, 0, 0].tolist() == [0, 0, 255, 255, 255, 255, 0, 0]


def test_stretch_fills_the_square():
    assert (Geometry(8, 1, "stretch").apply(np.full((2, 9, 1), 255, np.uint8)) == 255).all()


def test_shrinking_is_antialiased_and_agrees_with_pillow():
    expected = np.asarray(Image.fromarray(COLOUR).resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Geometry(8, 3, "stretch", "bicubic").apply(COLOUR), expected)
    stripes = np.tile(np.array([[0], [255]], np.uint8), (32, 64))[:, :, None]
    assert 120 < Geometry(8, 1).apply(stripes)[4, 4, 0] < 135


def test_grey_is_repeated_and_colour_weighted_by_luminance():
    grey = COLOUR[:, :, :1]
    np.testing.assert_array_equal(Geometry(12, 3).apply(grey), np.repeat(Geometry(12, 1).apply(grey), 3, axis=2))
    expected = np.asarray(Image.fromarray(COLOUR).convert("L"))
    np.testing.assert_array_equal(Geometry(24, 1).apply(COLOUR)[:, :, 0], expected)


def test_normalise_is_x_over_255_minus_mean_over_std_channels_first():
    preprocess = Preprocess(Geometry(24, 3), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normal = preprocess.normalise(COLOUR[None])
    assert normal.dtype == np.float32
    expected = (COLOUR / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(normal[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_the_description_survives_json():
    preprocess = Preprocess(Geometry(24, 1, "pad", "lanczos"), mean=(0.1,), std=(1 / 3,))
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "change",
    [{"rotation": 1}, {"fit": "warp"}, {"mean": [0.1, 0.2]}, {"std": [0.0]}, {"image_size": "big"}, {"channels": 2}],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_description_is_refused(change):
    good = Preprocess(Geometry(24, 1), mean=(0.1,), std=(0.2,)).to_dict()
    with pytest.raises(UserError):
        Preprocess.from_dict({**good, **change})


def test_a_description_that_lacks_a_key_is_refused():
    good = Preprocess(Geometry(24, 1), mean=(0.1,), std=(0.2,)).to_dict()
    del good["fit"]
    with pytest.raises(UserError, match="fit"):
        Preprocess.from_dict(good)
