"""Images in archives, read member by member: nothing is unpacked, so no name in one leads anywhere."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from tracked_cls.data.files import is_image
from tracked_cls.data.ingest import Rejection
from tracked_cls.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".zip", *TARS)
_MEMBER_BYTES = 256_000_000  # more is not read of one member: it is held in memory
_HEADER_BYTES = 1_000_000  # of names and the like; a header that claims more is an attack on memory
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError, struct.error, ValueError)
_OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}

Read = Callable[[int], bytes | Rejection]


class Limits(NamedTuple):
    """What an archive may hold: members, and bytes of all of them together once they are unpacked."""

    members: int
    size_bytes: int


def archive_of(path: Path, limits: Limits) -> Members:
    """Return the images in an archive, whose kind is told by its name."""
    return _Zip(path, limits) if path.name.lower().endswith(".zip") else _Tar(path, limits)


class Members(ABC):
    """The images in an archive, in its own order."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self._limits = limits

    def names(self) -> Iterator[tuple[int, str, str]]:
        """Yield number, name and what tells of a change, of each image; raises `UserError` beyond a limit."""
        size_bytes = 0
        for index, (name, length, stamp) in enumerate(self._listed()):
            size_bytes += length
            if index >= self._limits.members:
                raise self._beyond(f"more than {self._limits.members:,} members", "members")
            if size_bytes > self._limits.size_bytes:
                raise self._beyond(f"members of more than {self._limits.size_bytes:,} bytes", "bytes")
            if name is not None and is_image(name) and not _is_hidden(name):
                yield index, name, stamp

    @abstractmethod
    def opened(self) -> AbstractContextManager[Read]:
        """Yield a function that reads members by their numbers, which must grow from call to call."""

    @abstractmethod
    def _listed(self) -> Iterator[tuple[str | None, int, str]]:
        """Yield name (None for what is no file), size in bytes and stamp of every member."""

    def _beyond(self, what: str, key: str) -> UserError:
        return UserError(f"{self.path}: refused: it holds {what}; predict.archive_{key} raises the limit")

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Tell of damage to the archive itself in one line."""
        try:
            yield
        except _DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: the archive is cut short or damaged ({error}); fetch it anew") from None


def _read(open_member: Callable[[], IO[bytes] | None], name: str, length: int) -> bytes | Rejection:
    """Return a member's content, or why there is none."""
    if _leads_out(name):
        return Rejection("E_PATH", "the member's name leads out of the archive; pack it under another name")
    if length > _MEMBER_BYTES:
        return _too_large()
    try:
        stream = open_member()
        if stream is None:
            return Rejection("E_NOT_FILE", "the member is a link or a device, not a file")
        with stream:
            data = stream.read(_MEMBER_BYTES + 1)
    except (NotImplementedError, RuntimeError) as error:  # a packing that Python does not know; a password
        return Rejection("E_READ", f"the member cannot be unpacked: {error}")
    except _DAMAGE as error:
        return Rejection("E_TRUNCATED", f"the member cannot be unpacked: {error}")
    return _too_large() if len(data) > _MEMBER_BYTES else data


def _too_large() -> Rejection:
    return Rejection("E_TOO_LARGE", f"the member has more than {_MEMBER_BYTES:,} bytes; unpack the archive to read it")


def _leads_out(name: str) -> bool:
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/") or re.match(r"[A-Za-z]:", plain) is not None


def _is_hidden(name: str) -> bool:
    """Whether a folder walk would pass over it: ``.DS_Store``, ``__MACOSX/._a.png``."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.replace("\\", "/").split("/")
    )


# ---- ZIP -------------------------------------------------------------------------------------------------------------


class _Zip(Members):
    def _listed(self) -> Iterator[tuple[str | None, int, str]]:
        with self._sound(), zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                name = None if info.is_dir() else info.filename
                yield name, info.file_size, f"{info.file_size}-{info.CRC:08x}"

    @contextmanager
    def opened(self) -> Iterator[Read]:
        with zipfile.ZipFile(self.path) as archive:
            members = archive.infolist()
            yield lambda index: _read(lambda: archive.open(members[index]), members[index].filename, members[index].file_size)


# ---- tar -------------------------------------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """A member's header, whose own data (long names, PAX records) are read into memory: within a limit."""

    _IN_MEMORY = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                  tarfile.SOLARIS_XHDTYPE)  # fmt: skip

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in self._IN_MEMORY and self.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return cast(tarfile.TarInfo, super()._proc_member(archive))  # type: ignore[misc]


class _Tar(Members):
    """A tar file is read from its begin to its end: packed, there is no other way to a member."""

    def _listed(self) -> Iterator[tuple[str | None, int, str]]:
        with self._sound(), self._members() as (_, members):
            for member in members:
                size = max(member.size, 0)
                name = None if member.isdir() else member.name
                yield name, size, f"{size}-{int(member.mtime)}"

    @contextmanager
    def opened(self) -> Iterator[Read]:
        with self._members() as (archive, members):
            numbered = enumerate(members)

            def read(index: int) -> bytes | Rejection:
                try:
                    member = next(member for number, member in numbered if number == index)
                except (StopIteration, *_DAMAGE):
                    return Rejection("E_TRUNCATED", "the archive ends before this member")
                return _read(lambda: archive.extractfile(member) if member.isfile() else None, member.name, member.size)

            yield read

    @contextmanager
    def _members(self) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
        with self._unpacked() as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
            yield archive, _forgetting(archive)

    def _unpacked(self) -> Any:
        with self.path.open("rb") as file:
            first = file.read(6)
        opener = next((opener for magic, opener in _OPENERS.items() if first.startswith(magic)), None)
        return self.path.open("rb") if opener is None else opener(self.path)


def _forgetting(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; a tar file would keep them all in memory."""
    while (member := archive.next()) is not None:
        yield member
        archive.members = []  # type: ignore[attr-defined]
