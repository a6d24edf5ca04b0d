"""Files that nobody should have to think about: bad ones and odd ones, each with what must become of it."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]
DEEP = RNG.integers(0, 65536, (6, 5, 3), dtype=np.uint16)


class Kind(NamedTuple):
    """A file of some kind. `wanted` is the code of its rejection, or its pixels, uint8 [H,W] or [H,W,C].

    `within` is how far pixels may be off, where the format is lossy; `note` is what the report must say was done to it.
    """

    content: bytes
    wanted: str | np.ndarray
    name: str = "{}.png"
    within: int = 0
    note: str | None = None


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def film(format: str, **options: object) -> bytes:
    frames = [Image.fromarray(np.roll(COLOUR, shift, axis=0)) for shift in range(4)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:], **options)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def oriented(orientation: object, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(TURNED, format, exif=exif, **({"quality": 95} if format == "JPEG" else {"lossless": True}))


def palette(transparency: object = None) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    return encode(image, **({} if transparency is None else {"transparency": transparency}))


def spoilt(data: bytes, position: int, bit: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


def without_adobe_marker(data: bytes) -> bytes:
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def second_frame_spoilt(data: bytes) -> bytes:
    """Put three bytes of nonsense for the pixels of a GIF's second frame; every block and the trailer stay as they were."""
    second = data.index(b"\x2c", data.index(b"\x21\xf9", data.index(b"\x2c") + 1500))
    start = second + 11 + 3 * (2 << (data[second + 9] & 7)) * (data[second + 9] >> 7)
    end = start
    while data[end]:
        end += data[end] + 1
    return data[:start] + b"\x03\x01\x02\x03\x00" + data[end + 1 :]


TURNED = np.zeros((16, 32, 3), np.uint8)
TURNED[:, :16] = (250, 0, 0)
JPEG, GIF, TIFF, WEBP = encode(COLOUR, "JPEG"), film("GIF"), film("TIFF"), encode(COLOUR, "WEBP", lossless=True)
PNG, BMP = encode(COLOUR), encode(COLOUR, "BMP")
CMYK = encode(Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK"), "JPEG", quality=95)
FLAT = np.full((16, 16, 3), (200, 60, 20), np.uint8)
HIDDEN = np.dstack([COLOUR, np.zeros((20, 30), np.uint8)])  # fully transparent: its colours must not show
WHITE = np.full((20, 30, 3), 255, np.uint8)
OF_GIF = np.asarray(Image.open(io.BytesIO(GIF)).convert("RGB"))
_BMP_HEAD = b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, *[0] * 6)
_GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
_GIF_FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\x00\x00\x3b"
_TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))

REJECTED = {
    "empty": Kind(b"", "E_EMPTY"),
    "text": Kind(b"hello, this is no image\n" * 9, "E_NOT_IMAGE"),
    "a page named png": Kind(b"<!DOCTYPE html><html><body>404</body></html>", "E_NOT_IMAGE"),
    "a drawing named jpg": Kind(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "E_NOT_IMAGE", "{}.jpg"),
    "a PDF": Kind(b"%PDF-1.7\n" + bytes(50), "E_NOT_IMAGE"),
    "an archive": Kind(b"PK\x03\x04" + bytes(50), "E_NOT_IMAGE"),
    "gzip": Kind(b"\x1f\x8b" + bytes(50), "E_NOT_IMAGE"),
    "HEIC named jpg": Kind(b"\0\0\0\x18ftypheic" + bytes(50), "E_NOT_IMAGE", "{}.jpg"),
    "an icon": Kind(b"\0\0\1\0" + bytes(50), "E_NOT_IMAGE"),
    "noise": Kind(bytes(range(256)), "E_NOT_IMAGE"),
    "half a PNG": Kind(PNG[: len(PNG) // 2], "E_TRUNCATED"),
    "a PNG without its end": Kind(PNG[:-12], "E_TRUNCATED"),
    "a PNG's signature": Kind(PNG[:8], "E_TRUNCATED"),
    "a PNG with a flipped bit": Kind(spoilt(PNG, len(PNG) // 2), "E_CORRUPT"),
    "a PNG with a flipped checksum": Kind(spoilt(PNG, len(PNG) - 14), "E_CORRUPT"),
    "a PNG without width": Kind(png(0, 4), "E_CORRUPT"),
    "a PNG without rows": Kind(png(4, 4), "E_TRUNCATED"),
    "half a JPEG": Kind(JPEG[: len(JPEG) // 2], "E_TRUNCATED", "{}.jpg"),
    "a JPEG without its last two bytes": Kind(JPEG[:-2], "E_TRUNCATED", "{}.jpg"),
    "a JPEG's header": Kind(JPEG[:20], "E_TRUNCATED", "{}.jpg"),
    "a GIF cut in its first frame": Kind(GIF[:900], "E_TRUNCATED", "{}.gif"),
    "a GIF cut in its last frame": Kind(GIF[:-50], "E_TRUNCATED", "{}.gif"),
    "a GIF without its end": Kind(GIF[:-1], "E_TRUNCATED", "{}.gif"),
    "a GIF whose second frame is damaged": Kind(second_frame_spoilt(GIF), "E_CORRUPT", "{}.gif"),
    "a cut WEBP": Kind(WEBP[:-9], "E_TRUNCATED", "{}.webp"),
    "an animated WEBP cut in its last frame": Kind(film("WEBP")[:-9], "E_TRUNCATED", "{}.webp"),
    "a cut BMP": Kind(BMP[:-99], "E_TRUNCATED", "{}.bmp"),
    "a cut TIFF": Kind(encode(COLOUR, "TIFF")[:700], "E_TRUNCATED", "{}.tif"),
    "a TIFF cut in its last page": Kind(TIFF[:-99], "E_TRUNCATED", "{}.tif"),
    "a TIFF cut between its pages": Kind(TIFF[: len(TIFF) // 2], "E_CORRUPT", "{}.tif"),
    "a PNG of 50,000 x 50,000": Kind(png(50_000, 50_000), "E_TOO_LARGE"),
    "a PNG of 10,000 x 10,000": Kind(png(10_000, 10_000), "E_TOO_LARGE"),
    "a BMP of 50,000 x 50,000": Kind(_BMP_HEAD + bytes(100), "E_TOO_LARGE", "{}.bmp"),
    "a GIF of 65,535 x 65,535": Kind(_GIF_HEAD + _GIF_FRAME, "E_TOO_LARGE", "{}.gif"),
    "a text of 20 MB in a PNG": Kind(png(1, 1, rows=bytes(2), extra=_TEXT_BOMB), "E_CORRUPT"),
    "a TIFF of floats": Kind(encode(np.ones((4, 4), np.float32), "TIFF"), "E_MODE", "{}.tif"),
    "a TIFF of 32-bit numbers": Kind(encode(np.ones((4, 4), np.int32), "TIFF"), "E_MODE", "{}.tif"),
}

DEEP_ROWS = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
ACCEPTED = {
    "one pixel": Kind(encode(GREY[:1, :1]), GREY[:1, :1]),
    "8 x 8": Kind(encode(GREY[:8, :8]), GREY[:8, :8]),
    "a strip": Kind(encode(np.tile(GREY[:1], 100)), np.tile(GREY[:1], 100)),
    "grey": Kind(encode(GREY), GREY),
    "one bit": Kind(encode(GREY > 128), np.where(GREY > 128, 255, 0).astype(np.uint8)),
    "16-bit grey": Kind(encode(DEEP[:, :, 0]), DEEP[:, :, 0] >> 8, note="16_bit_reduced"),
    "16-bit colour": Kind(png(5, 6, 16, 2, DEEP_ROWS), DEEP >> 8, note="16_bit_reduced"),
    "16-bit TIFF": Kind(encode(DEEP[:, :, 0], "TIFF"), DEEP[:, :, 0] >> 8, "{}.tif", note="16_bit_reduced"),
    "palette": Kind(palette(), np.uint8([[[10, 20, 30], [200, 0, 0]]]), note="palette_or_cmyk_to_rgb"),
    "palette, one entry transparent": Kind(palette(1), np.uint8([[[10, 20, 30], [255] * 3]]), note="transparency_on_white"),
    "palette, transparency by bytes": Kind(
        palette(b"\xff\x00"), np.uint8([[[10, 20, 30], [255] * 3]]), note="transparency_on_white"
    ),
    "fully transparent": Kind(encode(HIDDEN), WHITE, note="transparency_on_white"),
    "opaque alpha": Kind(encode(np.dstack([COLOUR, np.full((20, 30), 255, np.uint8)])), COLOUR),
    "grey and alpha": Kind(
        encode(np.dstack([GREY, np.where(GREY > 9, 255, 0)]).astype(np.uint8)), np.where(GREY > 9, GREY, 255)
    ),
    "a transparent colour": Kind(encode(Image.new("L", (2, 2), 9), transparency=9), np.full((2, 2), 255, np.uint8)),
    "CMYK, as Adobe inverts it": Kind(CMYK, FLAT, "{}.jpg", within=6, note="palette_or_cmyk_to_rgb"),
    "CMYK without Adobe's mark": Kind(without_adobe_marker(CMYK), FLAT, "{}.jpg", within=6, note="palette_or_cmyk_to_rgb"),
    "CMYK TIFF": Kind(encode(Image.fromarray(FLAT).convert("CMYK"), "TIFF"), FLAT, "{}.tif", within=6),
    "EXIF 6 in JPEG": Kind(oriented(6, "JPEG"), np.rot90(TURNED, -1), "{}.jpg", within=60, note="exif_rotated"),
    "EXIF 3 in WEBP": Kind(oriented(3, "WEBP"), np.rot90(TURNED, 2), "{}.webp", note="exif_rotated"),
    "EXIF with an orientation that is none": Kind(oriented(77, "WEBP"), TURNED, "{}.webp"),
    "damaged EXIF": Kind(encode(TURNED, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), TURNED, "{}.webp"),
    "animated GIF": Kind(GIF, OF_GIF, "{}.gif", note="first_frame_of_several"),
    "animated WEBP": Kind(film("WEBP", lossless=True), COLOUR, "{}.webp", note="first_frame_of_several"),
    "animated PNG": Kind(film("PNG"), COLOUR, note="first_frame_of_several"),
    "a TIFF of pages": Kind(TIFF, COLOUR, "{}.tif", note="first_frame_of_several"),
    "a PNG named jpg": Kind(PNG, COLOUR, "{}.jpg", note="wrong_extension"),
    "an upper-case ending": Kind(BMP, COLOUR, "{}.BMP"),
    "bytes behind the end of a PNG": Kind(PNG + b"more" * 9, COLOUR),
    "bytes behind the end of a BMP": Kind(BMP + bytes(100), COLOUR, "{}.bmp"),
    "a blank, a comma and a quote in the name": Kind(PNG, COLOUR, "{}, \"'=1.png"),
    "a line break in the name": Kind(PNG, COLOUR, "{}\n.png"),
    "other letters in the name": Kind(PNG, COLOUR, "{} 鸟 é.png"),
}


def put_special(folder: Path) -> dict[str, str]:
    """Make what is no plain file, or leads to none, in a folder; return the code by name."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket may have 107 characters
        listener.bind("socket.png")
        os.chdir(here)
    targets = {
        "device": "/dev/zero",
        "to pipe": "pipe.png",
        "to folder": "folder.png",
        "dangling": "nowhere",
        "circle": "circle.png",
    }
    for name, target in targets.items():
        (folder / f"{name}.png").symlink_to(target)
    codes = dict.fromkeys(("folder", "pipe", "socket", "device", "to pipe", "to folder"), "E_NOT_FILE")
    return {f"{name}.png": code for name, code in (codes | {"dangling": "E_LINK", "circle": "E_LINK"}).items()}


def put_links(folder: Path, outside: Path) -> list[str]:
    """Make links to a good image in a folder and outside of it; return their names."""
    for place in (folder, outside):
        (place / "original.png").write_bytes(PNG)
    (folder / "link.png").symlink_to("original.png")
    (folder / "leads out.png").symlink_to(outside / "original.png")
    return ["original.png", "link.png", "leads out.png"]
