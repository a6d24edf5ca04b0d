"""Processes that train together learn who has left, and who is gone without a word."""

import time

import pytest
from torch.distributed import FileStore

from tracked_cls.errors import ProcessLost
from tracked_cls.presence import Presence


@pytest.fixture
def present(tmp_path):
    """Return a function that makes one of three processes, with patience for two seconds."""
    made = []

    def make(rank):
        made.append(Presence(FileStore(str(tmp_path / "store"), 3), rank, 3, patience_seconds=2.0))
        return made[-1]

    yield make
    for presence in made:
        presence.end()


def test_a_note_is_waited_for_as_long_as_the_others_beat(present):
    first, second, _ = present(0), present(1), present(2)
    first.wait_for("never noted", at_most=3)

    second.note("done")

    first.wait_for("done")


def test_who_waits_learns_what_made_another_leave(present):
    first, second = present(0), present(1)
    second.note_trouble("no room in /data")
    present(2).note_trouble("process 1 has left")

    with pytest.raises(ProcessLost, match=r"process 1 of 3 has ended: no room in /data; the same command continues"):
        first.wait_for("never noted")
    assert second.trouble() is None, "its own"


@pytest.mark.parametrize("came", [True, False], ids=["stopped", "never there"])
def test_who_shows_no_sign_of_life_is_lost(present, came):
    first, _ = present(0), present(1)
    if came:
        present(2).end()
    started = time.monotonic()

    with pytest.raises(ProcessLost, match=r"process 2 of 3 has shown no sign of life for 2 s"):
        first.wait_for("never noted", at_most=30)
    assert time.monotonic() - started >= 2
