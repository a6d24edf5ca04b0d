"""Images in folders: one folder per class, or split folders with one folder per class in each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import EXTENSIONS
from tracked_cls.data.files import File, folders, stamp_of_frames, unread_formats, walk
from tracked_cls.data.names import natural_key
from tracked_cls.data.sources.base import SPLIT_OF_WORD, FileSource, Sample, digest
from tracked_cls.data.sources.patterns import captured
from tracked_cls.errors import UserError

_PREFIX = r"(?:^|/)([^/_\-. ]+)[^/]*\Z"  # of the file name, up to the first _ - . or blank


def scan_folder(cfg: DataConfig, root: Path | None) -> FileSource:
    """Return the images below a folder; raises `UserError` for a layout that classes cannot be read from."""
    flat = cfg.label_pattern is not None  # folders mean nothing then, split folders aside
    root = _existing(root, "the images" if flat else "one folder per class")
    images, others = walk(root)
    top = sorted(folders(root), key=natural_key)
    _check_images(root, top, images, flat=flat)
    split_folders = _split_folders(root, top, images, flat=flat)
    depth = bool(split_folders) + (not flat)
    clips = _clips(images, depth) if cfg.frames else {file[0]: [file] for file in images}
    labels = _labels(cfg, root, list(clips), depth)
    if not flat:
        _check_no_class_is_empty(root, images, split_folders)
    split_of = {f"{name}/": split for name, split in split_folders.items()}
    samples = [
        Sample(path, (label,), split_of.get(path[: path.find("/") + 1])) for path, label in zip(clips, labels, strict=True)
    ]
    stamps = {path: stamp_of_frames(files) for path, files in clips.items()}
    about = {"multi_label": cfg.multi_label, "group_pattern": cfg.group_pattern, "num_ignored": len(others)}
    notes = unread_formats(others, root)
    return FileSource(cfg.label, root, digest(sorted(images)), samples, stamps, notes=list(notes), **about)


def _existing(root: Path | None, holds: str) -> Path:
    if root is None or not root.exists():
        raise UserError(f"data.root: {str(root)!r} does not exist; give the folder that holds {holds}")
    if not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is a file; give the folder that holds {holds}")
    return root


def _check_images(root: Path, top: Sequence[str], images: Sequence[File], *, flat: bool) -> None:
    stray = [] if flat else [path for path, _, _ in images if "/" not in path]
    if stray:
        raise UserError(
            f"{root}: {len(stray)} images lie directly in it, e.g. {min(stray)!r}; move each into the folder of its class, "
            "or set data.label_pattern to read classes from file names"
        )
    if not images and (flat or not any(_is_split_layout(root, folder) for folder in top)):
        raise UserError(f"{root}: no images in it; known extensions are {' '.join(sorted(EXTENSIONS))}")


def _is_split_layout(root: Path, name: str) -> bool:
    return name in SPLIT_OF_WORD and (root / name).is_dir() and bool(folders(root / name))


def _split_folders(root: Path, top: Sequence[str], images: Sequence[File], *, flat: bool) -> dict[str, str]:
    """Return folder -> split where the root holds split folders, which hold class folders (`flat`: images); else nothing.

    A class may be called ``train``: its images then lie directly in it.
    """
    with_images = {path.split("/")[0] for path, _, _ in images}
    direct = set() if flat else {path.split("/")[0] for path, _, _ in images if path.count("/") == 1}
    has_train = "train" in with_images if flat else "train" not in direct and _is_split_layout(root, "train")
    if not has_train:
        if top and set(top) <= set(SPLIT_OF_WORD) and not direct:
            holds = "images" if flat else "one folder per class"
            raise UserError(f"{root}: there is no folder 'train' with {holds} in it, only {', '.join(top)}; add it")
        return {}
    found = {name: SPLIT_OF_WORD[name] for name in top if name in SPLIT_OF_WORD}
    doubled = [split for split, count in Counter(found.values()).items() if count > 1]
    if doubled:
        names = ", ".join(name for name, split in found.items() if split in doubled)
        raise UserError(f"{root}: {names} all mean the split {doubled[0]!r}; keep one of them")
    extra = sorted(with_images - set(found))
    if extra:
        raise UserError(f"{root}: {extra[0]!r} lies beside the split folders {', '.join(found)}; move its images away")
    loose = sorted(set(found) & direct)
    if loose:
        raise UserError(f"{root / loose[0]}: images lie directly in it; move each into a folder named after its class")
    return found


def _clips(images: Sequence[File], depth: int) -> dict[str, list[File]]:
    """Return path -> files: each image file and each folder that lies `depth` folders below the root is one sample."""
    clips: defaultdict[str, list[File]] = defaultdict(list)
    for file in images:
        clips["/".join(file[0].split("/", depth + 1)[: depth + 1])].append(file)
    return clips


def _labels(cfg: DataConfig, root: Path, paths: Sequence[str], depth: int) -> list[str]:
    if cfg.label_pattern is None:
        return [path.split("/", depth)[depth - 1] for path in paths]
    pattern = _PREFIX if cfg.label_pattern == "prefix" else cfg.label_pattern
    return captured(pattern, paths, f"data.label_pattern {cfg.label_pattern!r}", str(root))


def _check_no_class_is_empty(root: Path, images: Sequence[File], split_folders: Mapping[str, str]) -> None:
    depth = 2 if split_folders else 1
    with_images = {"/".join(path.split("/", depth)[:depth]) for path, _, _ in images}
    tops = [f"{name}/" for name in split_folders] or [""]
    for folder in (top + name for top in tops for name in folders(root / top)):
        if folder not in with_images:
            raise UserError(f"{root / folder}: the class folder holds no images; add some or remove the folder")
