"""Where an export is written: a folder that is there whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from tracked_cls import durable
from tracked_cls.config import ExportConfig, workspace
from tracked_cls.errors import UserError
from tracked_cls.processes import Process
from tracked_cls.serving.packaging import META, SUMS, read_sums

CARD = "MODEL_CARD.md"  # people add to it: its digest is noted, and binds nobody
_STORE = "exports"
_SHOWN = 5


def output_of(cfg: ExportConfig, exact: str, run_id: str) -> Path:
    """Return the folder to write for an exact model, which a run made.

    Raises `UserError`, before any work, where it cannot be written, or exists and may not be replaced.
    """
    output = workspace(cfg.tracking) / (cfg.export.output or f"{_STORE}/{_name(cfg, exact, run_id)}")
    try:
        _check_free(output, overwrite=cfg.export.overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        _temporary(output).mkdir()  # the longest name of those that are needed
        _temporary(output).rmdir()
    except OSError as error:
        raise UserError(f"export.output: {str(output)!r} cannot be written: {error.strerror}") from None
    return output


def _name(cfg: ExportConfig, exact: str, run_id: str) -> str:
    """Return ``digits-classifier-3`` for a version, else the data's name and the beginning of the run's id."""
    found = re.fullmatch(r"models:/([A-Za-z0-9_.-]+)/(\d+)", exact)
    return f"{found[1]}-{found[2]}" if found else f"{cfg.data.model_name}-{run_id[:8]}"


def _check_free(output: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where something is in the way that may not go: only exports are ever replaced."""
    if not (output.exists() or output.is_symlink()):
        return
    if output.is_symlink() or not output.is_dir():
        raise UserError(f"export.output: {str(output)!r} is no folder; name one that does not exist yet")
    if not any(output.iterdir()):
        return
    if not ((output / SUMS).is_file() and (output / META).is_file()):
        raise UserError(f"export.output: {str(output)!r} holds something that is no export; name another folder")
    if not overwrite:
        raise UserError(f"export.output: {str(output)!r} exists; set export.overwrite=true to replace it")
    if others := _of_others(output):
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        raise UserError(
            f"export.output: {str(output)!r} holds what export did not write, or was edited: {shown}; "
            "move that away, or name another folder"
        )


def _of_others(output: Path) -> list[str]:
    """Return the names in an export's folder of what would be lost for good: files of somebody else, and an edited card."""
    try:
        own = {SUMS, *read_sums(output)}
    except UserError:  # whatever stood there, nothing says that it is ours
        own = {SUMS}
    if _card_line(output) in (output / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        own.add(CARD)
    return sorted(path.name for path in output.iterdir() if path.name not in own)


def _card_line(folder: Path) -> str | None:
    """Return what the list of digests notes of a card, as a comment; None where there is no such file."""
    card = folder / CARD
    return f"# {durable.sha256_of(card)}  {CARD}" if card.is_file() else None


@contextmanager
def staged(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write into; once the block has ended well it is complete, on the disk, and has the output's name.

    Where the block fails nothing is left, and an earlier export stays. A process that is killed leaves a hidden folder, which
    the next export to the same place removes.
    """
    _settle(output)
    temporary = _temporary(output)
    temporary.mkdir()
    try:
        yield temporary
        _write_sums(temporary)
        _check_free(output, overwrite=overwrite)  # what came there meanwhile
        _publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(output: Path) -> Path:
    return output.with_name(f".tmp-{output.name}-{Process.me().mark}")


def _write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, as ``sha256sum -c`` reads them, and put all of it on the disk.

    The card's is a comment there, by which an edited one is known before it is replaced.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = [f"{durable.sha256_of(path)}  {path.name}" for path in files if path.name != CARD]
    noted = _card_line(folder)
    (folder / SUMS).write_text("".join(f"{line}\n" for line in (*lines, *([noted] if noted else []))), encoding="utf-8")
    for path in (*files, folder / SUMS, folder):
        durable.sync(path)


def _publish(temporary: Path, output: Path) -> None:
    """Give the folder its name; an earlier export steps aside first, and comes back should that fail."""
    aside = _aside(output, Process.me().mark)
    if output.exists():
        output.rename(aside)
    try:
        temporary.rename(output)
    except OSError:
        if aside.exists():
            aside.rename(output)
        raise
    durable.sync(output.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(output: Path, mark: str) -> Path:
    return output.with_name(f".old-{output.name}-{mark}")


def _settle(output: Path) -> None:
    """Clear what killed processes of this machine left; an export that had stepped aside for nothing comes back."""
    for left in sorted(output.parent.glob(f".old-{escape(output.name)}-*")):
        if _is_left(left) and not output.exists():
            left.rename(output)
    for kind in ("old", "tmp"):
        for left in output.parent.glob(f".{kind}-{escape(output.name)}-*"):
            if _is_left(left):
                shutil.rmtree(left, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    process = Process.marked(folder.name)
    return process is not None and process.is_gone()
