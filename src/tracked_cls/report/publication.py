"""`report` as a use case: runs read from the tracking store, and their page written to a file and into a run of its own."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from tracked_cls import durable
from tracked_cls.config import ReportConfig, workspace
from tracked_cls.errors import UserError
from tracked_cls.redaction import reason_of
from tracked_cls.report import study, training
from tracked_cls.report.artifacts import MAX_PARQUET_BYTES, RunFacts
from tracked_cls.tracking import StoreError, Tracker, is_refusal

PAGE = "report.html"
_MODELS = ("train", "evaluate", "trial", "fold")  # the kinds whose runs are about one model
_OWN_PAGES = {"study": study.page, **dict.fromkeys(_MODELS, training.page)}
_FOLDERS = ("", "tables", "plots")
_SUFFIXES, _TABLE = (".csv", ".json", ".png", ".yaml"), ".parquet"
_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")


@dataclass(frozen=True)
class Published:
    """Where the page is, and of how many runs."""

    run_id: str
    url: str
    output: Path
    num_runs: int


def run(cfg: ReportConfig, tracker: Tracker) -> Published:
    """Write the page of one run, or one that compares several, below ``reports/`` and into a run of kind report."""
    ids = cfg.report.runs
    with TemporaryDirectory() as scratch:
        facts = [collect(tracker, run_id, Path(scratch) / run_id) for run_id in ids]
        _require_pages(facts)
        _check_output(cfg)
        about = facts[0].name if len(ids) == 1 else f"{len(ids)} runs"
        with tracker.begin("report", f"report on {about}") as tracked:
            tracked.log_config(cfg)
            plots = Path(scratch) / "plots"
            page = page_of(facts[0]) if len(ids) == 1 else _compared(facts, plots)
            output = _write(page, cfg, tracked.run_id)
            tracked.log_text(page, PAGE)
            if plots.is_dir():
                tracked.log_folder(plots, plots.name)
            tracked.describe(f"{PAGE} under *Artifacts* is about {', '.join(f'`{run_id}`' for run_id in ids)}.")
    return Published(tracked.run_id, tracked.url, output, len(ids))


def _compared(facts: Sequence[RunFacts], plots: Path) -> str:
    from tracked_cls.report import comparison  # matplotlib, which the page of one run does without

    return comparison.page(facts, plots)


def page_of(facts: RunFacts) -> str:
    """Return the page of one run, by its kind; there is one for runs about one model, and for studies."""
    if facts.kind not in _OWN_PAGES:
        raise UserError(f"there is no page for runs of kind {facts.kind}")
    return _OWN_PAGES[facts.kind](facts)


def lines(published: Published) -> list[str]:
    """Return what a person wants to know: where the page is."""
    what = "the page of a run" if published.num_runs == 1 else f"{published.num_runs} runs compared"
    return [f"report: {what}", f"  page: {published.output}", f"  run:  {published.url} (Artifacts, {PAGE})"]


# ---- what the store knows of a run -----------------------------------------------------------------------------------


def collect(tracker: Tracker, run_id: str, folder: Path, *, tables: bool = True) -> RunFacts:
    """Return what a page needs of a run, its artifacts copied into `folder`.

    Without `tables` the Parquet tables stay where they are: only comparisons read them. Raises `UserError` where there is no
    such run, and `StoreError` where the store does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = tracker.client.get_run(run_id)
        if found.info.lifecycle_stage != "active":
            raise UserError(f"report.runs: run {run_id} was deleted; restore it, or leave it out")
        missing = _copy_artifacts(tracker, run_id, folder, [*_SUFFIXES, *([_TABLE] if tables else [])])
        history = {name: _history(tracker, run_id, name) for name in _CURVES if name in found.data.metrics}
    except StoreError as error:
        if not is_refusal(error):
            raise
        raise UserError(f"report.runs: run {run_id} cannot be read from {tracker.store.label}: {reason_of(error)}") from None
    info, tags = found.info, dict(found.data.tags)
    return RunFacts(
        run_id=run_id,
        name=info.run_name or run_id,
        kind=tags.get("kind", "unknown"),
        folder=folder,
        params=dict(found.data.params),
        tags=tags,
        metrics=dict(found.data.metrics),
        history=history,
        status=info.status,
        began_ms=info.start_time,
        seconds=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        notes=missing,
    )


def _history(tracker: Tracker, run_id: str, name: str) -> dict[int, float]:
    return {metric.step: metric.value for metric in tracker.client.get_metric_history(run_id, name)}


def _copy_artifacts(tracker: Tracker, run_id: str, folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Copy the files that a page reads; return in words which ones could not be had."""
    missing = []
    for place in _FOLDERS:
        (folder / place).mkdir(exist_ok=True)
        for file in tracker.client.list_artifacts(run_id, place or None):
            if not _is_wanted(file, place) or not file.path.endswith(tuple(suffixes)):
                continue
            try:
                _copy(tracker, run_id, file.path, folder)
            except (StoreError, OSError) as error:
                if tracker.store.absence() is not None:
                    raise
                missing.append(f"{file.path} could not be read: {reason_of(error, 200)}")
    return missing


def _copy(tracker: Tracker, run_id: str, name: str, folder: Path) -> None:
    with TemporaryDirectory(dir=folder) as scratch:  # some stores keep the folder of a file, some do not
        Path(tracker.client.download_artifacts(run_id, name, scratch)).replace(folder / name)


def _is_wanted(file: Any, place: str) -> bool:
    """Whether a file may be one that a page reads, by its place and size."""
    is_here = posixpath.dirname(file.path) == place and ".." not in file.path.split("/")
    return is_here and not file.is_dir and (file.file_size or 0) <= MAX_PARQUET_BYTES


def _require_pages(facts: Sequence[RunFacts]) -> None:
    """Raise `UserError` for a run of a kind that there is no page for."""
    allowed = _OWN_PAGES if len(facts) == 1 else dict.fromkeys(_MODELS)
    for one in facts:
        if one.kind not in allowed:
            raise UserError(f"report.runs: run {one.run_id} is {_kind_in_words(one)}; {_instead(one)}")


def _kind_in_words(facts: RunFacts) -> str:
    return "none of this project's" if facts.kind == "unknown" else f"of kind {facts.kind}"


def _instead(facts: RunFacts) -> str:
    """Return what to do with a run that has no page, or cannot be compared."""
    if facts.kind == "study":
        winner = facts.tags.get("best.run")
        return f"compare runs of one model each, like its winner {winner}" if winner else "compare its trials, one by one"
    if facts.kind in ("prepare", "report"):
        return f"its {PAGE} is among its artifacts"
    return f"give runs of {', '.join(_MODELS)} or, alone, of a study"


# ---- the file --------------------------------------------------------------------------------------------------------


def _check_output(cfg: ReportConfig) -> None:
    """Raise `UserError` where the output that was asked for cannot be written, before any work."""
    if cfg.report.output is None:
        return
    output = workspace(cfg.tracking) / cfg.report.output
    if output.is_dir():
        raise UserError(f"report.output: {str(output)!r} is a folder; name an HTML file")
    if output.exists() and not cfg.report.overwrite:
        raise UserError(f"report.output: {str(output)!r} exists; set report.overwrite=true to replace it")
    _make_folder(output)


def _make_folder(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            return
    except OSError as error:
        raise UserError(f"report.output: {str(output)!r} cannot be written: {error.strerror}") from None


def _write(page: str, cfg: ReportConfig, run_id: str) -> Path:
    output = workspace(cfg.tracking) / (cfg.report.output or f"reports/{run_id[:8]}.html")
    _make_folder(output)
    durable.write(output, page.encode())
    return output
