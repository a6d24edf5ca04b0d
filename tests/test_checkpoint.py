"""What a killed run finds again."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from learning_data import CPU, one_thread  # noqa: F401 - applies by being here

from tracked_cls import checkpoint, weights
from tracked_cls.checkpoint import Attempt, open_attempt
from tracked_cls.config import CheckpointConfig, TrainConfig
from tracked_cls.errors import UserError
from tracked_cls.models import Shape
from tracked_cls.state import TrainState


def make_state(seed=0, **options):
    cfg = TrainConfig.model_validate({"seed": seed, "model": {"name": "small_cnn"}, "epochs": 20, **options})
    return TrainState.create(cfg, Shape(3, 1, 8), train_images=640, compute=CPU)


def step(state):
    """Train one batch, so that optimizer and schedule hold something."""
    state.optimizer.zero_grad()
    torch.nn.functional.cross_entropy(state.model.train()(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3).backward()
    state.optimizer.step()
    state.schedule.after_step()


@pytest.fixture
def attempt(tmp_path):
    return Attempt(tmp_path)


def save_at(state, attempt, epoch, batch=0, score=None, **policy):
    """Save a state whose weights tell where it was saved."""
    state.epoch, state.batch = epoch, batch
    state.model.head[1].bias.data.fill_(100 * epoch + batch)
    if score is not None:
        state.record_score(score, 1.0, 0.0)
    checkpoint.save(state, attempt, CheckpointConfig(**policy))


def where(state):
    return divmod(int(state.model.head[1].bias[0]), 100)


def files(attempt):
    return sorted(path.name for path in attempt.folder.glob("*.pt"))


def flip_a_bit(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_nothing_to_restore_leaves_the_state_alone(attempt):
    state = make_state()
    before = weights.digest(state.model)
    assert not checkpoint.restore(state, attempt)
    assert weights.digest(state.model) == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("scheduler", ["constant", "cosine", "step", "plateau", "onecycle"])
def test_a_checkpoint_is_tensors_and_plain_values(attempt, optimizer, scheduler):
    warmup = {} if scheduler == "onecycle" else {"warmup_epochs": 2}
    options = {"optimizer": {"name": optimizer}, "scheduler": {"name": scheduler, **warmup}}
    state = make_state(**options)
    step(state)
    save_at(state, attempt, 1, 3, score=0.5)
    state.record_score(0.4, 1.0, 0.0)
    checkpoint.save(state, attempt)
    fresh = make_state(seed=1, **options)
    assert checkpoint.restore(fresh, attempt)  # torch.load(weights_only=True)
    assert weights.digest(fresh.model) == weights.digest(state.model)
    assert (fresh.epoch, fresh.batch, fresh.best_epoch, fresh.best_score, fresh.stale_epochs) == (1, 3, 1, 0.5, 1)
    assert fresh.schedule.lr == state.schedule.lr


def test_the_newest_is_restored(attempt):
    state = make_state()
    for epoch, batch in ((1, 0), (1, 7), (2, 0), (10, 0), (10, 12)):
        save_at(state, attempt, epoch, batch)
        fresh = make_state()
        checkpoint.restore(fresh, attempt)
        assert where(fresh) == (fresh.epoch, fresh.batch) == (epoch, batch)


def test_the_last_two_and_the_best_stay(attempt):
    state = make_state()
    for epoch, score in enumerate([0.1, 0.9, 0.3, 0.4, 0.5], 1):
        save_at(state, attempt, epoch, score=score)
    save_at(state, attempt, 5, 4)
    assert files(attempt) == ["000002-00000000.pt", "000005-00000000.pt", "000005-00000004.pt"]
    assert sorted(path.stem for path in attempt.folder.glob("*.sha256")) == [name[:-3] for name in files(attempt)]


SCORES = [0.1, 0.9, 0.3, 0.8, 0.5, 0.7, 0.2]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        pytest.param({}, [2, 6, 7], id="the last two and the best"),
        pytest.param({"keep": 1}, [2, 7], id="last and best"),
        pytest.param({"keep": 4}, [2, 4, 5, 6, 7], id="keep 4"),
        pytest.param({"keep": 1, "keep_best": 3}, [2, 4, 6, 7], id="three best"),
        pytest.param({"keep": 1, "every_epochs": 3}, [2, 3, 6, 7], id="every third"),
        pytest.param({"keep": 100}, [1, 2, 3, 4, 5, 6, 7], id="all"),
    ],
)
def test_the_policy_says_what_stays(attempt, policy, kept):
    state = make_state()
    for epoch, score in enumerate(SCORES, 1):
        save_at(state, attempt, epoch, score=score, **policy)
    assert files(attempt) == [f"{epoch:06d}-00000000.pt" for epoch in kept]


@pytest.mark.parametrize(("at_end", "kept"), [("best", [2]), ("keep", [2, 6, 7]), ("none", [])])
def test_what_stays_of_a_finished_run(attempt, at_end, kept):
    state = make_state()
    for epoch, score in enumerate(SCORES, 1):
        save_at(state, attempt, epoch, score=score)
    checkpoint.conclude(state, attempt, CheckpointConfig(at_end=at_end))
    assert files(attempt) == [f"{epoch:06d}-00000000.pt" for epoch in kept]
    assert len(list(attempt.folder.glob("*.sha256"))) == len(kept)


def test_regular_checkpoints_stay_of_a_finished_run(attempt):
    state = make_state()
    for epoch, score in enumerate(SCORES, 1):
        save_at(state, attempt, epoch, score=score, every_epochs=3)
    checkpoint.conclude(state, attempt, CheckpointConfig(every_epochs=3))
    assert files(attempt) == [f"{epoch:06d}-00000000.pt" for epoch in (2, 3, 6)]


def test_a_roll_back_goes_to_the_end_of_an_epoch_and_forgets_what_came_after(attempt):
    state = make_state()
    save_at(state, attempt, 1, score=0.5)
    save_at(state, attempt, 2, score=0.4)
    for batch in (3, 5, 7):
        save_at(state, attempt, 2, batch)  # by time: their weights may be broken already
    assert checkpoint.roll_back(state, attempt)
    assert (state.epoch, state.batch, where(state)) == (2, 0, (2, 0))
    assert files(attempt) == ["000001-00000000.pt", "000002-00000000.pt"]


def test_without_a_sound_epoch_there_is_nothing_to_roll_back_to(attempt):
    state = make_state()
    save_at(state, attempt, 1)
    flip_a_bit(attempt.folder / "000001-00000000.pt")
    assert not checkpoint.roll_back(state, attempt)


def test_a_store_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoint.store: .*file/train-1: Not a directory; a part of this path is a file"):
        open_and_close(tmp_path / "file")


def test_the_networks_of_the_best_epochs_are_read_best_first(attempt):
    state = make_state()
    for epoch, score in enumerate(SCORES, 1):
        save_at(state, attempt, epoch, score=score, keep_best=3)
    found = checkpoint.best_networks(state, attempt, 3)
    assert {epoch: int(tensors["head.1.bias"][0]) for epoch, tensors in found.items()} == {2: 200, 4: 400, 6: 600}
    assert list(found) == [2, 4, 6]


@pytest.mark.parametrize("place", [0.0, 0.01, 0.5, 0.9999])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_is_used(attempt, capsys, place):
    state = make_state()
    save_at(state, attempt, 1)
    save_at(state, attempt, 2)
    flip_a_bit(attempt.folder / "000002-00000000.pt", place)
    fresh = make_state()
    assert checkpoint.restore(fresh, attempt)
    assert where(fresh) == (1, 0)
    assert "000002-00000000.pt is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "digest gone"])
def test_other_damage_is_seen_too(attempt, damage):
    state = make_state()
    save_at(state, attempt, 1)
    save_at(state, attempt, 2)
    path = attempt.folder / "000002-00000000.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.with_suffix(".sha256").unlink()
    fresh = make_state()
    assert checkpoint.restore(fresh, attempt)
    assert fresh.epoch == 1


def test_if_all_are_damaged_training_starts_anew(attempt):
    save_at(make_state(), attempt, 1)
    flip_a_bit(attempt.folder / "000001-00000000.pt")
    assert not checkpoint.restore(make_state(), attempt)


def test_damaged_ones_do_not_push_out_what_is_saved_after_them(attempt):
    state = make_state()
    for epoch in (1, 2, 3):
        save_at(state, attempt, epoch, score=epoch / 10)
    for name in ("000002-00000000.pt", "000003-00000000.pt"):
        flip_a_bit(attempt.folder / name)
    save_at(state, attempt, 1, score=0.1)  # as it is restored
    fresh = make_state()
    fresh.epoch = 1
    save_at(fresh, attempt, 1, 5)
    again = make_state()
    assert checkpoint.restore(again, attempt)
    assert where(again) == (1, 5)


def test_saving_leaves_no_temporary_files(attempt):
    save_at(make_state(), attempt, 1)
    assert [path.name for path in attempt.folder.iterdir() if path.name.startswith(".")] == []


def test_the_weights_of_the_best_epoch_are_loaded(attempt):
    state = make_state()
    for epoch, score in enumerate([0.1, 0.9, 0.3, 0.4], 1):
        save_at(state, attempt, epoch, score=score)
    checkpoint.load_best(state, attempt)
    assert where(state) == (2, 0)
    assert state.epoch == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"000001-00000000\.pt of the best epoch is damaged; the same command continues from before it"),
        (Path.unlink, r"000001-00000000\.pt of the best epoch is missing; train again with resume=never"),
    ],
    ids=["damaged", "missing"],
)
def test_damaged_best_weights_are_refused(attempt, damage, message):
    state = make_state()
    save_at(state, attempt, 1, score=0.5)
    damage(attempt.folder / "000001-00000000.pt")
    with pytest.raises(UserError, match=message):
        checkpoint.load_best(state, attempt)


def test_where_the_best_one_is_damaged_training_goes_back_before_it_and_makes_it_again(attempt, capsys):
    state = make_state()
    for epoch, score in enumerate([0.3, 0.1, 0.9, 0.5, 0.4], 1):
        save_at(state, attempt, epoch, score=score, every_epochs=2)
    flip_a_bit(attempt.folder / "000003-00000000.pt")
    fresh = make_state()
    assert checkpoint.restore(fresh, attempt)
    assert (fresh.epoch, fresh.best_epoch) == (2, 1)
    assert "000005-00000000.pt is not used: that of its best epoch, 000003-00000000.pt, is damaged" in capsys.readouterr().out
    save_at(fresh, attempt, 3, score=0.9, every_epochs=2)
    checkpoint.load_best(fresh, attempt)
    assert where(fresh) == (3, 0)


def test_where_nothing_from_before_the_damaged_best_one_is_left_training_ends_before_it_begins(attempt):
    state = make_state()
    for epoch, score in enumerate([0.9, 0.1, 0.3], 1):
        save_at(state, attempt, epoch, score=score)
    flip_a_bit(attempt.folder / "000001-00000000.pt")
    with pytest.raises(
        UserError, match="000001-00000000.pt of the best epoch is damaged, and none from before it is left; train again"
    ):
        checkpoint.restore(make_state(), attempt)


# ---- attempts --------------------------------------------------------------------------------------------------------


def open_and_close(store, key="train-1", resume=True, ended=None):
    with open_attempt(store, key, resume=resume) as attempt:
        if ended:
            attempt.end(ended)
        return attempt.folder.relative_to(store).as_posix()


def test_an_interrupted_attempt_is_continued(tmp_path):
    assert [open_and_close(tmp_path), open_and_close(tmp_path)] == ["train-1/001", "train-1/001"]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_after_an_ended_attempt_a_new_one_opens(tmp_path, status):
    assert open_and_close(tmp_path, ended=status) == "train-1/001"
    assert open_and_close(tmp_path) == "train-1/002"
    assert open_and_close(tmp_path) == "train-1/002"


def test_without_resume_a_new_one_opens_and_the_old_one_has_ended(tmp_path):
    open_and_close(tmp_path)
    assert open_and_close(tmp_path, resume=False) == "train-1/002"
    assert (tmp_path / "train-1" / "001" / "ENDED").read_text() == "KILLED"
    assert not Attempt(tmp_path / "train-1" / "002").has_ended


def test_attempts_are_counted_as_numbers(tmp_path):
    (tmp_path / "train-1" / "999").mkdir(parents=True)
    Attempt(tmp_path / "train-1" / "999").end("FINISHED")
    assert [open_and_close(tmp_path), open_and_close(tmp_path)] == ["train-1/1000", "train-1/1000"]


def test_keys_do_not_share_attempts(tmp_path):
    with open_attempt(tmp_path, "a", resume=True) as one, open_attempt(tmp_path, "b", resume=True) as other:
        assert one.folder.parent != other.folder.parent


@pytest.mark.parametrize("resume", [True, False])
def test_two_cannot_hold_the_same_key(tmp_path, resume):
    with ExitStack() as stack:
        stack.enter_context(open_attempt(tmp_path, "train-1", resume=True))
        with pytest.raises(UserError, match="another process is training this configuration now"):
            stack.enter_context(open_attempt(tmp_path, "train-1", resume=resume))
    assert open_and_close(tmp_path) == "train-1/001"  # the first has let go, and the second changed nothing


def test_an_error_lets_go_of_the_key(tmp_path):
    with pytest.raises(ZeroDivisionError), open_attempt(tmp_path, "train-1", resume=True):
        raise ZeroDivisionError
    assert open_and_close(tmp_path) == "train-1/001"


def test_what_a_killed_save_left_is_swept(tmp_path):
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        save_at(make_state(), attempt, 1)
        (attempt.folder / ".tmp-000002-00000000.pt").write_bytes(b"half")
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        assert sorted(path.name for path in attempt.folder.iterdir()) == ["000001-00000000.pt", "000001-00000000.sha256"]


def test_a_digest_without_its_checkpoint_is_swept(tmp_path):
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        save_at(make_state(), attempt, 1)
        (attempt.folder / "000002-00000000.sha256").write_text("0" * 64)  # killed between the two
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        assert sorted(path.name for path in attempt.folder.iterdir()) == ["000001-00000000.pt", "000001-00000000.sha256"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"run_id": "a\xff"}', b'{"run_id'], ids=repr)
def test_a_damaged_note_of_the_run_is_said_and_a_new_run_opens(tmp_path, capsys, content):
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        (attempt.folder / "run.json").write_bytes(content)
        assert attempt.run_id is None
    assert "run.json is damaged" in capsys.readouterr().out


def test_an_attempt_remembers_its_run(tmp_path):
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        assert attempt.run_id is None
        attempt.adopt("abc")
    with open_attempt(tmp_path, "train-1", resume=True) as attempt:
        assert attempt.run_id == "abc"
        assert json.loads((attempt.folder / "run.json").read_text()) == {"run_id": "abc"}
