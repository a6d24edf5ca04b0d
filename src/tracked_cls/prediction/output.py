"""The files that a prediction leaves, each there whole or not at all; last comes the name that says that all is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile

from tracked_cls import durable, failpoints
from tracked_cls.config import PredictConfig, workspace
from tracked_cls.errors import UserError, lookup
from tracked_cls.host import refusal
from tracked_cls.prediction.rows import FORMATS, REJECTED_COLUMNS
from tracked_cls.prediction.sidecar import beside
from tracked_cls.processes import Process


def output_of(cfg: PredictConfig, unnamed: Path) -> Path:
    """Return the file to write, `unnamed` where the options name none.

    Raises `UserError` where one of its files is there already or is what is to be labelled, or none can be written.
    """
    output = unnamed if cfg.predict.output is None else workspace(cfg.tracking) / cfg.predict.output
    try:
        if output.is_dir():
            raise UserError(f"predict.output: {str(output)!r} is a folder; name a file (.csv, .jsonl, .parquet)")
        lookup(output.suffix.lower(), FORMATS, "ending of predict.output")
        _require_free(output, cfg)
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            return output
    except OSError as error:
        raise UserError(f"predict.output: {str(output)!r} cannot be written: {error.strerror}") from None


def _require_free(output: Path, cfg: PredictConfig) -> None:
    """Raise `UserError` where one of the files is there, unless it is to be replaced; OSError for a name that is too long."""
    sources = {os.path.realpath(place / str(cfg.predict.input)) for place in (workspace(cfg.tracking), Path.cwd())}
    for path in reversed(files_of(output)):
        if path.exists() and os.path.realpath(path) in sources:
            raise UserError(f"predict.output: {str(path)!r} is the input itself; name another file")
        _note(path).is_file()  # the longest of the names: some are written at the end only
        if path.exists() and not cfg.predict.overwrite and not _is_left_over(path, output):
            raise UserError(f"predict.output: {str(path)!r} exists; set predict.overwrite=true to replace it")


def stem_of(source: str) -> str:
    """Return the name of an input as a part of a file's name."""
    stem = Path(source).absolute().name.partition(".")[0]
    return "".join(letter if letter.isalnum() or letter in "-_ " else "-" for letter in stem)[:80] or "images"


def rejected_of(output: Path) -> Path:
    """Return the list of what could not be read."""
    return output.with_suffix(".rejected.csv")


def embeddings_of(output: Path) -> Path:
    """Return the file of the embeddings."""
    return output.with_suffix(".embeddings.npy")


def files_of(output: Path) -> list[Path]:
    """Return all files that belong to an output, itself last."""
    return [rejected_of(output), embeddings_of(output), beside(output), output]


@contextmanager
def writing(output: Path, then: str = "") -> Iterator[None]:
    """Tell in one line of a disk that is full, or another refusal of the machine; `then`: what becomes of the work."""
    try:
        yield
    except OSError as error:
        refused = refusal(error, output)
        if refused is None:
            raise
        raise UserError(f"predict.output: {refused}{then}") from None


def publish(output: Path, whole: Mapping[Path, Path]) -> None:
    """Give complete files their names (name -> file now); what an earlier prediction left under the others is removed."""
    for path in files_of(output):
        _sweep(path)
        if path == output:
            failpoints.reach("predict.before_rename")
        if path in whole:
            durable.sync(whole[path])
            _note(path).write_text(durable.sha256_of(whole[path]))
            whole[path].replace(path)
        else:
            path.unlink(missing_ok=True)
    durable.sync(output.parent)


def keep(output: Path) -> None:
    """Make what was written the user's, which no later prediction replaces unasked."""
    for path in files_of(output):
        _note(path).unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that were killed left of a file."""
    for left in path.parent.glob(f".tmp-{escape(path.name)}-*"):
        process = Process.marked(left.name)
        if process is not None and process.is_gone():
            left.unlink(missing_ok=True)


def _is_left_over(path: Path, output: Path) -> bool:
    """Whether a file was left by a prediction that was killed before its run ended: the same command may write it again."""
    if path == rejected_of(output) and not any(output.with_suffix(ending).exists() for ending in FORMATS):
        with path.open("rb") as file:
            return file.readline().strip() == ",".join(REJECTED_COLUMNS).encode()
    return _note(path).is_file() and _note(path).read_text() == durable.sha256_of(path)


def _note(path: Path) -> Path:
    """Return the file that holds the digest of what was written at `path`, until the run has ended."""
    return path.with_name(f".tmp-{path.name}.sha256")
