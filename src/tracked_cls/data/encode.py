"""Pixels as files again: PNG, which loses nothing."""

from __future__ import annotations

import io

from PIL import Image

from tracked_cls.data.decode import Pixels


def to_png(pixels: Pixels) -> bytes:
    """Return uint8 [H,W,C], C 1 or 3, as a PNG file; a clip [T,H,W,C] as an animated one."""
    first, *rest = [as_image(frame) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    stream = io.BytesIO()
    first.save(stream, "PNG", save_all=bool(rest), append_images=rest)
    return stream.getvalue()


def as_image(pixels: Pixels) -> Image.Image:
    """Return uint8 [H,W,C], C 1 or 3, as a Pillow image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
