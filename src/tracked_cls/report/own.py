"""The page of a run, put into the run itself as soon as the tracking store has all that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requests import RequestException

from tracked_cls.console import say
from tracked_cls.journal import Entry, Journal
from tracked_cls.redaction import reason_of
from tracked_cls.tracking import Run, StoreError, Tracker

KIND = "page"  # of a journal's entry


def leave(tracker: Tracker, run: Run) -> None:
    """Have the page of a run written after everything else that the run has got: now, or when the store answers."""
    teach(tracker)
    run.add(KIND)


def teach(tracker: Tracker) -> None:
    """Let what delivers journals write the pages that are asked for in them."""
    tracker.clerk.teach(KIND, lambda journal, entry: _write(tracker, journal, entry))


def _write(tracker: Tracker, journal: Journal, entry: Entry) -> Mapping[str, Any]:
    from tracked_cls.report.publication import PAGE, collect, page_of  # what pages need takes a second to import

    run_id = journal.run_id
    assert run_id is not None
    with TemporaryDirectory() as scratch:
        try:
            facts = collect(tracker, run_id, Path(scratch), tables=False)
            seconds = max(0.0, (entry.time_ms - facts.began_ms) / 1000)
            page = page_of(replace(facts, status="FINISHED", seconds=seconds))
        except (StoreError, RequestException):  # the store, or the artifacts behind it: the entry waits
            raise
        except Exception as error:  # whatever it is: what stands behind it in the journal goes on
            say(f"warning: run {run_id} has no {PAGE}: {reason_of(error)}; try -e report -P runs={run_id}")
            return {}
        path = Path(scratch) / PAGE
        path.write_text(page, encoding="utf-8")
        tracker.client.log_artifact(run_id, str(path))
    return {}
