"""The one place that turns bytes into pixels.

Shared by prepare, evaluation, prediction, serving and export, and shipped with every registered model: standard library,
Pillow and numpy only. torchvision.io is never used: it ends the process on a damaged PNG.

The rules: EXIF orientation is applied; transparency is composited on white; palette and CMYK become RGB; 16-bit pixels keep
their high byte; 1-bit becomes 0 and 255; of several frames the first counts, unless a clip is asked for, but all must be
there; float and 32-bit pixels, which have no agreed range, are rejected.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .signature import FORMAT_OF_EXTENSION, FORMATS, check, damaged, sniff, unidentified
from .signature import RejectedImage as RejectedImage  # what everyone catches who decodes

Pixels = npt.NDArray[np.uint8]

EXTENSIONS = frozenset(FORMAT_OF_EXTENSION)
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 1 << 30
_CLIP_FACTOR = 8  # a clip may hold so many times the pixels of an image: 32 frames of HD video at the default limit

_PLAIN_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PLAIN_MODES = {b"\x08\0\0\0\0": "L", b"\x08\x02\0\0\0": "RGB"}
_PLAIN_PIXELS = 1 << 16  # larger ones take longer to decode than to open


# ---- bytes to pixels -------------------------------------------------------------------------------------------------


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return an encoded image as uint8 [H,W,C], C 1 for grey and 3 for colour.

    Raises `RejectedImage`, and nothing else, whatever the bytes. An image of more than `max_pixels` is rejected by its
    header, before anything of that size is allocated.
    """
    return decode_noting(data, max_pixels)[0]


def decode_noting(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, tuple[str, ...]]:
    """Return what `decode` does, and what it changed: see `changes_of`."""
    plain = _plain_png(data, max_pixels)
    if plain is not None:
        return plain, ()
    with _open(data, max_pixels) as image:
        pixels = pixels_of(image)
        changes = changes_of(image, data)
        _check_other_frames(image, data, max_pixels)
        return pixels, changes


def _plain_png(data: bytes, max_pixels: int) -> Pixels | None:
    """Return the pixels of a sound, small PNG of nothing but grey or RGB in 8 bits; None for every other file.

    Pillow takes longer to open such a file than to decode it. Only its decoder is asked here, which gives the same pixels.
    """
    mode = _PLAIN_MODES.get(data[24:29])  # bit depth, colour type, compression, filter, interlace
    if mode is None or data[:16] != _PLAIN_START or data[37:41] != b"IDAT":
        return None
    width, height, length = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20, 33))
    if not 0 < width * height <= min(max_pixels, _PLAIN_PIXELS) or data[49 + length : 53 + length] != b"IEND":
        return None
    check("PNG", data)
    try:
        image = Image.frombytes(mode, (width, height), data[41 : 41 + length], "zip", mode, 0)
    except Exception:  # the other way finds the words for it
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, -1)


def decode_frames(data: bytes, count: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return `count` evenly spaced frames of an animated image as uint8 [T,H,W,C]; a still image repeats itself.

    The rules and rejections are those of `decode`; all frames together may have 8 times `max_pixels`.
    """
    with _open(data, max_pixels) as image:
        check_clip(image.height, image.width, count, max_pixels)
        chosen = sorted(set(even_indices(getattr(image, "n_frames", 1), count)))
        frames = frames_of([_frame(image, index, max_pixels) for index in chosen], count)
        _check_other_frames(image, data, max_pixels)
        return frames


@contextmanager
def _open(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an encoded image; whatever Pillow raises inside the block leaves it as `RejectedImage`."""
    if not data:
        raise RejectedImage("E_EMPTY", "the file is empty")
    kind = sniff(data)
    check(kind, data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            yield image
    except RejectedImage:
        raise
    except UnidentifiedImageError:
        raise unidentified(kind, data) from None
    except MemoryError:
        raise RejectedImage("E_MEMORY", "no memory to decode it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"the image has more than the {max_pixels:,} pixels allowed (data.max_pixels)"
        raise RejectedImage("E_TOO_LARGE", reason) from None
    except Exception as error:  # Pillow raises whatever its parsers meet: OSError, SyntaxError, struct.error, IndexError, ...
        raise damaged(kind, error) from None


def _frame(image: Image.Image, index: int, max_pixels: int) -> Pixels:
    image.seek(index)
    _check_size(image, max_pixels)
    return pixels_of(image)


def _check_other_frames(image: Any, data: bytes, max_pixels: int) -> None:
    """Refuse a GIF or TIFF that is damaged behind its first frame; checksums and lengths vouch for PNG and WEBP.

    A GIF's frames are loaded, up to so many pixels; of a TIFF's, which may be many and large, the places are looked at.
    """
    if image.format not in ("GIF", "TIFF") or not getattr(image, "is_animated", False):
        return
    most = _CLIP_FACTOR * max_pixels // (image.width * image.height)
    for index in range(1, min(image.n_frames, most) if image.format == "GIF" else image.n_frames):
        image.seek(index)
        if image.format == "GIF":
            image.load()
        else:
            _check_page(image.tag_v2, len(data))


def _check_page(tags: Any, num_bytes: int) -> None:
    offsets, lengths = (tags.get(strips, tags.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325)))
    if not offsets or max(map(sum, zip(offsets, lengths, strict=False)), default=0) > num_bytes:
        raise RejectedImage("E_TRUNCATED", "the TIFF file ends before its last page")


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


def as_clip(value: Any, count: int) -> Pixels:
    """Return an array a user passed as a clip, uint8 [count,H,W,C]: frames [T,H,W,C] or [T,H,W,1], or one still image."""
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return frames_of([as_array(frame) for frame in value], count)
    return frames_of([as_array(value)], count)


def frames_of(images: Sequence[Pixels], count: int) -> Pixels:
    """Return `count` evenly spaced ones of decoded frames [H,W,C] as uint8 [count,H,W,C]; among colour, grey becomes RGB."""
    if not images:
        raise RejectedImage("E_FRAMES", "there are no frames")
    chosen = [images[index] for index in even_indices(len(images), count)]
    sizes = sorted({image.shape[:2] for image in chosen})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[0], sizes[-1]
        raise RejectedImage(
            "E_FRAMES", f"the frames have different sizes: {width} x {height} and {other_width} x {other_height} pixels"
        )
    channels = max(image.shape[2] for image in chosen)
    return np.stack([np.broadcast_to(image, (*sizes[0], channels)) for image in chosen])


def even_indices(num: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices of `num` frames, the first and the last among them; few frames repeat."""
    return [int(index) for index in np.linspace(0, num - 1, count).round()]


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
    method = _orientation(image)
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns the image upright, None where it is."""
    if not image.info and image.format == "PNG":
        return None  # nothing is said of it at all; looking for EXIF would take as long as decoding a small image
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF names no orientation
        return None
    return _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None


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


def check_clip(height: int, width: int, count: int, max_pixels: int) -> None:
    """Refuse a clip of more pixels than memory should be asked for."""
    if height * width * count > _CLIP_FACTOR * max_pixels:
        raise RejectedImage(
            "E_TOO_LARGE",
            f"{count} frames of {width} x {height} pixels are more than {_CLIP_FACTOR} times the limit of {max_pixels} "
            "(data.max_pixels); ask for fewer (data.frames)",
        )


def changes_of(image: Image.Image, data: bytes) -> tuple[str, ...]:
    """Return what `pixels_of` changed in a loaded image.

    ``exif_rotated``, ``transparency_on_white``, ``16_bit_reduced``, ``palette_or_cmyk_to_rgb``, ``first_frame_of_several``.
    """
    changes = {
        "exif_rotated": _orientation(image) is not None,
        "transparency_on_white": _is_see_through(image),
        "16_bit_reduced": _is_16_bit(image, data),
        "palette_or_cmyk_to_rgb": image.mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "I;16", "I;16B", "I;16L"),
        "first_frame_of_several": _is_animated(image),
    }
    return tuple(name for name, is_so in changes.items() if is_so)


def _is_see_through(image: Image.Image) -> bool:
    if image.mode in ("L", "RGB", "1") or "transparency" in image.info:
        return "transparency" in image.info
    return image.getbands()[-1] == "A" and np.min(image.getchannel("A").getextrema()) < 255


def _is_16_bit(image: Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits per channel; Pillow reduces those of colour itself."""
    if image.format == "PNG":
        return data[24] == 16  # the header's bit depth
    bits: Any = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF: BitsPerSample
    return bool(np.max(bits) == 16)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # looks at the second frame, whose damage is no matter here
        return False


# ---- files -----------------------------------------------------------------------------------------------------------


def read_file(path: Path | str) -> bytes:
    """Return the content of a regular file, or of a link to one; anything else is a `RejectedImage`."""
    _check_regular(path)
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - hot
            return file.read()
    except OSError as error:
        raise _unreadable(error) from None


def header_shape(path: Path | str) -> tuple[int, int, int] | None:
    """Return (height, width, channels) as the file's header states them, None where it states none. Decodes nothing."""
    try:
        _check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            is_grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
            return image.height, image.width, 1 if is_grey else 3
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
