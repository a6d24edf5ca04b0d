"""Several processes that train together: the numbers of one, and a training that goes on after any of them is killed."""

from __future__ import annotations

import signal

import pytest

from tests.faults import remains
from tests.faults.harness import ask, run, tail, together
from tests.faults.jobs import Site

LAYERS = "[{Conv2d: {out_channels: 8, kernel_size: 3}}, ReLU, {MaxPool2d: {kernel_size: 2}}, Flatten, Linear]"
PLAIN = (
    "--model",
    "sequential",
    "--model.args",
    f"{{layers: {LAYERS}}}",
    "--threads",
    "1",
    "--training.precision",
    "float32",
)
MIXED = ("--transforms.train", "[{RandomAffine: {degrees: 10}}, {MixUp: {alpha: 0.2}}]")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A workspace with prepared digits."""
    return Site(tmp_path_factory.mktemp("ranks"))


def training(site, name, *words, **options):
    """Return a training of few images, which is not registered in the end."""
    return site.train(name, "--limit", "400", *words, **options)


def curves(site, name):
    """Return name -> value by epoch of the one training of an experiment."""
    (only,) = ask(remains.of_run, site.uri, name, "train")
    assert only["status"] == "FINISHED"
    return {(key, step): float.fromhex(value) for key, step, value in only["history"] if key != "parity_max_difference"}


@pytest.fixture(scope="module")
def whole(site):
    """What two processes leave that nobody disturbs: BatchNorm, dropout, a moving average, checkpoints inside epochs."""
    assert together(training(site, "whole"), 2) == [0, 0]
    return site.left("whole", "train")


def test_several_processes_train_to_the_numbers_of_one(site):
    run(training(site, "alone", *MIXED, network=PLAIN))
    assert together(training(site, "three", *MIXED, network=PLAIN), 3) == [0, 0, 0]

    assert curves(site, "three") == pytest.approx(curves(site, "alone"), rel=1e-4)


def test_the_same_seed_gives_the_same_bits_again(site, whole):
    assert together(training(site, "again"), 2) == [0, 0]

    assert site.left("again", "train") == whole


@pytest.mark.parametrize(("rank", "kill"), [(0, "train.before_save:12"), (1, "SIGKILL")])
def test_a_training_of_which_one_process_is_killed_goes_on_to_the_same_bits(site, whole, rank, kill):
    name = f"killed-{rank}-{str(kill).replace('.', '-').replace(':', '-')}"
    codes = together(training(site, name), 2, kills={rank: kill})
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] in (1, 128 + signal.SIGTERM), tail(training(site, name))

    assert together(training(site, name), 2) == [0, 0]

    assert site.left(name, "train") == whole


@pytest.mark.slow
def test_three_processes_go_on_to_the_same_bits_too(site):
    assert together(training(site, "three-whole"), 3) == [0, 0, 0]
    assert together(training(site, "three-killed"), 3, kills={0: "train.before_save:12"})[0] == -signal.SIGKILL

    assert together(training(site, "three-killed"), 3) == [0, 0, 0]

    assert site.left("three-killed", "train") == site.left("three-whole", "train")


def test_started_again_by_a_launcher_it_goes_on_whatever_resume_says(site, whole):
    command = training(site, "anew", "--resume", "never")
    assert together(command, 2, kills={0: "train.after_metrics:2"})[0] == -signal.SIGKILL

    assert together(command, 2, restarts=1) == [0, 0]

    assert site.left("anew", "train") == whole


def test_it_may_go_on_in_another_number_of_processes_and_says_what_that_changes(site, whole):
    assert together(training(site, "fewer"), 2, kills={0: "train.after_metrics:2"})[0] == -signal.SIGKILL

    run(training(site, "fewer"))

    assert "by 1 process instead of 2" in tail(training(site, "fewer"))
    found, expected = curves(site, "fewer"), curves(site, "whole")
    assert found.keys() == expected.keys()
    assert found["train_loss", 1] == expected["train_loss", 1]
    assert found["train_loss", 3] == pytest.approx(expected["train_loss", 3], rel=0.05)


def test_told_to_stop_all_of_them_stop_at_one_step_and_the_run_is_killed(site, whole):
    command = training(site, "stopped")
    codes = together(command, 2, kills={1: "SIGTERM"})
    assert codes == [128 + signal.SIGTERM] * 2, tail(command)
    assert "the same command continues from here" in tail(command)
    (only,) = ask(remains.of_run, site.uri, "stopped", "train")
    assert only["status"] == "KILLED"

    assert together(command, 2) == [0, 0]

    assert site.left("stopped", "train") == whole


def test_a_training_that_stopped_early_is_tested_after_a_kill(site):
    command = training(site, "early", "--training.patience", "1", "--training.min_delta", "0.9")
    assert together(command, 2, kills={0: "train.after_loop"})[0] == -signal.SIGKILL

    assert together(command, 2) == [0, 0]

    assert max(step for name, step in curves(site, "early") if name == "train_loss") == 2


def test_all_go_on_where_the_first_process_is_lost_after_the_training(site, whole):
    command = training(site, "lost-in-its-test")
    assert together(command, 2, kills={0: "train.before_test"}, tells=False) == [-signal.SIGKILL, 1]

    assert together(command, 2) == [0, 0]

    assert site.left("lost-in-its-test", "train") == whole


# ---- what cannot work is said, by one of them ------------------------------------------------------------------------


def test_processes_that_prepared_other_data_do_not_train(site):
    command = training(site, "other-data")
    other = ("--data.split_seed", "7", "--data.store", str(site.home / "data-of-another-machine"))

    assert together(command, 2, own={1: other}, sees_first=False)[0] == 2

    said = [line for line in tail(command, 50_000).splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "the processes have prepared different images" in said[0]
    assert ask(remains.of_run, site.uri, "other-data", "train") == []


def test_the_first_process_learns_that_another_has_no_room_for_its_data(site):
    command = training(site, "no-room")
    (site.home / "a file").touch()
    other = ("--data.store", str(site.home / "a file" / "data"))

    assert together(command, 2, own={1: other}, sees_first=False, tells=False) == [1, 2]

    said = [line for line in tail(command, 50_000).splitlines() if line.startswith("error")]
    assert [line for line in said if line.startswith("error: process 1 of 2 has ended: ") and "a file" in line]
    assert ask(remains.of_run, site.uri, "no-room", "train") == []


def test_the_first_process_learns_that_another_was_killed_while_it_waits_for_it(site):
    command = training(site, "gone", "--distributed.timeout_seconds", "4")
    other = ("--data.store", str(site.home / "data-of-one-that-is-killed"))
    kills = {1: "prepare.before_manifest"}

    assert together(command, 2, own={1: other}, kills=kills, sees_first=False, tells=False) == [1, -signal.SIGKILL]

    assert "error: process 1 of 2 has shown no sign of life for 4 s; the same command continues" in tail(command, 50_000)


def test_a_divergence_is_told_by_the_first_process(site):
    deep = "[Flatten, {Linear: {out_features: 64}}, ReLU, {Linear: {out_features: 64}}, ReLU, Linear]"
    network = (
        "--model",
        "sequential",
        "--model.args",
        f"{{layers: {deep}}}",
        "--threads",
        "1",
        "--training.precision",
        "float32",
    )
    wild = ("--optimizer", "sgd", "--optimizer.lr", "100", "--scheduler", "constant")
    command = training(site, "diverged", *wild, network=network)

    assert together(command, 2) == [1, 1], tail(command)

    assert "error: train_loss became" in tail(command, 50_000)
    (only,) = ask(remains.of_run, site.uri, "diverged", "train")
    assert only["status"] == "FAILED"


def test_a_process_that_nobody_comes_to_says_so_and_ends(site):
    command = training(site, "lonely", "--distributed.timeout_seconds", "2")

    assert together(command, 2, absent=1) == [2]

    assert "error: process 0 of 2 waited 2 s for the others" in tail(command, 50_000)


def test_shares_too_small_for_batchnorm_are_refused(site):
    command = training(site, "small-shares", "--batch_size", "4")

    assert together(command, 3)[0] == 2

    assert "batch_size=4: steps of 4 images give 3 processes fewer than 2 each" in tail(command, 50_000)


def test_batchnorm_over_all_processes_is_refused_where_there_are_no_gpus(site):
    command = training(site, "synchronised", "--training.sync_batchnorm", "true", "--device", "cpu")

    assert together(command, 2)[0] == 2

    assert "training.sync_batchnorm=true needs GPUs" in tail(command, 50_000)


def test_folds_are_refused_where_several_processes_were_started(site):
    command = training(site, "folds", "--folds", "2")

    assert together(command, 2)[0] == 2

    assert "folds=2 and 2 processes do not go together" in tail(command, 50_000)
