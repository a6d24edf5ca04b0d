"""Prepared data on disk: written aside, published whole, never altered afterwards."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracked_cls import durable, failpoints
from tracked_cls.config import DataConfig
from tracked_cls.data.decode import Pixels, RejectedImage, decode
from tracked_cls.data.manifest import Indices, Manifest, load_manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.data.shards import Shards, is_shard
from tracked_cls.data.storage import PIXELS
from tracked_cls.errors import UserError
from tracked_cls.processes import Process

FORMAT_VERSION = 2
_SHARE_OF_MEMORY = 0.5
COMPLETE = "COMPLETE"
# what does not decide the prepared bytes: where things are, how the work is done, folds (a view of the set); what the
# fingerprint of the input covers
_PLACES = {"root", "table"}
_INDECISIVE: dict[str, Any] = {
    **dict.fromkeys(("store", "workers", "download", "dataset_args", "folds", "fold", *_PLACES), True),
    "val": {"dataset_args", *_PLACES},
    "test": {"dataset_args", *_PLACES},
}
_CURE = "delete the folder and run prepare again"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set; `info` is ``meta.json``.

    It holds either `pixels`, a read-only memory map, uint8 [N,S,S,C] (clips: [N,T,S,S,C]), or `files`, encoded images that
    are decoded at each use. Another process opens it anew by its folder: memory maps do not travel.
    """

    folder: Path
    manifest: Manifest
    preprocess: Preprocess
    pixels: Pixels | None
    info: Mapping[str, Any]
    files: Shards | None = None

    @property
    def image_size(self) -> int:
        """The side S of what a model sees."""
        return self.preprocess.geometry.image_size

    @property
    def num_channels(self) -> int:
        """The channels C of what a model sees."""
        return self.preprocess.geometry.channels

    @property
    def frames(self) -> int | None:
        """The frames T of a clip; None for single images."""
        return self.preprocess.frames

    def sized(self, indices: Indices | Sequence[int]) -> Pixels:
        """Return images as a model sees them, uint8 [B,S,S,C]; clips [B,T,S,S,C]."""
        if self.pixels is not None:
            return np.asarray(self.pixels[np.asarray(indices, np.int64)])
        images = [self.preprocess.geometry.apply(self.original(int(index))) for index in indices]
        return np.stack(images) if images else np.zeros((0, *[self.image_size] * 2, self.num_channels), np.uint8)

    def original(self, index: int) -> Pixels:
        """Return the most there is of an image: uint8 [H,W,C] of the whole photo from `files`, else what `sized` gives."""
        if self.pixels is not None:
            return np.asarray(self.pixels[index])
        assert self.files is not None
        try:
            return decode(self.files.read(index), self.info["terms"]["max_pixels"])
        except RejectedImage as error:  # it was accepted once
            raise UserError(f"{self.folder}: image {index} ({self.manifest.paths[index]}): {error}; {_CURE}") from None


# ---- where it is -----------------------------------------------------------------------------------------------------


def prepared_key(cfg: DataConfig, fingerprint: str) -> str:
    """Return 16 hex characters that name the result: the input, the options that decide it, and the format."""
    options = cfg.model_dump(mode="json", exclude=_INDECISIVE)
    text = json.dumps([FORMAT_VERSION, fingerprint, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepared_folder(store: Path, label: str, key: str) -> Path:
    """Return the folder of a prepared set, whether it exists or not."""
    if not label.strip("."):
        raise UserError(f"data.name: {label!r} cannot name a folder; choose another name")
    return store / label / key


def find_prepared(store: Path, cfg: DataConfig, fingerprint: str) -> Path | None:
    """Return the complete prepared set of an unchanged input, if there is one."""
    folder = prepared_folder(store, cfg.label, prepared_key(cfg, fingerprint))
    return folder if (folder / COMPLETE).is_file() else None


def current(store: Path, label: str) -> Path | None:
    """Return the folder that was noted as the latest of a data set's, if there is one."""
    try:
        name = (store / label / "current").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return store / label / name


def set_current(folder: Path) -> None:
    """Note a prepared set as its data's latest."""
    failpoints.reach("prepare.before_current")
    durable.write(folder.parent / "current", f"{folder.name}\n".encode())


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_prepared(folder: Path) -> Prepared:
    """Return a prepared set whose files are what they were when it was made; a `UserError` names the one that is not.

    It costs a second per gigabyte or so. Shards are checked by their size alone: each image of theirs has its own digest,
    compared whenever it is read.
    """
    _check_files(folder, shards=False)
    return open_partial(folder)


def open_partial(folder: Path) -> Prepared:
    """Return a prepared set without checking it: one that is still being written, or was checked a moment ago."""
    try:
        return _open(folder)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # digests hold, yet nobody here wrote it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not a prepared set that can be read ({type(error).__name__}: {reason}); {_CURE}") from None


def _open(folder: Path) -> Prepared:
    info = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    names = {key: info[key] for key in ("name", "classes", "digest", "content_digest")}
    has_pixels = (folder / PIXELS).is_file()
    return Prepared(
        folder=folder,
        manifest=load_manifest(folder, **names),
        preprocess=Preprocess.from_dict(info["preprocess"]),
        pixels=_mapped(folder / PIXELS) if has_pixels else None,
        info=info,
        files=None if has_pixels else Shards(folder),
    )


def _mapped(path: Path) -> Pixels:
    """Return an array in a file, of which only the pages that are looked at come into memory.

    Where it cannot stay in memory as a whole, the kernel is told that images are read in random order: reading ahead, which
    fills the memory of a smaller set within its first epoch, would read each image's neighbours in vain.
    """
    pixels: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pixels.nbytes > _SHARE_OF_MEMORY * memory and isinstance(pixels.base, mmap.mmap):
        pixels.base.madvise(mmap.MADV_RANDOM)
    return pixels


def verify_prepared(folder: Path) -> None:
    """Check the digest of every file of a prepared set; a damaged one is a `UserError` naming the file."""
    _check_files(folder, shards=True)


def _check_files(folder: Path, *, shards: bool) -> None:
    for name, (size, digest) in _promised(folder).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: missing, or not of its {size} bytes; {_CURE}")
        if (shards or not is_shard(name)) and durable.sha256_of(path) != digest:
            raise UserError(f"{path}: its content has changed; {_CURE}")


def _promised(folder: Path) -> dict[str, tuple[int, str]]:
    """Return file name -> (size, SHA-256) as COMPLETE states them."""
    if not (folder / COMPLETE).is_file():
        raise UserError(f"{folder}: not a complete prepared set; {_CURE}")
    try:
        promised = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return {name: (int(size), str(digest)) for name, (size, digest) in promised.items()}
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise UserError(f"{folder / COMPLETE}: cannot be read; {_CURE}") from None


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """Yield a private folder to write into; it becomes `final` when the block ends well, and is removed when it does not.

    If another process finished first, its result stays and ours goes. Nobody ever sees a half-written set as complete.
    """
    _sweep(final.parent)
    partial = final.parent / f".partial-{final.name}-{Process.me().mark}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _publish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, final: Path) -> None:
    files = sorted(path for path in partial.iterdir() if path.is_file())
    contents = {path.name: [path.stat().st_size, durable.sha256_of(path)] for path in files}
    for path in files:
        durable.sync(path)
    durable.sync(partial)  # the files' names are on disk before COMPLETE vouches for them
    failpoints.reach("prepare.before_complete")
    (partial / COMPLETE).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    durable.sync(partial / COMPLETE)
    durable.sync(partial)
    failpoints.reach("prepare.after_complete")
    _move(partial, final)
    durable.sync(final.parent)
    failpoints.reach("prepare.after_publish")


def _move(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
        return
    except OSError:
        if not final.exists():
            raise
    if (final / COMPLETE).is_file():  # another process was faster
        return
    shutil.rmtree(final)
    partial.rename(final)


def _sweep(parent: Path) -> None:
    """Remove what processes of this machine left when they were killed."""
    for path in [*parent.glob(".partial-*"), *parent.glob(".tmp-*")]:
        process = Process.marked(path.name)
        if process is not None and process.is_gone():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else durable.discard(path)
