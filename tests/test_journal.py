"""What goes to MLflow is on disk first, in its order, whatever a disk, another process or a sudden end does to it."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracked_cls import journal as journals_of
from tracked_cls.journal import REF, Held, Journal, journals, run_of

ENTRIES = "entries.jsonl"
SRC = Path(__file__).resolve().parents[1] / "src"


def _contents(journal):
    return [(entry.number, entry.kind, dict(entry.content)) for entry in journal.pending]


def _written(journal):
    return [json.loads(line) for line in (journal.folder / ENTRIES).read_bytes().split(b"\n")[:-1]]


def _reopened(journal):
    journal.close()
    return Journal.hold(journal.folder)


def test_what_is_added_is_on_the_disk_at_once_and_there_when_opened_again(tmp_path):
    journal = Journal.create(tmp_path)
    before = time.time_ns() // 1_000_000
    journal.add("tags", values={"a": "1"})
    (line,) = _written(journal)
    del line["crc"]
    assert line == {"kind": "tags", "time_ms": journal.pending[0].time_ms, "values": {"a": "1"}}
    assert before <= journal.pending[0].time_ms <= time.time_ns() // 1_000_000
    entries = journal.pending
    assert _reopened(journal).pending == entries


@pytest.mark.parametrize(
    "value", ["one\u2028two\u2029three\x85four\x0bfive\nsix\r", "\udcff", "ä\0"], ids=["lines", "bytes", "zero"]
)
def test_text_of_any_kind_stays_in_one_line(tmp_path, value):
    journal = Journal.create(tmp_path)
    journal.add("tags", values={"note": value})
    journal.add("tags", values={"after": "x"})
    assert [content["values"] for _, _, content in _contents(_reopened(journal))] == [{"note": value}, {"after": "x"}]


def test_a_last_line_cut_short_anywhere_is_cut_off_and_what_follows_is_whole(tmp_path):
    journal = Journal.create(tmp_path)
    journal.add("tags", values={"first": "1"})
    start = (journal.folder / ENTRIES).stat().st_size
    journal.add("tags", values={"last": "2"})
    journal.close()
    whole = (journal.folder / ENTRIES).read_bytes()
    for size in range(start, len(whole)):
        (journal.folder / ENTRIES).write_bytes(whole[:size])
        again = Journal.hold(journal.folder)
        again.add("tags", values={"next": "3"})
        found = _contents(_reopened(again))
        assert [list(content["values"]) for _, _, content in found] == [["first"], ["next"]], f"cut to {size} bytes"
        assert [number for number, _, _ in found] == [0, 1]
        Journal.hold(journal.folder).close()


@pytest.mark.parametrize("line", [b"\x00\xff", b"", b"a\rb", b"[1]", b"{}", b'{"kind": "tags"}'])
def test_an_unreadable_line_in_the_middle_hides_nothing_else(tmp_path, line):
    journal = Journal.create(tmp_path)
    for name in "abc":
        journal.add("tags", values={name: "1"})
    journal.mark(1)
    journal.close()
    lines = (journal.folder / ENTRIES).read_bytes().split(b"\n")
    (journal.folder / ENTRIES).write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert [(number, kind) for number, kind, _ in _contents(Journal.hold(journal.folder))] == [(1, "unreadable"), (2, "tags")]


def test_a_line_that_was_altered_on_the_disk_is_unreadable_also_where_it_reads_well(tmp_path):
    journal = Journal.create(tmp_path)
    for name in "abc":
        journal.add("tags", values={name: "1"})
    journal.close()
    path = journal.folder / ENTRIES
    path.write_bytes(path.read_bytes().replace(b'"b": "1"', b'"b": "2"'))
    assert [kind for _, kind, _ in _contents(Journal.hold(journal.folder))] == ["tags", "unreadable", "tags"]


# ---- metrics: the first value wins -----------------------------------------------------------------------------------


def test_of_two_values_at_a_step_the_first_stays(tmp_path):
    journal = Journal.create(tmp_path)
    journal.add_metrics({"loss": 1.0, "lr": 0.1}, step=1)
    journal.add_metrics({"loss": 9.0, "accuracy": 0.5}, step=1)
    journal.add_metrics({"loss": 9.0}, step=1)
    assert [content["values"] for _, _, content in _contents(journal)] == [{"loss": 1.0, "lr": 0.1}, {"accuracy": 0.5}]
    again = _reopened(journal)
    again.add_metrics({"loss": 9.0}, step=1)
    again.add_metrics({"loss": 0.5}, step=2)
    assert again.metrics == {"loss": {1: 1.0, 2: 0.5}, "lr": {1: 0.1}, "accuracy": {1: 0.5}}
    assert len(again.pending) == 3


def test_metrics_that_are_no_numbers_come_back_as_they_were(tmp_path):
    journal = Journal.create(tmp_path)
    journal.add_metrics({"a": float("nan"), "b": float("inf"), "c": 0.1 + 0.2}, step=0)
    found = _reopened(journal).metrics
    assert [found[key][0].hex() for key in "abc"] == ["nan", "inf", (0.1 + 0.2).hex()]


def test_who_appends_does_not_wait_for_the_disk_and_a_sync_puts_it_there_once(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    journal = Journal.create(tmp_path)
    journal.add_metrics({"loss": 1.0}, step=1)
    assert not synced
    journal.sync()
    journal.sync()
    assert len(synced) == 1
    journal.add("tags", values={})
    journal.sync()
    assert len(synced) == 2


# ---- disks that refuse -----------------------------------------------------------------------------------------------


class _FullDisk:
    """A file that takes `room` bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, text):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self.file.write(text[: self.room])
        self.room -= count
        return count

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 20, 60, 100])
def test_a_full_disk_stops_nobody_and_what_it_refused_is_written_once_there_is_room(tmp_path, capsys, room):
    journal = Journal.create(tmp_path)
    journal.add("tags", values={"a": "1"})
    full = _FullDisk(journal._file, room)
    journal._file = full
    journal.add("tags", values={"b": "2"})
    journal.add_metrics({"loss": 1.0}, step=1)
    journal.add("tags", values={"c": "3"})
    assert [entry.kind for entry in journal.pending] == ["tags", "tags", "metrics", "tags"], "delivered from memory"
    assert "No space left" in capsys.readouterr().out or room
    full.room = 10**6
    journal.add("tags", values={"d": "4"})
    expected = _contents(journal)
    assert _contents(_reopened(journal)) == expected


def test_what_no_disk_took_does_not_hide_what_comes_after_a_restart(tmp_path):
    journal = Journal.create(tmp_path)
    journal.add("tags", values={"a": "1"})
    journal._file = _FullDisk(journal._file, 0)
    for _ in range(3):
        journal.add("tags", values={"b": "2"})
    journal.mark(4)  # all has arrived, from memory
    again = _reopened(journal)
    again.add("end", status="KILLED", final=False)
    assert [kind for _, kind, _ in _contents(again)] == ["end"]


def test_a_failed_sync_of_the_disk_changes_no_number(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "error")

    journal = Journal.create(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        journal.add_metrics({"loss": 1.0}, step=1)
    journal.add("tags", values={"a": "1"})
    assert [kind for _, kind, _ in _contents(_reopened(journal))] == ["metrics", "tags"]


def test_a_full_disk_does_not_stop_what_notes_the_delivery(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    journal = Journal.create(tmp_path)
    journal.add("tags", values={"a": "1"})
    with monkeypatch.context() as broken:
        broken.setattr(journals_of, "_replace", fail)
        journal.mark(1, run_id="r")
    assert (journal.pending, journal.run_id) == ([], "r")
    assert len(_reopened(journal).pending) == 1, "sent again, which changes nothing"


# ---- delivery noted --------------------------------------------------------------------------------------------------


def test_what_was_delivered_stays_delivered(tmp_path):
    journal = Journal.create(tmp_path)
    for name in "abc":
        journal.add("tags", values={name: "1"})
    assert (journal.run_id, run_of(journal.folder), journal.ref) == (None, None, REF + journal.key)
    journal.mark(2, run_id="r", experiment_id="7")
    again = _reopened(journal)
    assert [number for number, _, _ in _contents(again)] == [2]
    assert (again.run_id, again.fact("experiment_id"), run_of(again.folder)) == ("r", "7", "r")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_damaged_note_of_what_was_delivered_means_that_all_is_sent_again(tmp_path, text):
    journal = Journal.create(tmp_path)
    journal.add("tags", values={"a": "1"})
    journal.mark(1)
    (journal.folder / "delivered.json").write_text(text)
    assert len(_reopened(journal).pending) == 1


def test_files_are_copied_at_once_and_their_copies_go_once_they_have_arrived(tmp_path):
    journal = Journal.create(tmp_path / "store")
    source = tmp_path / "report"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.txt").write_text("then")
    journal.add_file(source, "tables")
    journal.add_file(source / "deep" / "a.txt")
    (source / "deep" / "a.txt").write_text("now")
    folder, file = (journal.copy_of(entry) for entry in journal.pending)
    assert (folder / "deep" / "a.txt").read_text() == (file / "a.txt").read_text() == "then"
    journal.mark(1)
    assert (folder.exists(), file.exists()) == (False, True)
    journal.mark(2)
    assert not file.exists()


@pytest.mark.parametrize(
    ("kinds", "delivered", "goes"),
    [
        ([], 0, True),
        (["open"], 1, False),
        (["open", "final"], 2, True),
        (["open", "final"], 1, False),
        (["open", "killed"], 2, False),
        (["open", "killed", "open", "final"], 4, True),
        (["attach", "tags"], 2, True),
        (["attach", "tags"], 1, False),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_a_journal_may_go_once_all_has_arrived_and_nobody_will_continue_its_run(tmp_path, kinds, delivered, goes):
    ends = {"final": {"status": "FINISHED", "final": True}, "killed": {"status": "KILLED", "final": False}}
    journal = Journal.create(tmp_path)
    for kind in kinds:
        journal.add("end" if kind in ends else kind, **ends.get(kind, {}))
    journal.mark(delivered)
    assert journal.may_go == goes
    assert journal.goes_on == (kinds[-1:] == ["open"])


# ---- who holds it ----------------------------------------------------------------------------------------------------


_HOLD = """
import sys, time
from pathlib import Path
from tracked_cls.journal import Journal
held = Journal.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_journal_is_held_by_one_process_and_free_once_that_was_killed(tmp_path):
    journal = Journal.create(tmp_path)
    journal.close()
    line = [sys.executable, "-c", _HOLD, str(journal.folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SRC)}) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(Held):
                Journal.hold(journal.folder)
            with pytest.raises(Held):
                Journal.create(tmp_path, journal.key)
        finally:
            other.kill()
    assert Journal.hold(journal.folder).key == journal.key


def test_of_one_key_there_is_one_journal(tmp_path):
    first = Journal.create(tmp_path, "key")
    first.add("open")
    first.close()
    assert [kind for _, kind, _ in _contents(Journal.create(tmp_path, "key"))] == ["open"]
    assert [folder.name for folder in journals(tmp_path)] == ["key"]


def test_a_journal_that_is_removed_in_this_moment_is_as_one_that_another_holds(tmp_path, monkeypatch):
    journal = Journal.create(tmp_path)
    with pytest.raises(Held):
        Journal.hold(tmp_path / "gone")
    lock = journals_of.fcntl.flock

    def remove_first(file, operation):
        monkeypatch.setattr(journals_of.fcntl, "flock", lock)
        journal.close(remove=True)
        lock(file, operation)

    monkeypatch.setattr(journals_of.fcntl, "flock", remove_first)
    with pytest.raises(Held):
        Journal.hold(journal.folder)
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_half_made_is_swept_and_what_is_being_made_is_not(tmp_path):
    (tmp_path / ".new-left").mkdir()
    (tmp_path / ".new-made").mkdir()
    lock = journals_of._locked(tmp_path / ".new-made")
    journal = Journal.create(tmp_path)
    assert list(journals(tmp_path)) == [journal.folder]
    assert not (tmp_path / ".new-left").exists()
    assert (tmp_path / ".new-made").exists()
    lock.close()
