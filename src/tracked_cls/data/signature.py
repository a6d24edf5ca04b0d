"""What the bytes of a file look like, and the damage that Pillow does not see.

Shipped with every registered model: standard library only.
"""

from __future__ import annotations

import struct
import zlib

from ..errors import UserError  # noqa: TID252 - travels with models under another package name

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FORMAT_OF_EXTENSION = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip


class RejectedImage(UserError):  # noqa: N818 - it names the image's fate
    """An image that cannot be used: `code` for machines (``E_TRUNCATED``), `reason` as one sentence for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


# ---- what the bytes look like ----------------------------------------------------------------------------------------

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"8BPS", "a Photoshop file"),
)


def sniff(data: bytes) -> str:
    """Return what the first bytes look like: ``PNG``, ``HTML``, ``text``, ..., or an empty string."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video"
    return _sniff_text(data[:512])


def _sniff_text(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if start.startswith(b"<?xml"):
        return "XML"
    is_text = all(byte in b"\t\r\n" or byte >= 32 for byte in head) and b"\x7f" not in head
    return "text" if is_text and head.decode("utf-8", "ignore") else ""


def unidentified(kind: str, data: bytes) -> RejectedImage:
    """Return the rejection of a file of some kind (as `sniff` told) that Pillow cannot identify."""
    if kind == "JPEG" and b"\xff\xd9" not in data:
        return _cut_short(kind)
    if kind in FORMATS:
        return RejectedImage("E_CORRUPT", f"the file starts like {kind}, but its header cannot be read")
    looks = f"; it starts like {kind}" if kind else ""
    return RejectedImage("E_NOT_IMAGE", f"this is no image of a known format ({', '.join(FORMATS)}){looks}")


def damaged(kind: str, error: Exception) -> RejectedImage:
    """Return the rejection of a file of some kind that Pillow failed to read with `error`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return RejectedImage("E_TRUNCATED", f"the {kind or 'image'} file ends early: {text}")
    return RejectedImage("E_CORRUPT", f"the {kind or 'image'} file is damaged: {text}")


# ---- checks that Pillow does not make --------------------------------------------------------------------------------


def _check_png(data: bytes) -> None:
    """Walk the chunks up to IEND: Pillow skips the checksum of the pixels."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise RejectedImage("E_CORRUPT", "the PNG file is damaged: a checksum does not match")
        if data[position + 4 : position + 8] == b"IEND":
            return
        position = end + 4
    raise _cut_short("PNG")


def _check_webp(data: bytes) -> None:
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        raise _cut_short("WEBP")


def _check_gif(data: bytes) -> None:
    """Walk the blocks up to the trailer: Pillow would show the first frame of a file cut in the second."""
    position = 13 + _palette_bytes(data, 10)
    while position < len(data):
        marker = data[position]
        if marker == 0x3B:
            return
        if marker == 0x2C:  # an image: descriptor, local palette, code size, sub-blocks
            position = _skip_sub_blocks(data, position + 11 + _palette_bytes(data, position + 9))
        elif marker == 0x21:  # an extension: label, sub-blocks
            position = _skip_sub_blocks(data, position + 2)
        else:
            position += 1  # stray bytes between blocks, which decoders skip
    raise _cut_short("GIF")


def _cut_short(kind: str) -> RejectedImage:
    return RejectedImage("E_TRUNCATED", f"the {kind} file ends before its end marker")


def _palette_bytes(data: bytes, flags_at: int) -> int:
    if flags_at >= len(data):
        return 0
    flags = data[flags_at]
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_sub_blocks(data: bytes, position: int) -> int:
    while position < len(data) and data[position]:
        position += data[position] + 1
    return position + 1


# Pillow itself notices a cut JPEG, BMP and TIFF
_CHECKS = {"PNG": _check_png, "WEBP": _check_webp, "GIF": _check_gif}


def check(kind: str, data: bytes) -> None:
    """Raise `RejectedImage` for a file of a kind that `sniff` told, if it is cut short or damaged."""
    if kind in _CHECKS:
        _CHECKS[kind](data)
