"""Prepared data on disk: written aside, published whole, never altered afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import Pixels
from tracked_cls.data.manifest import Manifest, load_manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.errors import UserError

FORMAT_VERSION = 1
COMPLETE = "COMPLETE"
# what decides the prepared bytes; store, workers, download and the place of the input do not
_DECISIVE = (
    "source", "name", "image_size", "channels", "fit", "interpolation", "val_fraction", "test_fraction", "split_seed",
    "max_pixels",
)  # fmt: skip
_CURE = "delete the folder and run prepare again"
_SMALL_BYTES = 1 << 20  # files up to this size are digested whenever the set is opened


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set: `pixels` is a read-only memory map, uint8 [N,S,S,C]; `info` is ``meta.json``."""

    folder: Path
    manifest: Manifest
    preprocess: Preprocess
    pixels: Pixels
    info: Mapping[str, Any]


# ---- where it is -----------------------------------------------------------------------------------------------------


def prepared_key(cfg: DataConfig, fingerprint: str) -> str:
    """Return 16 hex characters that name the result: the input, the options that decide it, and the format."""
    options = {name: getattr(cfg, name) for name in _DECISIVE}
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


def set_current(folder: Path) -> None:
    """Note a prepared set as its data's latest."""
    temporary = folder.parent / f".current-{os.getpid()}"
    temporary.write_text(folder.name + "\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(folder.parent / "current")
    _sync(folder.parent)


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_prepared(folder: Path) -> Prepared:
    """Return a prepared set, its sizes and its small files checked; one that is incomplete or damaged is a `UserError`."""
    _check_files(folder, digest_up_to=_SMALL_BYTES)
    info = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    names = {key: info[key] for key in ("name", "classes", "digest", "content_digest")}
    return Prepared(
        folder=folder,
        manifest=load_manifest(folder, **names),
        preprocess=Preprocess.from_dict(info["preprocess"]),
        pixels=np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False),
        info=info,
    )


def verify_prepared(folder: Path) -> None:
    """Check the digest of every file of a prepared set; a damaged one is a `UserError` naming the file."""
    _check_files(folder, digest_up_to=None)


def _check_files(folder: Path, digest_up_to: int | None) -> None:
    for name, (size, digest) in _promised(folder).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: missing, or not of its {size} bytes; {_CURE}")
        if (digest_up_to is None or size <= digest_up_to) and _sha256(path) != digest:
            raise UserError(f"{path}: its content has changed; {_CURE}")


def _promised(folder: Path) -> dict[str, tuple[int, str]]:
    """Return file name -> (size, SHA-256) as COMPLETE states them."""
    if not (folder / COMPLETE).is_file():
        raise UserError(f"{folder}: not a complete prepared set; {_CURE}")
    try:
        promised = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return {name: (int(size), str(digest)) for name, (size, digest) in promised.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{folder / COMPLETE}: cannot be read; {_CURE}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """Yield a private folder to write into; it becomes `final` when the block ends well, and is removed when it does not.

    If another process finished first, its result stays and ours goes. Nobody ever sees a half-written set as complete.
    """
    _sweep(final.parent)
    partial = final.parent / f".partial-{final.name}-{os.getpid()}@{_host()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _publish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, final: Path) -> None:
    files = sorted(path for path in partial.iterdir() if path.is_file())
    contents = {path.name: [path.stat().st_size, _sha256(path)] for path in files}
    for path in files:
        _sync(path)
    _sync(partial)  # the files' names are on disk before COMPLETE vouches for them
    (partial / COMPLETE).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    _sync(partial / COMPLETE)
    _sync(partial)
    _move(partial, final)
    _sync(final.parent)


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
    for path in parent.glob(".partial-*"):
        pid, _, host = path.name.rpartition("-")[2].partition("@")
        if host == _host() and pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
