"""What `predict` is asked about: a folder, a pattern, a list, a table, an archive or IDX images, one entry after the other."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

from tracked_cls.config import PredictConfig, find_input, workspace
from tracked_cls.config.sections import PredictSection, TrackingConfig
from tracked_cls.console import say
from tracked_cls.data.files import MISSING, Stamp, entries, is_image, list_clips, stamp_of, unread_formats
from tracked_cls.data.ingest import Rejection
from tracked_cls.data.names import natural_key
from tracked_cls.data.reading import Payload
from tracked_cls.data.sources import read_idx
from tracked_cls.errors import UserError, did_you_mean
from tracked_cls.prediction.archives import ARCHIVES, Limits, Members, archive_of

_TABLES = {".csv": ",", ".tsv": "\t"}
_LISTS = (".txt", ".lst")
_IDX = re.compile(r".*(ubyte|\.idx)(\.gz)?", re.IGNORECASE)
_COLUMNS = ("path", "image", "image_id", "file", "filename")  # tried in this order
_MAGIC = re.compile(r"[*?\[]")


class Entry(NamedTuple):
    """One image: its id, unique in the input, where it is (a path, or its number in a file), and what tells of a change."""

    image_id: str
    place: str | int
    stamp: str

    @property
    def line(self) -> bytes:
        """What a digest of the listing is made of."""
        return f"{self.image_id}\0{self.stamp}\n".encode("utf-8", "surrogateescape")


Fetch = Callable[[Entry], Payload | Rejection]


class Source(Protocol):
    """An input of `predict`: its entries in an order that is always the same, and what stands behind each of them.

    What `opened` yields is called with entries in that order, not necessarily with all of them.
    """

    is_sorted: bool  # False: the entries come as the file system gives them

    def entries(self) -> Iterator[Entry]:
        """Yield one entry after the other; decodes nothing."""
        ...

    def opened(self) -> AbstractContextManager[Fetch]:
        """Open what must be open to get at the images."""
        ...


def source_of(cfg: PredictConfig, *, clips: bool = False) -> Source:
    """Return what ``predict.input`` names; raises `UserError` for what does not exist or cannot be read.

    `clips`: each image file, perhaps animated, and each folder of frames directly in a folder is one.
    """
    options, text = cfg.predict, str(cfg.predict.input)
    if not text.strip():
        raise UserError("predict.input is empty; name an image, or a folder of images (-P input=some/folder)")
    matches = _pattern(text, cfg.tracking)
    path = None if matches else find_input(text, cfg.tracking, "predict.input")
    is_table = path is not None and path.suffix.lower() in _TABLES and not path.is_dir()
    if options.column is not None and not is_table:
        raise UserError(f"predict.column={options.column} has no effect: {text!r} is no table (.csv, .tsv)")
    if path is None or path.is_dir():
        return _Pattern(*matches, clips) if path is None and matches else _Folder(Path(str(path)), clips)
    return _file(path, options)


def _file(path: Path, options: PredictSection) -> Source:
    name, ending = path.name.lower(), path.suffix.lower()
    if name.endswith(ARCHIVES):
        return _Archive(archive_of(path, Limits(options.archive_members, options.archive_bytes)))
    if ending in _LISTS:
        return _List(path)
    if ending in _TABLES:
        return _Table(path, options.column)
    return _Idx(path) if _IDX.fullmatch(name) else _Single(path)


# ---- files -----------------------------------------------------------------------------------------------------------


class _Files:
    """Entries whose place is the path of a file."""

    is_sorted = True

    def opened(self) -> AbstractContextManager[Fetch]:
        return nullcontext(lambda entry: str(entry.place))


@dataclass(frozen=True)
class _Single(_Files):
    path: Path

    def entries(self) -> Iterator[Entry]:
        yield _entry(self.path.name, str(self.path))


@dataclass(frozen=True)
class _Folder(_Files):
    """Every image below a folder; its id is the path from there."""

    root: Path
    clips: bool
    is_sorted = False

    def entries(self) -> Iterator[Entry]:
        if self.clips:
            yield from (_entry(name, f"{self.root}/{name}") for name in list_clips(self.root))
            return
        unread: list[str] = []
        for name, found, is_wanted in entries(self.root):
            if is_wanted:
                yield Entry(name, found.path, _stamp(found))
            else:
                unread += [name for _ in unread_formats([name], self.root)]
        for line in unread_formats(unread, self.root):
            say(line)


@dataclass(frozen=True)
class _Pattern(_Files):
    """Every file that a pattern matches; its id is the path from the last folder without a wildcard."""

    base: Path
    pattern: str
    clips: bool
    is_sorted = False

    def entries(self) -> Iterator[Entry]:
        for name in _matches(self.pattern, self.base):
            path = f"{self.base}/{name}"
            if self.clips or not os.path.isdir(path):  # noqa: PTH112 - hot, and names may be odd
                yield _entry(name, path)


def _pattern(text: str, tracking: TrackingConfig) -> tuple[Path, str] | None:
    """Return the folder that a pattern starts from, and the rest of it; None for what is no pattern, or the name of a file."""
    places = [workspace(tracking), Path.cwd()]
    if not _MAGIC.search(text) or any(os.path.exists(place / text) for place in places):  # noqa: PTH110 - names may be too long
        return None
    parts = Path(text).parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    for place in places:
        base = place.joinpath(*parts[:first])
        if next(_matches("/".join(parts[first:]), base), None) is not None:
            return base, "/".join(parts[first:])
    tried = " and ".join(dict.fromkeys(map(str, places)))
    raise UserError(f"predict.input: nothing matches the pattern {text!r} (looked from {tried})")


def _matches(pattern: str, base: Path) -> Iterator[str]:
    return glob.iglob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 - names of any bytes, from `base` on


def _entry(image_id: str, path: str) -> Entry:
    return Entry(image_id, path, _stamp(Path(path)))


def _stamp(found: os.DirEntry[str] | Path) -> str:
    try:
        return _as_text(stamp_of(found.stat()))
    except (OSError, ValueError):  # decoding names the reason
        return _as_text(MISSING)


def _as_text(stamp: Stamp) -> str:
    return f"{stamp[0]}-{stamp[1]}"


# ---- lists and tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _List(_Files):
    """A path a line, from the folder of the list or absolute; empty lines and those that begin with # are passed over."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        with _text(self.path) as file:
            for line in file:
                listed = line.rstrip("\r\n")
                if listed.strip() and not listed.startswith("#"):
                    yield _listed(listed, self.path)


@dataclass(frozen=True)
class _Table(_Files):
    """A path in one column of each line, from the folder of the table or absolute."""

    path: Path
    column: str | None

    def entries(self) -> Iterator[Entry]:
        with _text(self.path) as file:
            lines = csv.reader(file, delimiter=_TABLES[self.path.suffix.lower()], strict=True)
            try:
                place = self._place(next(lines, []))
                for cells in lines:
                    if cells:
                        yield self._listed(cells, place, lines.line_num)
            except csv.Error as error:
                raise UserError(f"{self.path}: line {lines.line_num}: E_COLUMNS: not valid CSV: {error}") from None

    def _listed(self, cells: list[str], place: int, number: int) -> Entry:
        if len(cells) <= place or not cells[place]:
            raise UserError(f"{self.path}: line {number}: E_COLUMNS: no path in it; give one, or remove the line")
        return _listed(cells[place], self.path)

    def _place(self, columns: list[str]) -> int:
        known = [self.column] if self.column is not None else list(_COLUMNS)
        found = next((name for name in known if name in columns), None)
        if found is not None:
            return columns.index(found)
        if self.column is None and len(columns) == 1:
            self._require_name(columns[0])
            return 0
        wanted = f"no column {self.column!r}" if self.column is not None else "no column with the paths"
        near = did_you_mean(self.column, columns) if self.column is not None else ""
        raise UserError(
            f"{self.path}: E_COLUMNS: {wanted} among {', '.join(map(repr, columns)) or 'none'}{near}; predict.column names it"
        )

    def _require_name(self, column: str) -> None:
        """Refuse what is no name of the only column: it would be passed over as one, or hold all of a line."""
        if is_image(column):
            raise UserError(
                f"{self.path}: E_COLUMNS: the first line is {column!r}, which looks like an image; begin the table with a line "
                "of column names (path), or name the file .txt"
            )
        if other := next((mark for mark in ";,\t|" if mark in column), None):
            ours = _TABLES[self.path.suffix.lower()]
            raise UserError(
                f"{self.path}: E_COLUMNS: the only column is {column!r}; columns are parted by {ours!r}, not by {other!r}"
            )


def _listed(listed: str, table: Path) -> Entry:
    return _entry(listed, str(table.parent / listed))


class _text(AbstractContextManager[TextIO]):  # noqa: N801 - used as a function
    """A text file in UTF-8, with or without a byte order mark, that is read line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> TextIO:
        try:
            self._file = self._path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise UserError(f"{self._path}: the list cannot be read: {error.strerror or error}") from None
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{self._path}: E_ENCODING: not UTF-8 ({error.reason}); save the file as UTF-8") from None


# ---- archives and IDX ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Archive:
    """The images in an archive, which is never unpacked; the id of each is its member's name."""

    members: Members
    is_sorted = True

    def entries(self) -> Iterator[Entry]:
        for place, name, stamp in self.members.names():
            yield Entry(name, place, stamp)

    def opened(self) -> AbstractContextManager[Fetch]:
        return _Fetching(self.members)


class _Fetching(AbstractContextManager[Fetch]):
    """Members by the entries that name them."""

    def __init__(self, members: Members) -> None:
        self._opened = members.opened()

    def __enter__(self) -> Fetch:
        read = self._opened.__enter__()
        return lambda entry: read(int(entry.place))

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(None, None, None)


@dataclass(frozen=True)
class _Idx:
    """The images of an IDX file, which is held in memory; the id of each is its number."""

    path: Path
    is_sorted = True

    def entries(self) -> Iterator[Entry]:
        stamp = _stamp(self.path)
        for index in range(len(read_idx(self.path, 3))):
            yield Entry(f"{index:05d}", index, stamp)

    def opened(self) -> AbstractContextManager[Fetch]:
        images = read_idx(self.path, 3)
        return nullcontext(lambda entry: images[int(entry.place)])


def key_of(entry: Entry) -> tuple[tuple[str | int, ...], str]:
    """Return what entries that come in no order are sorted by."""
    return natural_key(entry.image_id)
