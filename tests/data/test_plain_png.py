"""The short way for plain PNGs gives what the long one gives: pixels, codes and reasons."""

import io

import numpy as np
import pytest
from PIL import Image

from tracked_cls.data import decode


def _png(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, "PNG", **options)
    return stream.getvalue()


def _cut(data):
    return data[: len(data) // 2]


def _flipped(data):
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "change", [lambda data: data, lambda data: data + b"tail", _cut, _flipped], ids=["sound", "tail", "cut", "bit"]
)
def test_plain_png_is_decoded_as_any_other_file(channels, change, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, channels), np.uint8)
    data = change(_png(pixels))

    def outcome():
        try:
            return decode.decode_noting(data)[0].tolist()
        except decode.RejectedImage as error:
            return error.code, error.reason

    short = outcome()
    monkeypatch.setattr(decode, "_plain_png", lambda *args: None)
    assert outcome() == short


def test_a_sound_plain_png_takes_the_short_way():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, 1), np.uint8)
    assert np.array_equal(decode._plain_png(_png(pixels), 64_000_000), pixels)
    assert decode._plain_png(_png(pixels, dpi=(300, 300)), 64_000_000) is None
    assert decode._plain_png(_png(pixels), 28 * 20 - 1) is None
