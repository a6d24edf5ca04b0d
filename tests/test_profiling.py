"""Where the time goes."""

from __future__ import annotations

import time

from learning_data import CPU
from PIL import Image
from torch.autograd.profiler import record_function

from tracked_cls import plots
from tracked_cls.profiling import PARTS, profiler, timed


def slow_items(count):
    for item in range(count):
        time.sleep(0.003)
        yield item


def measure(count, *, enabled=True):
    with profiler(CPU, enabled=enabled) as measured:
        for _ in timed("data", slow_items(count)):
            with record_function("forward"):
                time.sleep(0.012)
            measured.after_step()
    return measured.result


def test_the_parts_of_ten_steps_are_told_apart():
    profile = measure(20)
    assert profile.num_steps == 10
    assert tuple(profile.parts) == PARTS
    assert profile.parts["forward"] > 0.1
    assert 0.02 < profile.parts["data"] < profile.parts["forward"]
    assert profile.parts["optimizer"] == 0


def test_a_short_training_is_profiled_with_what_there_is():
    assert measure(6).num_steps == 3


def test_nothing_is_measured_unless_asked():
    assert measure(20, enabled=False) is None


def test_a_profile_is_drawn(tmp_path):
    parts = {"data": 0.01, "forward": 0.2, "backward": 0.4, "optimizer": 0.02}
    plots.profile(parts, [(f"aten::op{i}", i, 0.1 / i) for i in range(1, 30)], 10, tmp_path / "profile.png")
    with Image.open(tmp_path / "profile.png") as picture:
        assert picture.width > 600
