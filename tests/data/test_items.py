"""Images on their way from the cache to a network."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tracked_cls.data.items import channels_first


@pytest.mark.parametrize("writable", [True, False])
def test_a_transform_may_write_into_an_image_but_never_into_the_cache(tmp_path, writable):
    np.save(tmp_path / "pixels.npy", np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="c" if writable else "r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that may not be written
        image = channels_first(pixels[1])
    assert image.shape == (3, 2, 2)
    assert image[1].tolist() == [[13, 16], [19, 22]]
    assert image.stride() == (1, 6, 3), "channels last in memory"
    if not writable:
        image.zero_()
        assert pixels[1].any()
