"""Commands killed with SIGKILL, and started again, end as if nobody had killed them.

Most are forked from a process that has imported everything, a few are real ones. `python -m benchmarks.faults` does the same
two hundred times.
"""

from __future__ import annotations

import ast
import os
import signal
import timeit
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.faults import remains
from tests.faults.harness import ROOT, ask, attempt, moments, run, tail, until_done
from tests.faults.jobs import MODEL, Site, make_images
from tracked_cls import failpoints
from tracked_cls.errors import UserError

EPOCHS = 3
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A workspace with some pictures."""
    site = Site(tmp_path_factory.mktemp("kills"))
    make_images(site.images, 90)
    return site


@pytest.fixture(scope="module")
def killed(site):
    """The first training of the site, killed in its loop and while its model becomes champion."""
    places = ("train.before_save:4", 0.5, "checkpoint.before_rename:9", "train.after_metrics:1")

    def look(place):
        if str(place).startswith("release."):
            assert ask(remains.champion, site.uri, MODEL) in (None, {"address": f"models:/{MODEL}/1", "weights": ANY})

    story = until_done(site.train("killed"), (*places, "release.before_alias"), after_kill=look)
    assert story.kills >= 4, story
    return site.left("killed", "train")


@pytest.fixture(scope="module")
def whole(site, killed):
    """What an uninterrupted training leaves."""
    run(site.train("whole"))
    return site.left("whole", "train")


# ---- train -----------------------------------------------------------------------------------------------------------


def test_a_training_that_was_killed_ends_like_one_that_was_not(killed, whole):
    assert killed == whole


def test_it_has_one_run_whose_curves_have_every_epoch_once(killed):
    (only,) = killed["train"]
    steps = {name: [step for key, step, _ in only["history"] if key == name] for name in CURVES}

    assert (only["status"], only["threads"]) == ("FINISHED", "1")
    assert steps == {name: list(range(1, EPOCHS + 1)) for name in CURVES}


def test_killed_while_it_is_registered_there_is_one_version_which_is_champion(site, whole):
    (only,) = whole["train"]

    assert ask(remains.versions, site.uri, MODEL) == [only["tags"]["weights.digest"]]
    assert ask(remains.champion, site.uri, MODEL)["weights"] == only["tags"]["weights.digest"]


# ---- prepare, predict ------------------------------------------------------------------------------------------------


def test_a_preparation_that_was_killed_leaves_the_same_bytes_and_nothing_half_written(site):
    places = ("prepare.mid_intake:45", "prepare.before_complete", "prepare.after_complete", "prepare.before_current")
    left = []
    run(site.prepare("sound"))

    story = until_done(
        site.prepare("torn"), places, after_kill=lambda place: left.append(ask(remains.partial_sets, site.data("torn")))
    )

    assert story.kills == len(places)
    assert left == [1, 1, 1, 0]  # what a dead process left goes with the next start
    assert site.prepared("torn") == site.prepared("sound")


def test_a_prediction_that_was_killed_has_every_row_once(site, whole):
    run(site.predict("said"))

    died = attempt(site.predict("resaid"), "predict.mid_rows:3", forked=False)  # a real process, told by its environment
    story = until_done(site.predict("resaid"), ["predict.before_rename", "predict.after_rename"])

    assert (died, story.kills) == (-signal.SIGKILL, 2)
    assert site.predictions("resaid").read_bytes() == site.predictions("said").read_bytes()
    assert len(site.predictions("said").read_text().splitlines()) == 1 + 90
    assert not list(site.home.glob(".tmp-*"))


def test_no_run_is_left_running(site, whole):
    assert ask(remains.running, site.uri) == []


# ---- the places themselves -------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch):
    """The signals that a process would have sent itself; nothing is armed afterwards."""
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: signals.append((pid, signum)))
    yield signals
    failpoints.arm(None)


def test_every_place_is_in_the_code_and_every_call_is_known():
    calls = [
        node.args[0].value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.reach"
    ]

    assert sorted(calls) == sorted(failpoints.POINTS)


def test_the_process_dies_at_the_time_that_was_asked_for(sent):
    failpoints.arm("train.before_save:3")

    failpoints.reach("train.before_save")
    failpoints.reach("train.after_loop")
    failpoints.reach("train.before_save")
    assert sent == []
    failpoints.reach("train.before_save")

    assert sent == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.before_sav", "did you mean 'train.before_save'.*known: "),
        ("train.before_save:0", "ends in no count"),
        ("train.before_save:x", "ends in no count"),
    ],
    ids=["unknown", "zero", "no number"],
)
def test_a_place_that_is_not_there_is_refused(sent, text, message):
    with pytest.raises(UserError, match=message):
        failpoints.arm(text)


def test_a_place_costs_nothing_where_none_is_armed(sent):
    seconds = min(timeit.repeat(lambda: failpoints.reach("train.before_save"), number=20_000, repeat=5)) / 20_000

    assert seconds < 1e-6
    assert sent == []


# ---- the long ones ---------------------------------------------------------------------------------------------------

LOOP = [name for name in failpoints.POINTS if name.startswith(("checkpoint.", "train.after_metrics", "train.before_save"))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_killed_anywhere_ends_like_one_that_was_not(site, whole, seed, workers):
    name = f"anywhere-{seed}-{workers}"
    extra = () if workers == 0 else ("--transforms.speed", "sample", "--loader.workers", str(workers))
    want = whole if workers == 0 else _whole_of(site, extra)

    story = until_done(site.train(name, *extra), moments(seed, 10, 4.0, LOOP))

    assert story.kills
    assert site.left(name, "train") == want


def _whole_of(site, extra):
    run(site.train("whole-sampled", *extra)) if not Path(site.store("whole-sampled")).exists() else None
    return site.left("whole-sampled", "train")


@pytest.mark.slow
def test_a_real_process_learns_what_a_forked_one_does(site, whole):
    story = until_done(site.train("process"), ["train.before_save:30", 12.0], forked=False)

    assert story.kills
    assert site.left("process", "train") == whole


def other_model(site, name, *extra):
    """Train under another name of the data, so that the model becomes a champion of its own."""
    return site.train(name, "--data.name", name, *extra, epochs=1), f"{name}-classifier"


@pytest.mark.slow
def test_killed_at_every_step_of_a_release_there_is_a_sound_champion_or_none(site, whole):
    steps = ("before_log_model", "mid_log_model", "after_log_model", "before_version", "after_version", "before_alias")
    job, model = other_model(site, "stepwise")
    champions = []

    story = until_done(
        job,
        [f"release.{step}" for step in (*steps, "after_alias")],
        after_kill=lambda place: champions.append(ask(remains.champion, site.uri, model)),
    )

    assert story.kills == len(steps) + 1
    assert champions[: len(steps)] == [None] * len(steps)
    assert champions[-1] == ask(remains.champion, site.uri, model)
    assert len(ask(remains.versions, site.uri, model)) == 1


@pytest.mark.slow
def test_a_version_that_was_damaged_before_its_promotion_never_becomes_champion(site, whole):
    job, model = other_model(site, "damaged")
    before = set(site.home.rglob("model.onnx"))
    assert attempt(job, "release.before_alias") == -signal.SIGKILL
    (logged,) = (path for path in set(site.home.rglob("model.onnx")) - before if "mlruns" in path.parts)
    content = bytearray(logged.read_bytes())
    content[len(content) // 2] ^= 1
    logged.write_bytes(content)

    assert attempt(job, None) == 2
    assert ask(remains.champion, site.uri, model) is None
    assert "error: " in tail(job)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_workers_and_repeats_change_nothing_at_a_number_of_threads(site, whole, threads):
    digests = {ask(remains.of_training, site.uri, workers, threads) for workers in (0, 1, 2, 4, 0)}

    assert len(digests) == 1
