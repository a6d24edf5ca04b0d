"""How often a training is saved, and what must never be missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.test_checkpoint import files, make_state, where
from tracked_cls import checkpoint, saving
from tracked_cls.checkpoint import Attempt
from tracked_cls.config import CheckpointConfig, TrainConfig
from tracked_cls.job import Job
from tracked_cls.saving import Saver

SAVE_SECONDS = 2.0
checkpoint_save, checkpoint_write = checkpoint.save, checkpoint.write


class Training:
    """A training whose epochs last as long as is said, and whose saves take two seconds."""

    def __init__(self, folder, monkeypatch, **policy):
        self.now, self.written, self.befores = 0.0, [], 0
        self.state, self.attempt = make_state(), Attempt(folder)
        monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(checkpoint, "save", self._save)
        monkeypatch.setattr(checkpoint, "write", self._write)
        self.saver = Saver(self.state, self.attempt, CheckpointConfig(keep=1, **policy), self._before)

    def _before(self):
        self.befores += 1

    def _save(self, state, attempt, policy):
        self.now += SAVE_SECONDS
        checkpoint_save(state, attempt, policy)

    def _write(self, content, attempt):
        self.written.append(content["position"]["epoch"])
        checkpoint_write(content, attempt)

    def epoch(self, seconds, score=0.0):
        """Train an epoch whose weights tell which it was, and say whether something was written."""
        self.now += seconds
        self.state.epoch += 1
        self.state.model.head[1].bias.data.fill_(100 * self.state.epoch)
        self.state.record_score(score, 1.0, 0.0)
        before = len(self.written)
        self.saver.after_epoch()
        return self.written[before:]


@pytest.fixture
def begin(tmp_path, monkeypatch):
    return lambda **policy: Training(tmp_path, monkeypatch, **policy)


def test_short_epochs_are_saved_as_often_as_the_cost_allows(begin):
    training = begin(max_cost=0.01)
    assert training.epoch(1, 0.9) == [1]  # how long a save takes is not known yet
    assert [training.epoch(60), training.epoch(60), training.epoch(79), training.epoch(1)] == [[], [], [], [5]]
    assert training.befores == 2


def test_epochs_that_are_long_enough_are_all_saved(begin):
    training = begin(max_cost=0.01)
    assert [training.epoch(201, score) for score in (0.1, 0.2, 0.3)] == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("policy", "saved"), [({"max_cost": 1}, [1, 2, 3, 4, 5, 6]), ({"max_cost": 0.01, "every_epochs": 3}, [1, 3, 6])]
)
def test_epochs_that_are_asked_for_are_saved_whatever_it_costs(begin, policy, saved):
    training = begin(**policy)
    for _ in range(6):
        training.epoch(1)
    assert training.written == saved


def test_a_best_epoch_that_was_passed_over_is_written_before_the_state_that_knows_it(begin):
    training = begin(max_cost=0.01)
    for score in (0.1, 0.5, 0.9, 0.3):
        training.epoch(1, score)
    assert (training.written, files(training.attempt)) == ([1], ["000001-00000000.pt"])

    training.saver.save()

    assert training.written == [1, 3, 4]
    assert files(training.attempt) == ["000003-00000000.pt", "000004-00000000.pt"]
    checkpoint.load_best(training.state, training.attempt)
    assert where(training.state) == (3, 0)  # as it was then, though training went on


def test_several_best_epochs_are_held_where_several_are_kept(begin):
    training = begin(max_cost=0.01, keep_best=3)
    for score in (0.1, 0.5, 0.9, 0.3, 0.4, 0.2):
        training.epoch(1, score)
    training.saver.save()
    assert training.written == [1, 2, 3, 5, 6]


def test_a_run_that_is_ended_keeps_its_best_epoch(begin):
    training = begin(max_cost=0.01)
    for score in (0.1, 0.5, 0.3):
        training.epoch(1, score)
    training.saver.save_best()
    training.saver.save_best()
    assert (training.written, training.befores) == ([1, 2], 2)  # and nothing twice


def test_inside_an_epoch_the_time_decides(begin):
    training = begin(every_seconds=60)
    training.state.batch, training.now = 7, 59
    training.saver.after_step()
    assert training.written == []
    training.now = 61
    training.saver.after_step()
    assert files(training.attempt) == ["000000-00000007.pt"]


def test_what_is_saved_is_not_saved_again(begin):
    training = begin(max_cost=1)
    training.saver.save()  # of a training that has not begun, or was just restored
    training.epoch(1)
    training.saver.save()
    assert training.written == [1]


def test_how_far_a_rollback_goes_does_not_depend_on_the_clock():
    cfg = TrainConfig.model_validate({"training": {"on_nan": "rollback", "average_best": 4}})
    assert Job.policy.fget(SimpleNamespace(cfg=cfg)) == CheckpointConfig(max_cost=1, keep_best=4)
