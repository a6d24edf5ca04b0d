"""Bytes to pixels: every mode has its rule, every bad input its code, and nothing but RejectedImage ever comes out."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from tracked_cls.data.decode import (
    RejectedImage,
    as_array,
    as_clip,
    decode,
    decode_frames,
    decode_noting,
    frames_of,
    header_shape,
    read_file,
)

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def animated(format):
    frames = [Image.fromarray(np.roll(COLOUR, shift, axis=0)) for shift in range(3)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:])


def code_of(call, *args):
    with pytest.raises(RejectedImage) as caught:
        call(*args)
    assert caught.value.reason in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
def test_lossless_formats_give_back_their_pixels(format, pixels):
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encode(Image.fromarray(pixels), format, **options))
    assert decoded.dtype == np.uint8
    expected = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if format == "WEBP" and pixels.ndim == 2:  # WEBP has no grey
        expected = np.repeat(expected, 3, axis=2)
    np.testing.assert_array_equal(decoded, expected)


def test_16_bit_grey_keeps_256_levels():
    ramp = (np.arange(256 * 4, dtype=np.uint16) * 64).reshape(16, 64)
    decoded = decode(encode(Image.fromarray(ramp)))
    assert len(np.unique(decoded)) == 256
    np.testing.assert_array_equal(decoded[:, :, 0], ramp // 256)


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_tiff_of_either_byte_order_keeps_its_high_byte(byte_order):
    mode = "I;16" if byte_order == "<u2" else "I;16B"
    ramp = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    image = Image.frombytes(mode, (8, 8), ramp.astype(byte_order).tobytes())
    np.testing.assert_array_equal(decode(encode(image, "TIFF"))[:, :, 0], ramp // 256)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_6_turns_the_image_clockwise(format):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = (250, 0, 0)  # red on the left belongs on top
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encode(Image.fromarray(pixels), format, exif=exif))
    assert decoded.shape == (32, 16, 3)
    assert decoded[4, 8, 0] > 200
    assert decoded[28, 8, 0] < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_agrees_with_pillow(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOUR), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_transparent_pixels_become_white_and_half_transparent_ones_mix():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :, 0] = 200  # the hidden colour must not show
    rgba[2:, :, 3] = 128
    decoded = decode(encode(Image.fromarray(rgba)))
    assert decoded.shape == (4, 4, 3)
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert np.abs(decoded[3, 0].astype(int) - [227, 127, 127]).max() <= 1


def test_grey_with_alpha_stays_grey_and_mixes_with_white():
    la = np.zeros((4, 4, 2), np.uint8)
    la[2:, :, 1] = 255
    decoded = decode(encode(Image.fromarray(la, "LA")))
    assert decoded.shape == (4, 4, 1)
    assert decoded[0, 0, 0] == 255
    assert decoded[3, 0, 0] == 0


def test_a_transparent_colour_key_becomes_white():
    assert decode(encode(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))).tolist() == [[[255] * 3] * 2] * 2
    assert decode(encode(Image.new("L", (2, 2), 9), transparency=9)).tolist() == [[[255]] * 2] * 2


def test_palette_becomes_rgb_even_if_its_colours_are_grey():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 250, 250, 250])
    image.putdata([0, 1, 2])
    assert decode(encode(image)).tolist() == [[[0, 0, 0], [10, 20, 30], [250, 250, 250]]]


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    assert decode(encode(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_one_bit_becomes_black_and_white():
    decoded = decode(encode(Image.fromarray(GREY > 128)))
    np.testing.assert_array_equal(decoded[:, :, 0], np.where(GREY > 128, 255, 0))


def test_cmyk_becomes_the_same_rgb():
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    decoded = decode(encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - flat).max() <= 6


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_an_agreed_range_are_rejected(dtype):
    assert code_of(decode, encode(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")) == "E_MODE"


def test_the_first_frame_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    assert decode(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]))[0, 0, 0] == 10


BAD = {
    "empty": (b"", "E_EMPTY", "empty"),
    "text": (b"hello, this is no image\n" * 9, "E_NOT_IMAGE", "text"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "E_NOT_IMAGE", "HTML"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "E_NOT_IMAGE", "SVG"),
    "pdf": (b"%PDF-1.7\n" + bytes(50), "E_NOT_IMAGE", "PDF"),
    "zip": (b"PK\x03\x04" + bytes(50), "E_NOT_IMAGE", "ZIP"),
    "noise": (bytes(range(256)), "E_NOT_IMAGE", "no image of a known format"),
    "png header only": (b"\x89PNG\r\n\x1a\n", "E_TRUNCATED", "PNG"),
}


@pytest.mark.parametrize(("data", "code", "word"), BAD.values(), ids=BAD)
def test_what_is_no_image_is_rejected_with_what_it_looks_like(data, code, word):
    with pytest.raises(RejectedImage, match=word) as caught:
        decode(data)
    assert caught.value.code == code


def png_that_claims(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 50_000])
def test_a_bomb_is_rejected_by_its_header(side):
    assert code_of(decode, png_that_claims(side, side)) == "E_TOO_LARGE"


def test_max_pixels_is_the_limit():
    data = encode(Image.fromarray(GREY))
    assert decode(data, max_pixels=600).shape == (20, 30, 1)
    assert code_of(decode, data, 599) == "E_TOO_LARGE"


FILES = {
    "PNG": encode(Image.fromarray(COLOUR)),
    "JPEG": encode(Image.fromarray(COLOUR), "JPEG"),
    "progressive JPEG": encode(Image.fromarray(COLOUR), "JPEG", progressive=True),
    "GIF": encode(Image.fromarray(COLOUR), "GIF"),
    "animated GIF": animated("GIF"),
    "WEBP": encode(Image.fromarray(COLOUR), "WEBP"),
    "animated WEBP": animated("WEBP"),
    "BMP": encode(Image.fromarray(COLOUR), "BMP"),
    "TIFF": encode(Image.fromarray(COLOUR), "TIFF"),
    "LZW TIFF": encode(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF tags
@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_cut_anywhere_is_rejected(data):
    for length in [*range(1, len(data) - 8, max(1, len(data) // 60)), len(data) - 8]:
        assert code_of(decode, data[:length]) in {"E_TRUNCATED", "E_CORRUPT", "E_NOT_IMAGE"}


@pytest.mark.parametrize("name", ["PNG", "JPEG", "animated GIF", "WEBP"])
def test_half_a_file_is_called_truncated(name):
    assert code_of(decode, FILES[name][: len(FILES[name]) // 2]) == "E_TRUNCATED"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF tags
@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_flipped_bits_give_an_image_or_a_rejection(data):
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 8])):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert decode(bytes(damaged), max_pixels=1_000_000).dtype == np.uint8
        except RejectedImage as error:
            assert error.code.startswith("E_")  # noqa: PT017 - either outcome is right, any other exception is not


def test_a_flipped_bit_in_a_png_never_goes_unseen():
    data = FILES["PNG"]
    rng = random.Random(1)
    for position in rng.sample(range(8, len(data)), 300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        code_of(decode, bytes(damaged))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_and_links_to_files_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"content")
    (tmp_path / "link.png").symlink_to("a.png")
    assert read_file(tmp_path / "a.png") == b"content"
    assert read_file(tmp_path / "link.png") == b"content"


def test_what_is_no_regular_file_is_rejected_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "link_to_pipe.png").symlink_to("pipe.png")
    codes = {path.stem: code_of(read_file, path) for path in tmp_path.iterdir()}
    assert codes == {
        "pipe": "E_NOT_FILE",
        "folder": "E_NOT_FILE",
        "link_to_pipe": "E_NOT_FILE",
        "dangling": "E_LINK",
        "circle": "E_LINK",
    }
    assert code_of(read_file, tmp_path / "missing.png") == "E_MISSING"
    assert header_shape(tmp_path / "pipe.png") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_rejected(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    assert code_of(read_file, path) == "E_PERMISSION"


def test_the_header_tells_height_width_and_channels(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["PNG"])
    assert header_shape(tmp_path / "a.png") == (20, 30, 3)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_uint8_arrays_get_a_channel_axis(shape):
    array = np.zeros(shape, np.uint8)
    assert as_array(array).shape == (5, 4, shape[2] if len(shape) == 3 else 1)


@pytest.mark.parametrize(
    "value",
    [np.zeros((5, 4)), np.zeros((5, 4, 2), np.uint8), np.zeros((1, 5, 4, 3), np.uint8), np.zeros((0, 4), np.uint8), [[1]]],
    ids=["float", "two channels", "batch", "no pixels", "list"],
)
def test_other_arrays_are_rejected_with_the_rule(value):
    with pytest.raises(RejectedImage, match="must be uint8 of shape"):
        as_array(value)


# ---- clips -----------------------------------------------------------------------------------------------------------


def film(format, num=5, side=4, **options):
    """Return an animated file whose frame number i is grey i * 40."""
    frames = [Image.new("RGB", (side, side), (index * 40,) * 3) for index in range(num)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
@pytest.mark.parametrize(
    ("count", "expected"), [(2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 0, 1, 2, 2, 2, 3, 4, 4])]
)
def test_frames_are_evenly_spaced_and_few_of_them_repeat(format, count, expected):
    clip = decode_frames(film(format, **({"lossless": True} if format == "WEBP" else {})), count)
    assert clip.shape == (count, 4, 4, 3) or clip.shape == (count, 4, 4, 1)
    assert (clip[:, 0, 0, 0] / 40).round().astype(int).tolist() == expected


def test_a_still_image_repeats_itself():
    clip = decode_frames(encode(Image.fromarray(COLOUR)), 3)
    np.testing.assert_array_equal(clip, np.stack([COLOUR] * 3))


def test_frames_of_different_sizes_are_rejected():
    pages = [Image.new("L", (4, 4)), Image.new("L", (5, 4))]
    assert code_of(decode_frames, encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 2) == "E_FRAMES"
    assert code_of(frames_of, [], 2) == "E_FRAMES"


def test_the_pixels_of_all_frames_together_are_bounded():
    data = film("GIF", num=20)
    assert decode_frames(data, 16, max_pixels=32).shape[0] == 16
    assert code_of(decode_frames, data, 17, 32) == "E_TOO_LARGE"
    assert code_of(decode_frames, data, 2, 15) == "E_TOO_LARGE"
    pages = [Image.new("L", (4, 4)), Image.new("L", (30, 30))]
    assert code_of(decode_frames, encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 2, 100) == "E_TOO_LARGE"


@pytest.mark.parametrize("name", ["animated GIF", "animated WEBP"])
def test_a_film_cut_short_is_rejected(name):
    assert code_of(decode_frames, FILES[name][: len(FILES[name]) // 2], 2) == "E_TRUNCATED"


def test_a_gif_is_loaded_to_its_last_frame_up_to_so_many_pixels(monkeypatch):
    loaded = []
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "load", lambda self: loaded.append(self.tell()) or self.load_prepare())
    decode(film("GIF"))
    assert max(loaded) == 4
    loaded.clear()
    decode(film("GIF", num=20), max_pixels=16)  # 4 x 4 pixels a frame, 8 times 16 in all
    assert max(loaded) == 7


def test_frames_of_grey_and_colour_become_colour():
    clip = frames_of([GREY[:, :, None], COLOUR], 2)
    np.testing.assert_array_equal(clip[0], np.repeat(GREY[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(clip[1], COLOUR)


def test_a_clip_may_be_an_array_of_frames_or_one_image():
    frames = np.stack([COLOUR, COLOUR[::-1]])
    np.testing.assert_array_equal(as_clip(frames, 2), frames)
    assert as_clip(GREY, 4).shape == (4, 20, 30, 1)
    assert code_of(as_clip, np.zeros((2, 4, 4, 2), np.uint8), 2) == "E_ARRAY"


# ---- what decoding changed -------------------------------------------------------------------------------------------


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(COLOUR), "JPEG", exif=exif)


def rgba(alpha):
    return encode(Image.fromarray(np.dstack([COLOUR, np.full((20, 30), alpha, np.uint8)])))


CHANGES = {
    "colour": (encode(Image.fromarray(COLOUR)), ()),
    "grey": (encode(Image.fromarray(GREY)), ()),
    "JPEG": (FILES["JPEG"], ()),
    "EXIF": (turned(), ("exif_rotated",)),
    "half transparent": (rgba(128), ("transparency_on_white",)),
    "opaque alpha": (rgba(255), ()),
    "colour key": (encode(Image.new("L", (2, 2), 9), transparency=9), ("transparency_on_white",)),
    "16-bit grey": (encode(Image.fromarray(np.ones((4, 4), np.uint16))), ("16_bit_reduced",)),
    "16-bit TIFF": (encode(Image.fromarray(np.ones((4, 4), np.uint16)), "TIFF"), ("16_bit_reduced",)),
    "palette": (encode(Image.fromarray(COLOUR).convert("P")), ("palette_or_cmyk_to_rgb",)),
    "CMYK": (encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), ("palette_or_cmyk_to_rgb",)),
    "LAB, whose A is no alpha": (encode(Image.new("LAB", (4, 4)), "TIFF"), ("palette_or_cmyk_to_rgb",)),
    "animated": (film("TIFF"), ("first_frame_of_several",)),
}


@pytest.mark.parametrize(("data", "changes"), CHANGES.values(), ids=CHANGES)
def test_what_decoding_changed_is_noted(data, changes):
    pixels, noted = decode_noting(data)
    assert noted == changes
    np.testing.assert_array_equal(pixels, decode(data))
