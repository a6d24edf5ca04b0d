"""Local state of a run: checkpoints that a killed run continues from, and the folder they live in.

``runs/<key>/<attempt>/`` holds ``run.json`` (which MLflow run this is), the checkpoints, and ``ENDED`` once the run has
ended; a later start of the same key continues the last attempt that has not ended, else opens a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tracked_cls import durable, failpoints
from tracked_cls.config import CheckpointConfig
from tracked_cls.console import say
from tracked_cls.errors import UserError
from tracked_cls.host import refusal
from tracked_cls.state import TrainState

_RUN, _ENDED = "run.json", "ENDED"
_BUFFER_BYTES = 1 << 20
_CHECKPOINTS = "[0-9]*-[0-9]*.pt"
_ANEW = "train again with resume=never, which comes to the same weights"


@dataclass(frozen=True)
class Attempt:
    """The folder of one attempt at a run."""

    folder: Path

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this attempt writes to, once it is known."""
        path = self.folder / _RUN
        try:
            return str(json.loads(path.read_bytes())["run_id"]) if path.exists() else None
        except (ValueError, KeyError, TypeError):
            say(f"warning: {path} is damaged: the training goes on in another run")
            return None

    def adopt(self, run_id: str) -> None:
        """Remember the MLflow run of this attempt."""
        durable.write(self.folder / _RUN, json.dumps({"run_id": run_id}).encode())

    def end(self, status: str) -> None:
        """Mark the attempt as ended: no later start continues it."""
        durable.write(self.folder / _ENDED, status.encode())

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
        raise UserError(f"checkpoint.store: {refusal(error, folder) or f'{folder} cannot be written: {error}'}") from error
    with lock_file as lock:
        _lock(lock, folder)
        numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        last = Attempt(folder / f"{numbers[-1]:03d}") if numbers else None
        if last is not None and not last.has_ended and not resume:
            last.end("KILLED")
        if last is None or last.has_ended:
            last = Attempt(folder / f"{(numbers[-1] if numbers else 0) + 1:03d}")
            last.folder.mkdir()
        _sweep_orphans(last.folder)
        try:
            yield last
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked loader worker that is still ending holds a copy of the open file


def save(state: TrainState, attempt: Attempt, policy: CheckpointConfig | None = None) -> None:
    """Write a checkpoint; the newest, the best epochs' and every so-many-th stay, as the policy says.

    Raises `UserError` where it cannot be written: those before it stay.
    """
    write(state.state_dict(), attempt)
    failpoints.reach("checkpoint.before_sweep")
    _sweep(state, attempt, policy or CheckpointConfig())


def write(content: dict[str, Any], attempt: Attempt) -> None:
    """Write the checkpoint of a `TrainState.state_dict`, whole or not at all; raises `UserError` as `save` does."""
    path = attempt.folder / _name(content["position"]["epoch"], content["position"]["batch"])
    temporary = path.with_name(f".tmp-{path.name}")
    failpoints.reach("checkpoint.before_write")
    stream = _Stream(temporary)
    try:
        with stream.opened() as file, _without_crc():
            torch.save(content, file)
        failpoints.reach("checkpoint.before_sidecar")
        durable.write(path.with_suffix(".sha256"), stream.digest.encode())
        failpoints.reach("checkpoint.before_rename")
        durable.publish(temporary, path)
    except OSError as error:
        durable.discard(temporary)
        raise UserError(
            f"checkpoint.store: {refusal(error, path, stream.size_bytes) or f'{path}: {error}'}; "
            "what was saved before is whole, and the same command continues from there"
        ) from error


@contextmanager
def _without_crc() -> Iterator[None]:
    """Leave out the sums that torch computes of each tensor: the file's SHA-256 says more."""
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


class _Stream(io.RawIOBase):
    """A new file that knows the digest of what was to be written, whatever the disk makes of it.

    Its first error is raised as it is closed: on its way through torch's writer it would become another one.
    """

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._path = path
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Give what to write to: it gathers the thousands of small pieces that torch writes."""
        with self._path.open("wb", buffering=0) as self._file:
            with io.BufferedWriter(self, _BUFFER_BYTES) as buffer:
                yield buffer
            if self._error is not None:
                raise self._error

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any, /) -> int:
        """Take bytes, or anything like them."""
        self.size_bytes += len(data)
        self._sha256.update(data)
        left = memoryview(data)
        try:
            while left and self._error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._error = error
        return len(data)


def restore(state: TrainState, attempt: Attempt) -> bool:
    """Load the newest sound checkpoint of an attempt into `state`; return whether there was one.

    Where its best epoch's is damaged, training would end with nothing to keep: then one from before that epoch is loaded,
    and makes it again. Raises `UserError` where none is left.
    """
    spoilt: Path | None = None
    for path in reversed(_checkpoints(attempt)):
        if not _is_sound(path):
            say(f"warning: checkpoint {path} is damaged (its SHA-256 differs) and is not used")
            continue
        content = torch.load(path, map_location="cpu", weights_only=True)
        spoilt = _spoilt_best(content, attempt)
        if spoilt is None:
            state.load_state_dict(content)
            return True
        say(f"warning: checkpoint {path} is not used: that of its best epoch, {spoilt.name}, is damaged")
    if spoilt is not None:
        raise UserError(f"checkpoint {spoilt} of the best epoch is damaged, and none from before it is left; {_ANEW}")
    return False


def _spoilt_best(content: dict[str, Any], attempt: Attempt) -> Path | None:
    """Return the checkpoint of the best epoch that a state knows, where it is damaged.

    One that is missing was swept when a later epoch was better, which comes again.
    """
    ranking = content["position"]["ranking"]
    best = attempt.folder / _name(ranking[0][2], 0) if ranking else None
    return best if best is not None and best.exists() and not _is_sound(best) else None


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
    if not path.exists():
        raise UserError(f"checkpoint {path} of the best epoch is missing; {_ANEW}")
    if not _is_sound(path):
        raise UserError(f"checkpoint {path} of the best epoch is damaged; the same command continues from before it")
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


def _sweep_orphans(folder: Path) -> None:
    """Delete what a killed save or sweep left: half-written files, and digests of checkpoints that are not there."""
    alone = (path for path in folder.glob("*.sha256") if not path.with_suffix(".pt").exists())
    for orphan in [*folder.glob(".tmp-*"), *alone]:
        orphan.unlink()


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
        failpoints.reach("checkpoint.mid_delete")
        path.with_suffix(".sha256").unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    sidecar = path.with_suffix(".sha256")
    return sidecar.exists() and sidecar.read_bytes() == durable.sha256_of(path).encode()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is training this configuration now (it holds {folder / 'lock'})") from None
