"""What a machine does to a training: full disks, folders that cannot be written, flipped bits, kills, clocks that go back."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from learning_data import one_thread  # noqa: F401 - applies by being here
from mlflow import MlflowClient
from test_checkpoint import files, make_state, save_at, where

from tests.conftest import ROOT, do, fast
from tracked_cls import afterword, checkpoint, experiment, failpoints, signals, training
from tracked_cls.checkpoint import Attempt, open_attempt
from tracked_cls.config import TrainConfig
from tracked_cls.errors import UserError
from tracked_cls.host import refusal
from tracked_cls.processes import Process
from tracked_cls.step import Stepper

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def attempt(tmp_path):
    return Attempt(tmp_path)


@contextmanager
def limited(kind, value):
    """Hold this process to a limit."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def disk(folder, *options):
    """Mount a disk of its own at a folder, where this user may."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ---- the disk ----------------------------------------------------------------------------------------------------------


def check_whole(attempt):
    """Check that the first checkpoint is all there is, and sound."""
    assert sorted(path.name for path in attempt.folder.iterdir()) == ["000001-00000000.pt", "000001-00000000.sha256"]
    fresh = make_state()
    assert checkpoint.restore(fresh, attempt)
    assert where(fresh) == (1, 0)


def test_a_full_disk_is_told_with_what_is_needed_and_free_and_loses_nothing(tmp_path):
    size = 1024
    with disk(tmp_path / "disk", f"size={size}k") as folder:
        attempt, state = Attempt(folder), make_state()
        save_at(state, attempt, 1, score=0.5)
        needed = (folder / "000001-00000000.pt").stat().st_size
        free = size * 1024 - needed - 4096
        (folder / "filler").write_bytes(bytes(free - needed // 2))
        with pytest.raises(UserError, match="No space left on device") as caught:
            save_at(state, attempt, 2, score=0.6)
        (folder / "filler").unlink()
        check_whole(attempt)
        save_at(state, attempt, 2)
        assert len(files(attempt)) == 2, "with room it goes on"
    message = str(caught.value)
    assert message.startswith(f"checkpoint.store: {folder / '000002-00000000.pt'}: No space left on device (")
    told = int(message.partition("(")[2].partition(" bytes needed")[0].replace(",", ""))
    assert abs(told - needed) < 1000
    assert message.endswith("what was saved before is whole, and the same command continues from there")
    assert "\n" not in message


def next_file_number():
    number = os.open("/", os.O_RDONLY)
    os.close(number)
    return number


@contextmanager
def read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@pytest.mark.parametrize("what", ["read-only", "too large", "too many files"])
def test_what_cannot_be_written_is_told_with_its_place_and_the_cure(tmp_path, what):
    limits = {
        "read-only": read_only,
        "too large": lambda folder: limited(resource.RLIMIT_FSIZE, 50_000),
        "too many files": lambda folder: limited(resource.RLIMIT_NOFILE, next_file_number()),
    }
    cures = {
        "read-only": r"Read-only file system \([\d,]+ bytes needed, [\d,]+ free\); make it writable",
        "too large": r"File too large \([\d,]+ bytes needed, [\d,]+ free\); raise the largest size of a file \(ulimit -f\)",
        "too many files": r"Too many open files .*\d+ may be open at a time: raise that by ulimit -n \d+",
    }
    with disk(tmp_path / "disk", "size=4m") as folder:
        attempt, state = Attempt(folder), make_state()
        save_at(state, attempt, 1)
        with limits[what](folder), pytest.raises(UserError, match=cures[what]) as caught:
            save_at(state, attempt, 2)
        assert f"{folder}/" in str(caught.value)
        check_whole(attempt)


def test_a_store_on_a_read_only_disk_is_told_before_training(tmp_path):
    with disk(tmp_path / "disk", "size=64k", "ro") as folder:
        with pytest.raises(UserError, match=rf"checkpoint.store: {folder}/train-1: Read-only file system; make it writable"):
            with open_attempt(folder, "train-1", resume=True):
                pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "/a/b"), "/a/b: No space left on device; free some room there, or write elsewhere"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded; free some of your quota there, or write elsewhere"),
        (sqlite3.OperationalError("database or disk is full"), "No space left on device; free"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "Read-only file system; make it"),
        (OSError(errno.EMFILE, "x"), "Too many open files; "),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "Too many open files; "),
        (OSError(errno.ENOTDIR, "x", "/a/b"), "/a/b: Not a directory; a part of this path is a file: move it away"),
        (OSError(errno.ENOENT, "x"), None),
        (ValueError("x"), None),
    ],
    ids=[
        "full",
        "quota",
        "sqlite full",
        "sqlite read-only",
        "files",
        "files in PyTorch",
        "a file in the way",
        "not there",
        "another",
    ],
)
def test_refusals_are_told_in_one_line(error, told):
    assert (refusal(error) or "None").startswith(str(told))


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_a_refusal_is_found_behind_the_error_it_became(link):
    error = RuntimeError("Communication with the workers is no longer possible")
    setattr(error, link, OSError(errno.EMFILE, "x"))
    assert refusal(error).startswith("Too many open files")


def test_a_checkpoint_appears_once_it_is_on_the_disk_and_its_name_too(attempt, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(number):
        order.append(("fsync", Path(f"/proc/self/fd/{number}").readlink().name))
        fsync(number)

    def noting_replace(path, target):
        order.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    save_at(make_state(), attempt, 1)
    each = [[("fsync", f".tmp-{name}"), ("rename", f".tmp-{name}"), ("fsync", attempt.folder.name)]
            for name in (f"000001-00000000.sha256-{Process.me().mark}", "000001-00000000.pt")]  # fmt: skip
    assert order == [*each[0], *each[1]]


@pytest.mark.parametrize("failing", [0, 2], ids=["of the digest", "of the checkpoint"])
def test_what_the_disk_does_not_confirm_does_not_appear(attempt, monkeypatch, failing):
    state = make_state()
    save_at(state, attempt, 1)
    calls, fsync = itertools.count(), os.fsync

    def refusing(number):
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        fsync(number)

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(UserError, match="000002-00000000.pt: Input/output error .*; look after the health of that device"):
        save_at(state, attempt, 2)
    assert files(attempt) == ["000001-00000000.pt"]
    assert not list(attempt.folder.glob(".tmp-*"))


# ---- bits, kills, clocks -----------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_seen_wherever_it_is_and_the_one_before_is_used(attempt, capsys):
    """20 places: 14 over the checkpoint, 6 over its digest."""
    state = make_state()
    save_at(state, attempt, 1)
    save_at(state, attempt, 2)
    newest = attempt.folder / "000002-00000000.pt"
    places = [(newest, place / 14) for place in range(14)] + [(newest.with_suffix(".sha256"), place / 6) for place in range(6)]
    for number, (path, place) in enumerate(places):
        whole = path.read_bytes()
        content = bytearray(whole)
        content[int(len(content) * place)] ^= 1 << number % 8
        path.write_bytes(content)
        fresh = make_state()
        assert checkpoint.restore(fresh, attempt)
        assert where(fresh) == (1, 0), (path, place)
        path.write_bytes(whole)
    assert capsys.readouterr().out.count("000002-00000000.pt is damaged") == 20


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("seed", range(3))
def test_the_best_epoch_is_never_lost_nor_a_worse_one_in_its_place(attempt, monkeypatch, seed):
    """Each epoch is killed at a random place of its save, and again, until it comes through: some 40 kills a seed."""
    dice = random.Random(seed)
    score_of = {epoch: dice.choice([0.1, 0.2, 0.3, 0.4, 0.5]) for epoch in range(1, 16)}

    def die_at(chosen):
        def reach(name):
            if name == chosen:
                raise Killed

        monkeypatch.setattr(failpoints, "reach", reach)

    points = [name for name in failpoints.POINTS if name.startswith("checkpoint.")]
    kills = 0
    while True:
        state = make_state()
        checkpoint.restore(state, attempt)
        if state.best_epoch:
            assert state.best_score == max(score_of[epoch] for epoch in range(1, state.epoch + 1))
            checkpoint.load_best(state, attempt)
            assert where(state) == (state.best_epoch, 0)
            checkpoint.restore(state, attempt)
        if state.epoch == 15:
            break
        die_at(dice.choice([*points, None]))
        try:
            save_at(state, attempt, state.epoch + 1, score=score_of[state.epoch + 1])
        except Killed:
            kills += 1
    assert kills > 10


def test_the_order_of_checkpoints_is_that_of_their_names_whatever_the_clock_says(attempt):
    state = make_state()
    for epoch in (9, 10, 11):
        save_at(state, attempt, epoch)
        path = attempt.folder / f"{epoch:06d}-00000000.pt"
        os.utime(path, (2e9 - epoch * 1e6, 2e9 - epoch * 1e6))  # the clock goes back as they are written
    assert files(attempt) == ["000010-00000000.pt", "000011-00000000.pt"]
    fresh = make_state()
    checkpoint.restore(fresh, attempt)
    assert where(fresh) == (11, 0)


def test_no_duration_is_taken_from_the_clock_on_the_wall():
    """`time.time` is for what people read, and for what several machines compare; it may jump."""
    read_by_others = {
        "tuning/claims.py": "when a trial was released",
        "delivery.py": "when a run was last heard of",
        "journal.py": "how old an entry is, never below 0",
        "tracking/telemetry.py": "the step of what a run measures, which may go on elsewhere",
    }
    source = Path(checkpoint.__file__).parent
    users = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if "time.time(" in path.read_text()}
    assert users <= set(read_by_others)


# ---- two on one folder -------------------------------------------------------------------------------------------------


def _race(store, together, wins):
    for number in range(20):
        together.wait()
        try:
            with open_attempt(store, f"train-{number}", resume=True):
                together.wait()  # both have tried
                wins.put(number)
        except UserError:
            together.wait()


def test_of_two_processes_on_one_folder_one_wins_twenty_times(tmp_path):
    together, wins = FORK.Barrier(2, timeout=20), FORK.Queue()
    racers = [FORK.Process(target=_race, args=(tmp_path, together, wins)) for _ in range(2)]
    for racer in racers:
        racer.start()
    assert sorted(wins.get(timeout=20) for _ in range(20)) == list(range(20))
    for racer in racers:
        racer.join(20)
        assert racer.exitcode == 0
    assert wins.empty()


def test_a_lock_of_a_killed_process_does_not_block(tmp_path):
    up = FORK.Event()
    holder = FORK.Process(target=_hold, args=(tmp_path, up))
    holder.start()
    assert up.wait(10)
    with pytest.raises(UserError, match="another process is training this configuration now"):
        _open(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    _open(tmp_path)


def _hold(store, up):
    with open_attempt(store, "train-1", resume=True):
        up.set()
        signal.pause()


def _open(store):
    with open_attempt(store, "train-1", resume=True):
        pass


# ---- whole trainings ---------------------------------------------------------------------------------------------------


SMALL = {"limit": 100, "batch_size": 32, "promote__auto": "never"}


def learn(store, **options):
    """Train without testing and exporting, which take longest."""

    def use_case(cfg, tracker):
        return experiment.learn(cfg, tracker, kind="fold", name="learned")

    return do(use_case, TrainConfig, [*fast(**{**SMALL, **options}), *store])


def test_a_roll_back_that_is_killed_comes_to_the_same_weights(tmp_path, store, trained, monkeypatch):
    """A batch spoils the loss until the rate was halved twice; killed after each roll back, at its start, and after a step."""
    taken, kill_at = Stepper.step, []

    def step(self, batch):
        state = self._state
        where = (state.epoch, state.batch, state.schedule.scale)
        if where[:2] == (1, 2) and where[2] > 0.3:
            batch.images[0] = float("nan")
        if where in kill_at:
            kill_at.remove(where)
            raise Killed
        taken(self, batch)

    monkeypatch.setattr(training.Stepper, "step", step)
    options = {"seed": 14, "epochs": 2, "training__on_nan": "rollback", "checkpoint__every_seconds": 0.001}
    whole = learn(store, checkpoint__store=tmp_path / "whole", **options)
    kill_at += [(1, 0, 0.5), (1, 2, 0.5), (1, 1, 0.25)]
    for _ in range(3):
        with pytest.raises(Killed):
            learn(store, checkpoint__store=tmp_path / "killed", **options)
    assert learn(store, checkpoint__store=tmp_path / "killed", **options).weights_digest == whole.weights_digest


def test_a_training_on_a_full_disk_stops_and_goes_on_to_the_same_weights_when_there_is_room(tmp_path, store, client):
    options = {"seed": 15, "epochs": 2}
    with disk(tmp_path / "disk", "size=3m") as folder:
        filler = folder / "filler"
        filler.write_bytes(bytes(1_900_000))  # room for the first checkpoint, not for the second
        with pytest.raises(UserError, match=f"checkpoint.store: {folder}/runs/fold-.*No space left on device"):
            learn(store, checkpoint__store=folder / "runs", **options)
        (run_file,) = folder.glob("runs/*/001/run.json")
        run_id = json.loads(run_file.read_text())["run_id"]
        assert client.get_run(run_id).info.status == "FAILED"
        filler.unlink()
        learned = learn(store, checkpoint__store=folder / "runs", **options)
    assert learned.run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert learned.weights_digest == learn(store, checkpoint__store=tmp_path / "whole", **options).weights_digest


# ---- `mlflow run` ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "tags", "final"),
    [
        pytest.param("FAILED", {"kind": "train"}, "KILLED", id="MLflow wrote over it"),
        pytest.param("FAILED", {}, "KILLED", id="stopped before it began"),
        pytest.param("RUNNING", {}, "KILLED", id="stopped before it began, and MLflow killed"),
        pytest.param("RUNNING", {"kind": "train"}, "RUNNING", id="it goes on already"),
        pytest.param("FINISHED", {"kind": "resume"}, "FINISHED", id="a pointer"),
    ],
)
def test_the_last_word_on_a_run_that_a_signal_stopped(store, client, monkeypatch, status, tags, final):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[1])
    run_id = client.create_run("0", tags=tags).info.run_id
    if status != "RUNNING":
        client.set_terminated(run_id, status, end_time=1_000)
    afterword.speak(run_id, [])
    run = client.get_run(run_id)
    assert run.info.status == final
    assert status == "RUNNING" or run.info.end_time == 1_000


def test_the_last_word_waits_for_who_may_speak_yet_but_not_for_ever(store, client, monkeypatch):
    monkeypatch.setattr(afterword, "_WAIT_SECONDS", 0.3)
    run_id = client.create_run("0").info.run_id
    started = time.monotonic()
    afterword.speak(run_id, [Process.me()])
    assert time.monotonic() - started >= 0.3


TO_MLFLOW, TO_ALL = os.kill, os.killpg


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "signals_sent"),
    [
        pytest.param(TO_ALL, [signal.SIGINT], id="Ctrl-C"),
        pytest.param(TO_ALL, [signal.SIGINT, signal.SIGINT], id="Ctrl-C twice"),
        pytest.param(TO_MLFLOW, [signal.SIGINT], id="SIGINT to mlflow alone"),
        pytest.param(TO_MLFLOW, [signal.SIGTERM], id="SIGTERM to mlflow alone"),
        pytest.param(TO_ALL, [signal.SIGTERM], id="SIGTERM to all"),
        pytest.param(TO_MLFLOW, [signal.SIGKILL], id="mlflow killed"),
        pytest.param(TO_ALL, [signal.SIGHUP], id="terminal closed"),
    ],
)
def test_a_signal_to_mlflow_run_ends_the_run_killed(tmp_path, send, signals_sent):
    """Two processes at most live on for a moment: the training, and the one that says the last word."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"model": "small_cnn", "epochs": 20, "limit": 100, "threads": 1}
    words = [word for key, value in options.items() for word in ("-P", f"{key}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train", "--env-manager", "local", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=_hear_all,
    )  # fmt: skip
    next(line for line in process.stdout if line.startswith("epoch  2/20"))
    for signum in signals_sent:
        send(process.pid, signum)
        time.sleep(0.1)
    said = process.stdout.read()  # to the end of the training
    process.wait()
    assert "interrupted: saved after epoch" in said
    (run_file,) = tmp_path.glob("runs/*/001/run.json")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = json.loads(run_file.read_text())["run_id"]
    until = time.monotonic() + 90
    while client.get_run(run_id).info.status != "KILLED" and time.monotonic() < until:
        time.sleep(1)
    assert client.get_run(run_id).info.status == "KILLED"


def _hear_all():
    for signum in signals.SIGNALS:  # whoever runs this may ignore some
        signal.signal(signum, signal.SIG_DFL)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library")
def test_what_a_step_frees_is_kept_for_the_next_one():
    code = """
import ctypes, resource
from tracked_cls.host import keep_freed_memory
kept, library, size_bytes = keep_freed_memory(), ctypes.CDLL(None), 64 << 20
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = library.malloc(size_bytes)
    ctypes.memset(place, 1, size_bytes)
    library.free(place)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    for own in ({}, {"MALLOC_MMAP_THRESHOLD_": "100000"}):
        words = [sys.executable, "-c", code]
        paths = {"PYTHONPATH": str(ROOT / "src")}
        told = subprocess.run(
            words, env={**environment, **paths, **own}, check=True, capture_output=True, text=True
        ).stdout.split()
        assert told[0] == str(not own)
        assert own or int(told[1]) < 16, "the last turn wrote to 16,384 pages, 32 where they are huge"
