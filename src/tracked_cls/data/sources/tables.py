"""Images listed in a table: CSV, TSV, a plain list or Parquet, one image a line."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tracked_cls.config import DataConfig
from tracked_cls.config.data import ColumnsConfig, table_endings
from tracked_cls.data.files import MISSING, File, Stamp, entries, stamp_of, stamp_of_frames, walk
from tracked_cls.data.names import natural_key
from tracked_cls.data.sources.base import FileSource, Sample, digest
from tracked_cls.data.sources.places import EscapeError, Places
from tracked_cls.data.sources.readers import Table, read_table
from tracked_cls.data.sources.rows import Checker, Row
from tracked_cls.errors import UserError, did_you_mean

_OPTIONAL = ("split", "group", "weight")
_FEW_FILES = 10_000  # looking for files that no row names stops after so many, and four times the rows


def scan_table(cfg: DataConfig, root: Path | None) -> FileSource:
    """Return the images that a table lists; whatever is wrong with a line is a `UserError` that names the line."""
    path, root = _find_table(cfg, root)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the table cannot be read: {error.strerror or error}") from None
    table = read_table(cfg.source, path, content, cfg.encoding)
    used = _used_columns(table, cfg, path)
    listing = _Listing(root, has_clips=cfg.frames is not None)
    samples = list(listing.samples(_rows(table, used, cfg), Checker(str(path), multi_label=cfg.multi_label)))
    if not samples:
        raise UserError(f"{path}: the table lists no images")
    if all(stamp == MISSING for stamp in listing.stamps.values()):
        raise UserError(f"{path}: none of its {len(samples)} images is below {root}, e.g. {samples[0].path!r}; mend data.root")
    fingerprint = digest((hashlib.sha256(content).hexdigest(), sorted(listing.files)))
    about = {"multi_label": cfg.multi_label, "group_pattern": cfg.group_pattern}
    notes = [*_unused(table, used, path), *_unlisted(root, listing.stamps, path)]
    return FileSource(cfg.label, root, fingerprint, samples, listing.stamps, notes=notes, **about)


# ---- the file --------------------------------------------------------------------------------------------------------


def _find_table(cfg: DataConfig, root: Path | None) -> tuple[Path, Path]:
    """Return the table and the folder that its paths start from."""
    if root is not None and not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is no folder; give the folder that the paths of the table start from")
    if cfg.table is None:
        assert root is not None, "the configuration asks for one of the two"
        return _only_table(root, cfg.source), root
    tried = [folder / cfg.table for folder in (root, Path()) if folder is not None]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(f"data.table: {cfg.table!r} is no file (looked for {' and '.join(dict.fromkeys(map(str, tried)))})")
    return found, root or found.parent


def _only_table(root: Path, source: str) -> Path:
    endings = table_endings(source)
    found = sorted(
        (path for path in root.iterdir() if path.suffix.lower() in endings and path.is_file() and path.name[0] != "."),
        key=lambda path: natural_key(path.name),
    )
    if len(found) == 1:
        return found[0]
    there = f"several: {', '.join(path.name for path in found)}" if found else f"none ending in {' or '.join(endings)}"
    raise UserError(f"{root}: data.source={source} reads the only table in it, and there are {there}; set data.table")


# ---- the columns -----------------------------------------------------------------------------------------------------


def _used_columns(table: Table, cfg: DataConfig, path: Path) -> dict[str, str]:
    """Return what a column means (path, label, split, group, weight) -> its name."""
    twice = [name for name, count in Counter(table.columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}: E_COLUMNS: two columns are called {twice[0]!r}; rename one of them")
    columns = cfg.columns if cfg.source != "txt" else ColumnsConfig()  # a plain list has no names
    wanted = {"path": columns.path, "label": columns.label}
    given = {"split": columns.split, "group": columns.group, "weight": columns.weight}
    wanted.update((role, name) for role, name in given.items() if name is not None)
    for role, name in wanted.items():
        if name not in table.columns:
            raise _no_column(table.columns, role, name, path)
    shared = [name for name, count in Counter(wanted.values()).items() if count > 1]
    if shared:
        roles = " and ".join(f"data.columns.{role}" for role, name in wanted.items() if name == shared[0])
        raise UserError(f"{path}: E_COLUMNS: {roles} both name the column {shared[0]!r}")
    found = {role: role for role in _OPTIONAL if role in table.columns and role not in wanted.values()}
    used = {**found, **wanted}
    if "group" in used and cfg.group_pattern is not None:
        raise UserError(
            f"{path}: the column {used['group']!r} gives the groups, which data.group_pattern contradicts; drop one"
        )
    return used


def _no_column(columns: Sequence[str], role: str, name: str, path: Path) -> UserError:
    hint = did_you_mean(name, columns)
    near = hint if "did you mean" in hint else ""  # all names stand there already
    cure = "; a comma must stand between columns, a tab in a .tsv" if len(columns) == 1 else ""
    there = ", ".join(map(repr, columns))
    return UserError(f"{path}: E_COLUMNS: no column {name!r} among {there}{near}; data.columns.{role} names it{cure}")


def _unused(table: Table, used: Mapping[str, str], path: Path) -> Iterator[str]:
    extra = [name for name in table.columns if name not in used.values()]
    if extra:
        yield f"{path}: columns that nothing reads: {', '.join(map(repr, extra))}"


# ---- the rows --------------------------------------------------------------------------------------------------------


def _rows(table: Table, used: Mapping[str, str], cfg: DataConfig) -> Iterator[Row]:
    for place, cells in table.lines(used):
        cell = dict(zip(used, cells, strict=True))
        label = cell.pop("label")
        yield Row(place, labels=_labels(label, cfg), **cell)


def _labels(cell: str, cfg: DataConfig) -> list[str]:
    if not cfg.multi_label:
        return [cell]
    return [part.strip() for part in cell.split(cfg.label_separator) if part.strip()]


class _Listing:
    """The files that rows name, as they are found on the disk; one that is not there is left for decoding to reject."""

    def __init__(self, root: Path, *, has_clips: bool) -> None:
        self.root = root
        self.has_clips = has_clips
        self.stamps: dict[str, Stamp] = {}
        self.files: list[File] = []

    def samples(self, rows: Iterable[Row], checker: Checker) -> Iterator[Sample]:
        """Yield the rows as samples."""
        places = Places(self.root)
        for row in rows:
            try:
                path, status = places.find(row.path)
            except EscapeError as error:
                raise checker.error(row, "E_ESCAPE", str(error)) from None
            yield checker.sample(row._replace(path=path))
            is_clip = self.has_clips and status is not None and stat.S_ISDIR(status.st_mode)
            frames = walk(self.root / path)[0] if is_clip else []
            self.stamps[path] = _stamp(status, frames)
            self.files += [(f"{path}/{name}", size, time) for name, size, time in frames] or [(path, *self.stamps[path])]


def _stamp(status: os.stat_result | None, frames: list[File]) -> Stamp:
    if frames:
        return stamp_of_frames(frames)
    return MISSING if status is None else stamp_of(status)


def _unlisted(root: Path, listed: Mapping[str, Stamp], path: Path) -> Iterator[str]:
    """Say how many images no row names, where counting them is cheap."""
    found: list[str] = []
    try:
        for count, (name, _, is_image) in enumerate(entries(root)):
            if count > _FEW_FILES + 4 * len(listed):
                return
            if is_image and not _is_listed(name, listed):
                found.append(name)
    except UserError:  # a folder that may not be read, which is no mistake where no row names its files
        return
    if found:
        first = min(found, key=natural_key)
        yield f"W_UNLISTED: {len(found)} images below {root} are in no row of {path.name}, e.g. {first!r}; they are left out"


def _is_listed(name: str, listed: Mapping[str, Stamp]) -> bool:
    """Tell whether a row names the file, or one of the folders it lies in (a clip)."""
    return name in listed or any(name[:end] in listed for end, letter in enumerate(name) if letter == "/")
