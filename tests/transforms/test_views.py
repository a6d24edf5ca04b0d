"""Views for test-time augmentation, against torchvision's crops."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from tracked_cls.transforms.views import VIEWS, enlarged, resolution, views

RNG = np.random.default_rng(0)


def batch(side, channels=3, dtype=np.uint8):
    return (RNG.random((2, side, side, channels)) * 255).astype(dtype)


@pytest.mark.parametrize("size", [8, 27, 28, 32, 224])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("name", "theirs"), [("five_crop", reference.five_crop), ("ten_crop", reference.ten_crop)])
def test_crops_are_torchvisions(name, theirs, size, channels, dtype):
    images = batch(enlarged(size), channels, dtype)
    expected = torch.stack(theirs(torch.from_numpy(images).permute(0, 3, 1, 2), [size, size]), dim=1)
    np.testing.assert_array_equal(views(images, size, name), expected.permute(0, 1, 3, 4, 2).numpy())


def test_flip_shows_the_image_and_its_mirror():
    images = batch(10)
    seen = views(images, 10, "flip")
    np.testing.assert_array_equal(seen[:, 0], images)
    np.testing.assert_array_equal(seen[:, 1], images[:, :, ::-1])


def test_none_shows_the_image():
    images = batch(10)
    np.testing.assert_array_equal(views(images, 10, "none"), images[:, None])


def test_the_frames_of_a_clip_are_cut_alike():
    clips = (RNG.random((2, 4, 16, 16, 3)) * 255).astype(np.uint8)
    seen = views(clips, 14, "ten_crop")
    assert seen.shape == (2, 10, 4, 14, 14, 3)
    np.testing.assert_array_equal(seen[:, :, 2], views(clips[:, 2], 14, "ten_crop"))


@pytest.mark.parametrize(("size", "side"), [(224, 256), (28, 32), (32, 37), (8, 9)])
def test_crops_are_cut_from_an_eighth_more(size, side):
    assert enlarged(size) == side
    assert {name: resolution(name, size) for name in VIEWS} == {"none": size, "flip": size, "five_crop": side, "ten_crop": side}


def test_an_image_of_the_wrong_size_is_our_mistake():
    with pytest.raises(AssertionError):
        views(batch(10), 10, "five_crop")


def test_views_need_numpy_only():
    path = sys.modules["tracked_cls.transforms.views"].__file__
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('views', {path!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
