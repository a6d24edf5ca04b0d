"""Local state of a run: checkpoints that a killed run continues from, and the folder they live in.

``runs/<key>/<attempt>/`` holds ``run.json`` (which MLflow run this is), the checkpoints, and ``ENDED`` once the run has
ended; a later start of the same key continues the last attempt that has not ended, else opens a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tracked_cls.config import CheckpointConfig
from tracked_cls.console import say
from tracked_cls.errors import UserError
from tracked_cls.state import TrainState

_RUN, _ENDED = "run.json", "ENDED"
_CHECKPOINTS = "[0-9]*-[0-9]*.pt"


@dataclass(frozen=True)
class Attempt:
    """The folder of one attempt at a run."""

    folder: Path

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this attempt writes to, once it is known."""
        path = self.folder / _RUN
        return str(json.loads(path.read_text())["run_id"]) if path.exists() else None

    def adopt(self, run_id: str) -> None:
        """Remember the MLflow run of this attempt."""
        write(self.folder / _RUN, json.dumps({"run_id": run_id}).encode())

    def end(self, status: str) -> None:
        """Mark the attempt as ended: no later start continues it."""
        write(self.folder / _ENDED, status.encode())

    @property
    def has_ended(self) -> bool:
        """Whether a start of the same key opens a new attempt."""
        return (self.folder / _ENDED).exists()


@contextmanager
def open_attempt(store: Path, key: str, *, resume: bool) -> Iterator[Attempt]:
    """Hold the newest attempt of a key, continued where it was interrupted (and `resume`), else a new one.

    Raises `UserError` while another process holds the same key.
    """
    folder = store / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"checkpoint.store: {folder} cannot be written: {error.strerror or error}") from None
    with lock_file as lock:
        _lock(lock, folder)
        numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        last = Attempt(folder / f"{numbers[-1]:03d}") if numbers else None
        if last is not None and not last.has_ended and not resume:
            last.end("KILLED")
        if last is None or last.has_ended:
            last = Attempt(folder / f"{(numbers[-1] if numbers else 0) + 1:03d}")
            last.folder.mkdir()
        for orphan in last.folder.glob(".tmp-*"):
            orphan.unlink()
        try:
            yield last
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked loader worker that is still ending holds a copy of the open file


def save(state: TrainState, attempt: Attempt, policy: CheckpointConfig | None = None) -> None:
    """Write a checkpoint; the newest, the best epochs' and every so-many-th stay, as the policy says."""
    path = attempt.folder / _name(state.epoch, state.batch)
    temporary = path.with_name(f".tmp-{path.name}")
    torch.save(state.state_dict(), temporary)
    digest = _sha256(temporary)
    write(path.with_suffix(".sha256"), digest.encode())
    _publish(temporary, path)
    _sweep(state, attempt, policy or CheckpointConfig())


def restore(state: TrainState, attempt: Attempt) -> bool:
    """Load the newest sound checkpoint of an attempt into `state`; return whether there was one."""
    for path in reversed(_checkpoints(attempt)):
        if _is_sound(path):
            state.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return True
        say(f"warning: checkpoint {path} is damaged (its SHA-256 differs) and is not used")
    return False


def roll_back(state: TrainState, attempt: Attempt) -> bool:
    """Load the newest sound checkpoint of an epoch's end, and delete what came after; return whether there was one."""
    for path in filter(_is_of_epoch, reversed(_checkpoints(attempt))):
        if _is_sound(path):
            state.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            _delete(later for later in _checkpoints(attempt) if later > path)
            return True
    return False


def load_best(state: TrainState, attempt: Attempt) -> None:
    """Load the weights of the best epoch into the network of `state`; raises `UserError` where they are damaged."""
    state.load_network(_read(attempt, state.best_epoch))


def best_networks(state: TrainState, attempt: Attempt, count: int) -> dict[int, dict[str, Tensor]]:
    """Return epoch -> tensors of the network that was validated, for up to `count` best epochs, the best first."""
    found = {}
    for _, _, epoch in state.ranking[:count]:
        state.load_network(_read(attempt, epoch))
        found[epoch] = {name: tensor.detach().clone() for name, tensor in state.network.state_dict().items()}
    return found


def conclude(state: TrainState, attempt: Attempt, policy: CheckpointConfig) -> None:
    """Delete what a finished run needs no more, as ``checkpoint.at_end`` says."""
    if policy.at_end == "keep":
        return
    kept = _best(state, attempt, policy) | _regular(state, attempt, policy) if policy.at_end == "best" else set()
    _delete(path for path in _checkpoints(attempt) if path not in kept)


def keep_epoch(store: Path, epoch: int) -> None:
    """Delete all checkpoints below a folder but those of the end of one epoch."""
    _delete(path for path in store.rglob(_CHECKPOINTS) if path.name != _name(epoch, 0))


def has_checkpoints(store: Path) -> bool:
    """Whether there is a checkpoint below a folder."""
    return any(store.rglob(_CHECKPOINTS))


def _read(attempt: Attempt, epoch: int) -> dict[str, Any]:
    path = attempt.folder / _name(epoch, 0)
    if not path.exists() or not _is_sound(path):
        raise UserError(f"checkpoint {path} of the best epoch is missing or damaged; train again with resume=never")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _name(epoch: int, batch: int) -> str:
    return f"{epoch:06d}-{batch:08d}.pt"


def _checkpoints(attempt: Attempt) -> list[Path]:
    return sorted(attempt.folder.glob(_CHECKPOINTS))


def _sweep(state: TrainState, attempt: Attempt, policy: CheckpointConfig) -> None:
    """Delete checkpoints that nothing will read again."""
    current = attempt.folder / _name(state.epoch, state.batch)
    past_epochs = [path for path in _checkpoints(attempt) if path <= current and _is_of_epoch(path)]
    past = [path for path in _checkpoints(attempt) if path <= current]  # a later one was damaged
    kept = {*past[-policy.keep :], *_best(state, attempt, policy), *_regular(state, attempt, policy), *past_epochs[-1:]}
    _delete(path for path in _checkpoints(attempt) if path not in kept)


def _best(state: TrainState, attempt: Attempt, policy: CheckpointConfig) -> set[Path]:
    return {attempt.folder / _name(epoch, 0) for _, _, epoch in state.ranking[: policy.keep_best]}


def _regular(state: TrainState, attempt: Attempt, policy: CheckpointConfig) -> set[Path]:
    if policy.every_epochs is None:
        return set()
    return {attempt.folder / _name(epoch, 0) for epoch in range(0, state.epoch + 1, policy.every_epochs)}


def _is_of_epoch(path: Path) -> bool:
    """Whether a checkpoint was taken at the end of an epoch, or before the first."""
    return path.stem.endswith("-00000000")


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
        path.with_suffix(".sha256").unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    sidecar = path.with_suffix(".sha256")
    return sidecar.exists() and sidecar.read_text() == _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, content: bytes) -> None:
    """Replace a small file so that it is never seen half-written."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(content)
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    """Make a complete temporary file appear under its name, and stay there through a loss of power."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is training this configuration now (it holds {folder / 'lock'})") from None
