"""The signals that ask to stop: the first counts, at once or at the end of what must not be cut in two; the rest pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tracked_cls import signals
from tracked_cls.errors import Interrupted

ALL = pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)


@pytest.fixture(autouse=True)
def _handlers():
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in signals.SIGNALS}  # nohup may run the tests
    signals.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum):
    os.kill(os.getpid(), signum)


@ALL
def test_outside_a_signal_interrupts_at_once(signum, code):
    with pytest.raises(Interrupted) as caught:
        send(signum)
    assert caught.value.exit_code == code


@ALL
def test_deferred_holds_a_signal_back_to_the_end_of_the_block(signum, code):
    seen = []

    def work():
        with signals.deferred() as interrupted:
            seen.append(interrupted())
            send(signum)
            seen.append(interrupted())

    with pytest.raises(Interrupted) as caught:
        work()
    assert seen == [False, True]
    assert caught.value.exit_code == code


def test_deferred_without_a_signal_is_silent():
    with signals.deferred() as interrupted:
        assert not interrupted()


def test_of_blocks_inside_each_other_the_outermost_counts():
    reached = []
    with pytest.raises(Interrupted), signals.deferred():
        with signals.deferred():
            send(signal.SIGTERM)
        reached.append("the end of the inner one")
    assert reached


def test_an_error_inside_a_deferred_block_ends_the_deferral():
    with pytest.raises(ZeroDivisionError), signals.deferred():
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_a_command_does_not_catch_an_interruption_by_accident():
    assert not issubclass(Interrupted, Exception)


@ALL
def test_what_follows_the_first_does_not_cut_the_ending_in_two(signum, code):
    with pytest.raises(Interrupted) as caught:
        send(signum)
    for later in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        send(later)
    with signals.deferred() as interrupted:
        send(signal.SIGTERM)
        assert not interrupted()
    assert caught.value.exit_code == code


def test_held_back_the_first_gives_the_exit_code():
    with pytest.raises(Interrupted) as caught, signals.deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert caught.value.exit_code == 130


def test_the_next_command_of_a_process_starts_anew():
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)
    signals.install()
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_what_nohup_ignores_stays_ignored_and_a_background_job_hears_sigint():
    for signum in signals.SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signals.install()
    send(signal.SIGHUP)
    with pytest.raises(Interrupted):
        send(signal.SIGINT)


# ---- a way out, and the launcher: in processes of their own ------------------------------------------------------------

ENDING = """
import sys, time
sys.path.insert(0, "src")
from tracked_cls import signals
from tracked_cls.errors import Interrupted
signals.install(once={once})
try:
    print("up", flush=True)
    time.sleep(60)
except Interrupted as interrupted:
    signals._since -= {already}
    print("ending", flush=True)
    time.sleep({seconds})  # a store that does not answer
    sys.exit(interrupted.exit_code)
"""


def start(code, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "up\n"
    return process


def press(process, times):
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two of a kind that wait are one


def ending(once=False, already=0, seconds=30):
    process = start(ENDING.format(once=once, already=already, seconds=seconds))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    return process


def test_ctrl_c_a_third_time_ends_at_once_and_the_second_says_so():
    process = ending()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping already: saving, and ending the run; Ctrl-C once more ends at once\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert "the same command continues from it" in process.stderr.read()


def test_ctrl_c_after_ten_seconds_ends_at_once():
    process = ending(already=10)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.readline().startswith("ended at once")


@pytest.mark.parametrize(
    ("once", "signum"), [(True, signal.SIGINT), (False, signal.SIGTERM)], ids=["a worker leaves it to its launcher", "SIGTERM"]
)
def test_other_signals_never_end_at_once(once, signum):
    process = ending(once=once, already=10, seconds=1)
    for _ in range(3):
        process.send_signal(signum)
        time.sleep(0.05)
    assert process.wait(10) == 130
    assert process.stderr.read() == ""


WATCHING = """
import os, sys, time
sys.path.insert(0, "src")
from tracked_cls import signals
from tracked_cls.errors import Interrupted
signals.install()
signals._POLL_SECONDS = 0.05
signals.watch_launcher()
try:
    print("up", os.getpid(), flush=True)
    time.sleep(20)
    print("nobody was missed", flush=True)
except Interrupted as interrupted:
    print("interrupted by", interrupted, flush=True)
"""
LAUNCHER = "import subprocess, sys; subprocess.run({command!r}, shell={shell})"


@pytest.mark.parametrize("between", ["nothing", "a shell"])
def test_a_process_whose_launcher_was_killed_behaves_as_on_sigterm(between, tmp_path):
    """A shell between the two stays, and the signal does not reach it."""
    (tmp_path / "watching.py").write_text(WATCHING)
    words = [sys.executable, str(tmp_path / "watching.py")]
    command = words if between == "nothing" else f"{words[0]} {words[1]}; true"
    launcher = LAUNCHER.format(command=command, shell=between != "nothing")
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline().startswith("up ")
    process.kill()
    assert process.stdout.read() == "interrupted by SIGTERM\n"
    process.wait()


def test_a_process_whose_launcher_is_there_is_left_alone():
    process = start(WATCHING.replace('"up", os.getpid()', '"up"').replace("sleep(20)", "sleep(0.5)"))
    assert process.communicate(timeout=20)[0] == "nobody was missed\n"
