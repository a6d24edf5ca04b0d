"""Which process did something, and whether it is still there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tracked_cls import processes
from tracked_cls.processes import Process

HERE = socket.gethostname()
OTHER_BOOT = "00000000-1111-2222-3333-444444444444"


@pytest.fixture
def sleeper():
    """A process that sleeps, under a name that makes its /proc/<pid>/stat hard to read."""
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) R b 1 2')"
    command = f"{rename}; print('up', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def process_of(popen):
    words = Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()
    return replace(Process.me(), pid=popen.pid, started=int(words[19]))


def test_a_process_is_read_as_it_was_written():
    me = Process.me()
    assert Process.parse(str(me)) == me
    assert (me.host, me.pid) == (HERE, os.getpid())
    assert me.started > 0
    assert len(me.boot) == 36


def test_one_without_a_known_boot_is_read_too():
    assert Process.parse("far 12 345") == Process("far", 12, 345)
    assert str(Process("far", 12, 345)) == "far 12 345"


@pytest.mark.parametrize(
    "text", [None, "", "released 1763749000.25", "host 12", "host 1 2 3", "host x 1", "host -1 2", f"host {10**20} 1"]
)
def test_what_is_no_process_is_none(text):
    assert Process.parse(text) is None


def test_it_is_gone_once_it_was_killed_also_before_its_parent_looks(sleeper):
    process = process_of(sleeper)
    assert not process.is_gone()
    sleeper.send_signal(signal.SIGSTOP)
    assert not process.is_gone(), "one that is held may go on"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(), "a zombie"
    sleeper.wait()
    assert process.is_gone()


@pytest.mark.parametrize(
    ("change", "is_gone"),
    [
        pytest.param({}, False, id="this one"),
        pytest.param({"started": 1}, True, id="an earlier one of the same id"),
        pytest.param({"boot": OTHER_BOOT}, True, id="one before the reboot"),
        pytest.param({"boot": ""}, False, id="boot unknown"),
        pytest.param({"started": 0}, False, id="start unknown"),
        pytest.param(
            {"host": f"{HERE}x", "boot": OTHER_BOOT, "pid": 999_999_999}, False, id="of another machine: nobody knows"
        ),
    ],
)
def test_who_is_gone(change, is_gone):
    assert replace(Process.me(), **change).is_gone() is is_gone


def test_without_proc_it_is_gone_when_it_does_not_exist(monkeypatch, sleeper):
    monkeypatch.setattr(processes, "_status", lambda pid: None)
    monkeypatch.setattr(processes, "_BOOT_ID", Path("/nowhere"))
    assert Process.me() == Process(HERE, os.getpid(), 0)
    assert not Process.me().is_gone()
    assert not Process(HERE, 1, 0).is_gone(), "somebody else's"
    sleeper.kill()
    sleeper.wait()
    assert Process(HERE, sleeper.pid, 0).is_gone()
