"""What goes to MLflow, on disk first: no server that is away, and no end of this process, loses any of it.

``<store>/<key>/`` is the journal of one run: ``entries.jsonl``, appended to and never altered; ``delivered.json``, how many of
the entries have arrived and in which run; ``files/``, copies of what is still to be uploaded. The process that holds its lock
writes and delivers it; once that process is gone, another may.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4
from zlib import crc32

from tracked_cls.console import say

_ENTRIES, _DELIVERED, _FILES, _LOCK = "entries.jsonl", "delivered.json", "files", "lock"
_NEW, _DAMAGED = ".new-", "damaged-"
REF = "journal:"  # before the key: stands for a run that MLflow has not made yet
RELEASE = "release"  # the kind of an entry: a model that waits to be logged and registered


@dataclass(frozen=True)
class Entry:
    """Something that is to be done in MLflow: `kind` says what, `time_ms` when it happened."""

    number: int
    kind: str
    time_ms: int
    content: Mapping[str, Any]


class Held(Exception):  # noqa: N818 - a fact, no error
    """Another process holds a journal."""


class Journal:
    """The journal of one run, held open by this process. Threads may share it."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self.folder = folder
        self._lock_file = lock
        self._guard = threading.RLock()
        self._entries = _read(folder / _ENTRIES)
        self._facts: dict[str, Any] = {"count": 0, **_read_facts(folder / _DELIVERED)}
        self._facts["count"] = min(int(self._facts["count"]), len(self._entries))  # some may have arrived that no disk took
        self._metrics: dict[str, dict[int, float]] = {}
        self._is_synced, self._syncing = True, threading.Lock()
        self._unwritten = b""
        for entry in self._entries:
            self._note(entry)
        self._file: IO[bytes] | None = (folder / _ENTRIES).open("ab", buffering=0)

    @classmethod
    def create(cls, store: Path, key: str | None = None) -> Journal:
        """Make a journal, locked before anybody can see it, or hold the one that has this key."""
        key = key or uuid4().hex
        if (store / key).exists():
            return cls.hold(store / key)
        new = store / f"{_NEW}{uuid4().hex}"
        new.mkdir(parents=True)
        lock = _locked(new)
        try:
            new.rename(store / key)
        except OSError:  # another process made it in this moment
            shutil.rmtree(new, ignore_errors=True)
            lock.close()
            return cls.hold(store / key)
        return cls(store / key, lock)

    @classmethod
    def hold(cls, folder: Path) -> Journal:
        """Hold a journal that is there; raises `Held` while another process does."""
        return cls(folder, _locked(folder))

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def ref(self) -> str:
        """What stands for the run until MLflow has given it an id."""
        return REF + self.key

    @property
    def run_id(self) -> str | None:
        """The run in MLflow, once it is there."""
        return self._facts.get("run_id")

    def fact(self, name: str) -> Any:
        """Return what delivery has noted under a name."""
        return self._facts.get(name)

    def add(self, kind: str, **content: Any) -> Entry:
        """Append an entry; it outlives this process from here on, and a loss of power from the next `sync` on."""
        with self._guard:
            entry = Entry(len(self._entries), kind, time.time_ns() // 1_000_000, content)
            self._entries.append(entry)
            self._note(entry)
            try:
                self._append(_line(entry))
            except OSError as error:  # it is delivered from memory, as long as this process lives
                say(f"warning: {self.folder / _ENTRIES} cannot be written: {error.strerror or error}")
            return entry

    def _append(self, line: str) -> None:
        """Write a line, behind what could not be written before."""
        if self._file is None:
            return
        self._unwritten += f"{line}\n".encode("ascii")
        self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        if self._unwritten:
            raise OSError("no space left")
        self._is_synced = False

    def sync(self) -> None:
        """Put on the disk what was appended. A busy disk takes its time, so whoever appends does not wait for it."""
        with self._syncing:  # whoever comes second waits for the first, and finds it done
            if self._is_synced or self._file is None:
                return
            self._is_synced = True
            with suppress(OSError, ValueError):  # closed in this moment; or the disk fails, and says so at the next entry
                os.fsync(self._file.fileno())

    def add_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the metrics that have no value at this step yet."""
        with self._guard:
            new = {key: float(value) for key, value in metrics.items() if step not in self._metrics.get(key, {})}
            if new:
                self.add("metrics", step=step, values=new)

    def add_file(self, source: Path, folder: str | None = None) -> None:
        """Copy a file, or all that is in a folder, and append that it is to be uploaded into a folder of the artifacts."""
        name = uuid4().hex
        target = self.folder / _FILES / name
        target.mkdir(parents=True)
        try:
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target / source.name)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        self.add("files", copy=name, folder=folder)

    def copy_of(self, entry: Entry) -> Path:
        """Return the folder that holds what an entry of `add_file` uploads."""
        return self.folder / _FILES / str(entry.content["copy"])

    @property
    def metrics(self) -> dict[str, dict[int, float]]:
        """Metric -> step -> the first value that was logged."""
        with self._guard:
            return {key: dict(values) for key, values in self._metrics.items()}

    @property
    def knows_all(self) -> bool:
        """Whether all that the run has got came through this journal."""
        first = self._entries[0] if self._entries else None
        return first is not None and first.kind == "open" and not first.content.get("run_id") and not first.content.get("adopt")

    @property
    def store(self) -> str | None:
        """The tracking store that it is for."""
        return None if not self._entries else self._entries[0].content.get("store")

    @property
    def age_seconds(self) -> float:
        """Seconds since the last entry."""
        return 0.0 if not self._entries else max(0.0, time.time() - self._entries[-1].time_ms / 1000)

    @property
    def pending(self) -> list[Entry]:
        """The entries that have not arrived, in order."""
        with self._guard:
            return self._entries[int(self._facts["count"]) :]

    @property
    def goes_on(self) -> bool:
        """Whether it opened its run and has not ended it; a run that it was only attached to is not its to end."""
        with self._guard:
            last = self._last_status
            return last is not None and last.kind == "open"

    @property
    def process(self) -> str | None:
        """The process that the run was last said to be written by."""
        with self._guard:
            said = (entry.content["values"].get("process") for entry in reversed(self._entries) if entry.kind == "tags")
            return next((process for process in said if process is not None), None)

    @property
    def is_lost(self) -> bool:
        """Whether its beginning is damaged, so that nobody can tell which run it is for."""
        return bool(self._entries) and self._entries[0].kind == "unreadable" and self.run_id is None

    @property
    def _last_status(self) -> Entry | None:
        """The entry that last opened or ended the run; ``reap`` ends what a dead process left."""
        return next((entry for entry in reversed(self._entries) if entry.kind in ("open", "end", "reap")), None)

    @property
    def may_go(self) -> bool:
        """Whether it has served its purpose: all has arrived, and no start of a command will continue its run."""
        with self._guard:
            if not self._entries or self.pending:
                return not self._entries
            last = self._last_status
            return self._entries[0].kind == "attach" or (last is not None and bool(last.content.get("final")))

    def mark(self, count: int, **facts: Any) -> None:
        """Note that the first `count` entries have arrived, and what became known with them."""
        with self._guard:
            arrived = self._entries[int(self._facts["count"]) : count]
            self._facts |= {"count": count, **facts}
            with suppress(OSError):  # a full disk: after a restart it is sent again, which changes nothing
                _replace(self.folder / _DELIVERED, json.dumps(self._facts))
        for entry in arrived:
            if entry.kind == "files":
                shutil.rmtree(self.copy_of(entry), ignore_errors=True)

    def close(self, *, remove: bool = False) -> None:
        """Let go of the journal."""
        with self._guard:
            if self._file is not None:
                self._file.close()
                self._file = None
            if remove:
                _remove(self.folder)
            with suppress(ValueError):
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)  # a forked worker may hold a copy of the open file
            self._lock_file.close()

    def set_aside(self) -> Path:
        """Let go of a journal that cannot be delivered, under a name by which nobody takes it again; return where it is."""
        aside = self.folder.with_name(_DAMAGED + self.key)
        self.folder.rename(aside)
        self.close()
        return aside

    def _note(self, entry: Entry) -> None:
        if entry.kind == "metrics":
            for key, value in entry.content["values"].items():
                self._metrics.setdefault(key, {}).setdefault(int(entry.content["step"]), float(value))


def journals(store: Path) -> Iterator[Path]:
    """Yield the folders of all journals; what was left half made is removed."""
    for folder in sorted(store.glob("*/")):
        if folder.name.startswith(_NEW):
            with suppress(Held), _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        elif (folder / _LOCK).exists() and not folder.name.startswith(_DAMAGED):
            yield folder


def run_of(folder: Path) -> str | None:
    """Return the run of a journal that another process may hold; None where MLflow has not made it yet."""
    return _read_facts(folder / _DELIVERED).get("run_id")


def _locked(folder: Path) -> IO[str]:
    """Hold the lock of a journal; raises `Held` where another process does, or has removed it in this moment."""
    try:
        lock = (folder / _LOCK).open("w")
    except FileNotFoundError:
        raise Held(str(folder)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino != (folder / _LOCK).stat().st_ino:
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError):
        lock.close()
        raise Held(str(folder)) from None
    return lock


def _remove(folder: Path) -> None:
    """Remove a journal: from one moment to the next it is none, whoever looks."""
    gone = folder.with_name(f"{_NEW}{uuid4().hex}")
    with suppress(OSError):
        shutil.rmtree(folder.rename(gone), ignore_errors=True)


def _read(path: Path) -> list[Entry]:
    """Return the entries of a file; a last line that was cut short by a loss of power is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    entries = []
    for number, line in enumerate(whole.split(b"\n")[:-1]):
        try:
            entries.append(_parse(number, line))
        except (ValueError, KeyError, AttributeError, TypeError):
            entries.append(Entry(number, "unreadable", 0, {}))
    return entries


def _line(entry: Entry) -> str:
    """Return an entry as a line of JSON, in ASCII so that there is no line within it; its CRC-32 comes last."""
    text = json.dumps({"kind": entry.kind, "time_ms": entry.time_ms, **entry.content})
    return f'{text[:-1]}, "crc": {crc32(text.encode("ascii"))}}}'


def _parse(number: int, line: bytes) -> Entry:
    """Read what `_line` wrote; raises for anything else."""
    text, _, crc = line.rpartition(b', "crc": ')
    if crc32(text + b"}") != int(crc.removesuffix(b"}")):
        raise ValueError
    content = json.loads(text + b"}")
    return Entry(number, content.pop("kind"), content.pop("time_ms"), content)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
