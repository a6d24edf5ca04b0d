"""The one place that turns bytes into pixels.

Shared by prepare, evaluation, prediction, serving and export, and shipped with every registered model: standard library,
Pillow and numpy only. torchvision.io is never used: it ends the process on a damaged PNG.

The rules: EXIF orientation is applied; transparency is composited on white; palette and CMYK become RGB; 16-bit grey keeps
its high byte; 1-bit becomes 0 and 255; of several frames the first counts; float and 32-bit pixels, which have no agreed
range, are rejected.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import UserError  # noqa: TID252 - travels with models under another package name

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 1 << 30


class RejectedImage(UserError):  # noqa: N818 - it names the image's fate
    """An image that cannot be used: `code` for machines (``E_TRUNCATED``), `reason` as one sentence for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


# ---- bytes to pixels -------------------------------------------------------------------------------------------------


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return an encoded image as uint8 [H,W,C], C 1 for grey and 3 for colour.

    Raises `RejectedImage`, and nothing else, whatever the bytes. An image of more than `max_pixels` is rejected by its
    header, before anything of that size is allocated.
    """
    if not data:
        raise RejectedImage("E_EMPTY", "the file is empty")
    kind = sniff(data)
    if kind in _CHECKS:
        _CHECKS[kind](data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            return pixels_of(image)
    except RejectedImage:
        raise
    except UnidentifiedImageError:
        raise _unidentified(kind) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        reason = f"the image has more than the {max_pixels:,} pixels allowed (data.max_pixels)"
        raise RejectedImage("E_TOO_LARGE", reason if not isinstance(error, MemoryError) else "no memory to decode it") from None
    except Exception as error:  # Pillow raises whatever its parsers meet: OSError, SyntaxError, struct.error, IndexError, ...
        raise _damaged(kind, error) from None


def pixels_of(image: Image.Image) -> Pixels:
    """Return an opened Pillow image as upright uint8 [H,W,C]; raises `RejectedImage` for modes without an agreed range."""
    image.load()
    upright = _upright(image)
    if upright.mode.startswith("I;16"):
        return _with_channels(np.asarray(upright).astype(np.uint16) >> 8)
    if upright.mode in ("F", "I"):
        bits = "float" if upright.mode == "F" else "32-bit integer"
        raise RejectedImage("E_MODE", f"{bits} pixels have no agreed range; save the image with 8 or 16 bits per channel")
    return _with_channels(np.asarray(_flatten(upright)))


def as_array(value: Any) -> Pixels:
    """Return an array a user passed as uint8 [H,W,C]; accepts uint8 [H,W], [H,W,1] and [H,W,3]."""
    rule = "an image array must be uint8 of shape [H,W], [H,W,1] or [H,W,3]"
    if not isinstance(value, np.ndarray):
        raise RejectedImage("E_ARRAY", f"{rule}, got {type(value).__name__}")
    fits = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3))
    if value.dtype != np.uint8 or not fits or 0 in value.shape:
        raise RejectedImage("E_ARRAY", f"{rule}, got {value.dtype} {list(value.shape)}")
    return _with_channels(value)


def _with_channels(array: npt.NDArray[Any]) -> Pixels:
    """Return [H,W] or [H,W,C] as contiguous uint8 [H,W,C]."""
    pixels = np.ascontiguousarray(array, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF names no orientation
        return image
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _flatten(image: Image.Image) -> Image.Image:
    """Return the image as L or RGB, transparency composited on white."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("1", "L", "LA", "La"):
        grey = image.convert("L" if image.mode == "1" else "LA")
        return grey if grey.mode == "L" else _on_white(grey, "L")
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"), "RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise RejectedImage("E_MODE", f"pixels of mode {image.mode} cannot be turned into grey or RGB") from None


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    flat = Image.new(mode, image.size, "white")
    flat.paste(image.convert(mode) if mode == "RGB" else image.getchannel("L"), mask=image.getchannel("A"))
    return flat


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise RejectedImage(
            "E_TOO_LARGE", f"the image has {width} x {height} pixels, more than the limit of {max_pixels} (data.max_pixels)"
        )
    if width * height == 0:
        raise RejectedImage("E_CORRUPT", f"the image has no pixels ({width} x {height})")


# ---- files -----------------------------------------------------------------------------------------------------------


def read_file(path: Path | str) -> bytes:
    """Return the content of a regular file, or of a link to one; anything else is a `RejectedImage`."""
    _check_regular(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(error) from None


def header_size(path: Path | str) -> tuple[int, int] | None:
    """Return (height, width) as the file's header states them, or None where it states none. Decodes nothing."""
    try:
        _check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # decode will name the reason; this is a first look only
        return None


def _check_regular(path: Path | str) -> None:
    """Look before opening: reading from a FIFO would wait for ever."""
    try:
        status = os.lstat(path)
        is_link = stat.S_ISLNK(status.st_mode)
        status = _follow(path) if is_link else status
    except OSError as error:
        raise _unreadable(error) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise RejectedImage("E_NOT_FILE", f"this is a {kind}, not a file")
    if status.st_size > MAX_FILE_BYTES:
        raise RejectedImage("E_TOO_LARGE", f"the file has {status.st_size} bytes, more than {MAX_FILE_BYTES}")


def _follow(path: Path | str) -> os.stat_result:
    try:
        return Path(path).stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            what = "in a circle" if error.errno == errno.ELOOP else "to nothing"
            raise RejectedImage("E_LINK", f"the symbolic link leads {what}") from None
        raise


def _unreadable(error: OSError) -> RejectedImage:
    if isinstance(error, PermissionError):
        return RejectedImage("E_PERMISSION", "the file may not be read by this user")
    if isinstance(error, FileNotFoundError):
        return RejectedImage("E_MISSING", "the file does not exist")
    return RejectedImage("E_READ", f"the file cannot be read: {error.strerror or error}")


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


def _unidentified(kind: str) -> RejectedImage:
    if kind in FORMATS:
        return RejectedImage("E_CORRUPT", f"the file starts like {kind}, but its header cannot be read")
    looks = f"; it starts like {kind}" if kind else ""
    return RejectedImage("E_NOT_IMAGE", f"this is no image of a known format ({', '.join(FORMATS)}){looks}")


def _damaged(kind: str, error: Exception) -> RejectedImage:
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
