"""`launch` starts processes that train together, starts them again after a kill, and ends as they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import ROOT, ask
from tracked_cls import launch
from tracked_cls.config import TrainConfig


def launched(folder, word, restarts):
    """Return how a launch of two processes ended, and which of them were started."""
    import os
    from pathlib import Path

    from tracked_cls import launch
    from tracked_cls.config import TrainConfig, load
    from tracked_cls.errors import Interrupted, StopRun

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    words = ("--params", str(ROOT / "params" / "train.yaml"), "--nproc", "2", "--distributed.restarts", str(restarts))
    try:
        launch.run(load(TrainConfig, words), "tests.faults.rank_probe", (folder, word))
        ended = "well"
    except SystemExit as left:
        ended = f"exit code {left.code}"
    except Interrupted as told:
        ended = f"interrupted, {told.exit_code}"
    except StopRun as stop:
        ended = stop.reason
    return {"ended": ended, "starts": "".join(sorted((Path(folder) / "starts").read_text()))}


def test_all_start_again_after_one_was_killed(tmp_path):
    assert ask(launched, str(tmp_path), "killed", 1) == {"ended": "well", "starts": "0011"}


def test_it_gives_up_after_so_many_restarts(tmp_path):
    found = ask(launched, str(tmp_path), "always", 1)

    assert found["starts"].count("1") == 2
    assert found["ended"].startswith("one of the 2 processes was killed by SIGKILL, after 1 restarts; the same command")


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path):
    assert ask(launched, str(tmp_path), "wrong", 3) == {"ended": "exit code 2", "starts": "01"}


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the kernel's list of sockets is Linux's")
def test_nobody_but_this_machine_can_talk_to_the_processes(tmp_path):
    found = ask(launched, str(tmp_path), "heard", 0)

    assert found["ended"] == "well"
    addresses = (tmp_path / "addresses").read_text().split()
    assert addresses, "gloo listens"
    assert set(addresses) <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}, "loopback"


def test_one_that_was_told_to_stop_is_not_started_again(tmp_path):
    assert ask(launched, str(tmp_path), "told", 3) == {"ended": "interrupted, 143", "starts": "01"}


def under_torchrun(folder, word):
    """Return which processes torchrun starts, with one restart."""
    import os
    from pathlib import Path

    from torch.distributed.run import main

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1", "--log-dir", folder)
    main([*options, "-m", "tests.faults.rank_probe", folder, word])
    return "".join(sorted((Path(folder) / "starts").read_text()))


def test_torchrun_starts_it_again(tmp_path):
    assert ask(under_torchrun, str(tmp_path), "told") == "0011"


def test_a_process_that_was_started_by_a_launcher_starts_none(monkeypatch):
    cfg = TrainConfig(nproc=2)
    assert launch.is_wanted(cfg)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    assert not launch.is_wanted(cfg)
