"""Device, threads and memory format."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from tracked_cls.compute import make_compute
from tracked_cls.errors import UserError


@pytest.fixture(autouse=True)
def _torch_as_before():
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_pinned(threads):
    assert make_compute("cpu", threads).threads == threads
    assert torch.get_num_threads() == threads


def test_threads_default_to_the_cores_this_process_may_use():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert make_compute("cpu", None).threads == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_a_cuda_device_that_is_not_there_is_the_users_mistake():
    with pytest.raises(
        UserError, match=rf"'cuda:99' is not there: this machine has {torch.cuda.device_count()} CUDA"
    ) as caught:
        make_compute("cuda:99", 1)
    assert "device=auto or cpu" in str(caught.value)


def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert make_compute("auto", 1).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_compute("auto", 1).device.type == "cuda"


@pytest.mark.parametrize(("performance", "fused"), [("auto", True), ("exact", False)])
def test_performance_decides_fused_optimizers_and_deterministic_algorithms(performance, fused):
    assert make_compute("cpu", 1, performance).fused is fused
    assert torch.are_deterministic_algorithms_enabled() is not fused


def test_networks_and_images_are_placed_channels_last():
    compute = make_compute("cpu", 1)
    assert compute.place(nn.Conv2d(3, 4, 3)).weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    placed = compute.place_images(images)
    assert placed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(placed, images, rtol=0, atol=0)
