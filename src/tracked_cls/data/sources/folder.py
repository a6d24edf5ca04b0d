"""Images in folders: one folder per class, or split folders with one folder per class in each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import EXTENSIONS
from tracked_cls.data.sources.base import FileSource, Sample, digest, natural_key
from tracked_cls.errors import UserError

_SPLIT_OF_FOLDER = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SKIPPED_FOLDERS = {"__MACOSX"}
_File = tuple[str, int, int]  # path relative to the root, size in bytes, mtime in ms


def scan_folder(cfg: DataConfig, root: Path | None) -> FileSource:
    """Return the images below a folder; raises `UserError` for a layout that classes cannot be read from."""
    if root is None or not root.exists():
        raise UserError(f"data.root: {str(root)!r} does not exist; give the folder that holds one folder per class")
    if not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is a file; give the folder that holds one folder per class")
    images, num_ignored = _walk(root)
    top = sorted(_folders(root), key=natural_key)
    stray = [path for path, _, _ in images if "/" not in path]
    if stray:
        raise UserError(
            f"{root}: {len(stray)} images lie directly in it, e.g. {min(stray)!r}; move each into the folder of its class"
        )
    if not images and not any(_is_split_layout(root, folder) for folder in top):
        raise UserError(f"{root}: no images in it; known extensions are {' '.join(sorted(EXTENSIONS))}")
    split_folders = _split_folders(root, top, images)
    samples = list(_samples_of(root, images, split_folders))
    return FileSource(cfg.label, root, digest(sorted(images)), samples, num_ignored)


def _walk(root: Path) -> tuple[list[_File], int]:
    """Return every image file below root, and the number of other visible files. Links are followed, circles are not."""
    images: list[_File] = []
    num_ignored = 0
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (os.path.realpath(root),))]
    while pending:
        folder, prefix, ancestors = pending.pop()
        for entry in _visible(folder):
            path = prefix + entry.name
            is_image = os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122 - hot, and names may be odd
            if is_image:  # also a folder or a pipe of that name: decoding rejects it by name
                images.append(_stat(entry, path))
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{ancestors[-1]}/{entry.name}"
                if real not in ancestors:
                    pending.append((entry.path, path + "/", (*ancestors, real)))
            else:
                num_ignored += 1
    return images, num_ignored


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS)
    except PermissionError:
        raise UserError(f"{folder}: this folder may not be read; change its permissions or move it away") from None


def _stat(entry: os.DirEntry[str], path: str) -> _File:
    try:
        status = entry.stat()
    except OSError:  # a dangling link; decoding rejects it by name
        return path, -1, 0
    return path, status.st_size, status.st_mtime_ns // 1_000_000


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(str(folder)) if entry.is_dir()]


def _is_split_layout(root: Path, name: str) -> bool:
    return name in _SPLIT_OF_FOLDER and bool(_folders(root / name))


def _split_folders(root: Path, top: Sequence[str], images: Sequence[_File]) -> dict[str, str]:
    """Return folder -> split where the root holds split folders, which hold class folders; else nothing.

    A class may be called ``train``: its images then lie directly in it.
    """
    direct = {path.split("/")[0] for path, _, _ in images if path.count("/") == 1}
    if "train" not in top or "train" in direct or not _is_split_layout(root, "train"):
        if top and set(top) <= set(_SPLIT_OF_FOLDER) and not direct:
            raise UserError(f"{root}: there is no folder 'train' beside {', '.join(top)}; add it, with one folder per class")
        return {}
    found = {name: _SPLIT_OF_FOLDER[name] for name in top if name in _SPLIT_OF_FOLDER}
    doubled = [split for split, count in Counter(found.values()).items() if count > 1]
    if doubled:
        names = ", ".join(name for name, split in found.items() if split in doubled)
        raise UserError(f"{root}: {names} all mean the split {doubled[0]!r}; keep one of them")
    with_images = {path.split("/")[0] for path, _, _ in images}
    extra = sorted(with_images - set(found))
    if extra:
        raise UserError(f"{root}: {extra[0]!r} lies beside the split folders {', '.join(found)} and holds images; move it away")
    loose = sorted(set(found) & direct)
    if loose:
        raise UserError(f"{root / loose[0]}: images lie directly in it; move each into a folder named after its class")
    return found


def _samples_of(root: Path, images: Sequence[_File], split_folders: Mapping[str, str]) -> Iterator[Sample]:
    depth = 1 if split_folders else 0
    with_images: set[str] = set()
    for path, _, _ in images:
        parts = path.split("/", depth + 1)
        with_images.add("/".join(parts[: depth + 1]))
        yield Sample(path, parts[depth], split_folders[parts[0]] if split_folders else None)
    tops = [f"{name}/" for name in split_folders] or [""]
    for folder in (top + name for top in tops for name in _folders(root / top)):
        if folder not in with_images:
            raise UserError(f"{root / folder}: the class folder holds no images; add some or remove the folder")


def list_images(root: Path) -> list[str]:
    """Return the path of every image below a folder, relative to it, in natural order."""
    return sorted((path for path, _, _ in _walk(root)[0]), key=natural_key)
