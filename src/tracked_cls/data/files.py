"""Image files below a folder, as the file system lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tracked_cls.data.decode import EXTENSIONS, RejectedImage
from tracked_cls.data.names import natural_key
from tracked_cls.errors import UserError

_UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw")
_SKIPPED_FOLDERS = {"__MACOSX"}
File = tuple[str, int, int]  # path relative to the root, size in bytes, mtime in ms
Stamp = tuple[int, int]  # size in bytes (frames: of all files together), mtime in ms (frames: the latest)
MISSING: Stamp = (-1, 0)


def walk(root: Path) -> tuple[list[File], list[str]]:
    """Return every image file below root, and the paths of other visible files. Links are followed, circles are not."""
    images: list[File] = []
    others: list[str] = []
    for path, entry, is_image in entries(root):
        if is_image:
            images.append((path, *_stamp(entry)))
        else:
            others.append(path)
    return images, others


def entries(root: Path) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Yield path, entry and whether it is an image, for every visible file below root."""
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (os.path.realpath(root),))]
    while pending:
        folder, prefix, ancestors = pending.pop()
        for entry in _visible(folder):
            path = prefix + entry.name
            if is_image(entry.name):  # also a folder or a pipe of that name: decoding rejects it by name
                yield path, entry, True
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{ancestors[-1]}/{entry.name}"
                if real not in ancestors:
                    pending.append((entry.path, path + "/", (*ancestors, real)))
            else:
                yield path, entry, False


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from (entry for entry in found if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS)
    except PermissionError:
        raise UserError(f"{folder}: this folder may not be read; change its permissions or move it away") from None


def is_image(name: str) -> bool:
    """Tell by the extension of a visible file's name."""
    return name[name.rfind(".") :].lower() in EXTENSIONS  # os.path.splitext takes five times as long


def unread_formats(others: Iterable[str], root: Path) -> Iterator[str]:
    """Say which of the files that are passed over hold pictures all the same."""
    found = sorted(path for path in others if path.lower().endswith(_UNREAD))
    if found:
        endings = ", ".join(sorted({os.path.splitext(path)[1].lower() for path in found}))  # noqa: PTH122 - names may be odd
        yield (
            f"W_FORMAT: {len(found)} pictures below {root} have formats that are not read ({endings}), e.g. {found[0]!r}; "
            "they are left out; save them as JPEG or PNG"
        )


def folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder."""
    return [entry.name for entry in _visible(str(folder)) if entry.is_dir()]


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        return stamp_of(entry.stat())
    except OSError:  # a dangling link; decoding rejects it by name
        return MISSING


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells that a file has not changed."""
    return status.st_size, status.st_mtime_ns // 1_000_000


def stamp_of_frames(files: list[File]) -> Stamp:
    """Return the total size and the latest time of a clip's frames."""
    if len(files) == 1:  # an image, mostly: there are many of them
        return files[0][1:]
    return sum(size for _, size, _ in files), max(time for _, _, time in files)


def list_images(root: Path) -> list[str]:
    """Return the path of every image below a folder, relative to it, in natural order."""
    return sorted((path for path, _, found in entries(root) if found), key=natural_key)


def list_clips(root: Path) -> list[str]:
    """Return the image files, and the folders that hold images, directly in a folder: what a model of frames is asked about."""
    return sorted({path.split("/")[0] for path in list_images(root)}, key=natural_key)


def frame_files(folder: str) -> list[str]:
    """Return the frames of a clip: every image below its folder, the very files its stamp is made of, in natural order.

    Raises `RejectedImage` for a folder that may not be read.
    """
    try:
        return [f"{folder}/{name}" for name in list_images(Path(folder))]
    except UserError as error:
        raise RejectedImage("E_PERMISSION", str(error)) from None
