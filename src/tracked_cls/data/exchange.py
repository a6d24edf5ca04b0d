"""Prepared images as plain folders, for other programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tracked_cls.console import progress
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decode import EXTENSIONS
from tracked_cls.data.encode import to_png
from tracked_cls.data.sources import SPLITS
from tracked_cls.errors import UserError


def check_export(target: Path, classes: Sequence[str], *, multi_label: bool, frames: int | None) -> None:
    """Raise `UserError` where images cannot be written as <target>/<split>/<class>/<number>."""
    if multi_label or frames:
        what = "an image with several labels belongs to several folders" if multi_label else "a clip is no image"
        raise UserError(f"export: folders of classes cannot hold these data: {what}")
    for name in classes:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise UserError(f"export: class {name!r} cannot name a folder: it is empty, starts with a dot or has a slash in it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"export: {str(target)!r} exists and is not an empty folder; name another, or remove it")


def export_folder(prepared: Prepared, target: Path) -> None:
    """Write every image to <target>/<split>/<class>/<number>.png, or the file as it came from a cache of files.

    The folder appears whole, or not at all.
    """
    partial = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        partial.mkdir(parents=True)
        for index in progress(range(len(prepared.manifest)), len(prepared.manifest), "exporting", unit="image"):
            _write(prepared, index, partial)
        partial.rename(target)  # also onto an empty folder
    except OSError as error:
        raise UserError(f"export: {str(target)!r} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(prepared: Prepared, index: int, folder: Path) -> None:
    manifest = prepared.manifest
    place = folder / SPLITS[int(manifest.splits[index])] / manifest.classes[int(manifest.labels[index])]
    place.mkdir(parents=True, exist_ok=True)
    if prepared.files is None:
        (place / f"{index:06d}.png").write_bytes(to_png(prepared.original(index)))
        return
    suffix = Path(manifest.paths[index]).suffix.lower()  # arrays have none: they were kept as PNG
    (place / f"{index:06d}{suffix if suffix in EXTENSIONS else '.png'}").write_bytes(prepared.files.read(index))
