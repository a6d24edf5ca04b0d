"""Device, threads and memory format."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from tracked_cls.compute import (
    Compute,
    deviation,
    fitting_batch_size,
    gains_from_bf16,
    gains_from_compiling,
    is_out_of_memory,
    is_precise,
    make_compute,
    multiplies_bf16,
)
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


def test_the_plain_layout_is_there_for_those_who_want_it():
    compute = make_compute("cpu", 1, channels_last=False)
    assert compute.place(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)).weight.is_contiguous()
    images = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert compute.place_images(images).is_contiguous()


# ---- mixed precision -------------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """Multiplies beyond what float16 holds, 65,504, and back again."""

    def __init__(self):
        super().__init__()
        self.big, self.small = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.big.weight, 30_000.0)
        nn.init.constant_(self.small.weight, 1e-4)

    def forward(self, images):
        return self.small(self.big(images))


@pytest.mark.parametrize(("half", "precise"), [(torch.bfloat16, True), (torch.float16, False), (None, True)])
def test_the_self_check_finds_numbers_that_do_not_fit(half, precise):
    compute = Compute(torch.device("cpu"), 1, fused=False, half=half)
    network = Overflowing().train()
    assert is_precise(network, torch.ones(2, 4), compute) is precise
    assert network.training


def test_the_deviation_is_relative_to_the_size_of_the_logits():
    torch.manual_seed(0)
    network, images = nn.Linear(64, 10), torch.randn(16, 64)
    compute = Compute(torch.device("cpu"), 1, fused=False, half=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rough = network(images).float()
    exact = network(images).detach()
    expected = ((rough - exact).pow(2).sum().sqrt() / exact.pow(2).sum().sqrt()).item()
    assert deviation(network, images, compute) == pytest.approx(expected, rel=1e-5)
    assert 1e-4 < expected < 0.02


@pytest.mark.parametrize(
    ("network", "gains"),
    {
        "plain": (nn.Conv2d(4, 8, 3), True),
        "grouped": (nn.Conv2d(8, 8, 3, groups=2), True),
        "one channel": (nn.Conv2d(1, 8, 3), True),
        "depthwise": (nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), False),
        "no convolutions": (nn.Linear(4, 4), False),
    }.values(),
    ids=["plain", "grouped", "one channel", "depthwise", "no convolutions"],
)
def test_bf16_is_for_plain_convolutions(network, gains):
    assert gains_from_bf16(network) is gains


DEPTHWISE = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize(
    ("network", "num_images", "compiler", "device", "gains"),
    {
        "long": (DEPTHWISE, 1_200_000, "sh", "cpu", True),
        "short": (DEPTHWISE, 1_199_999, "sh", "cpu", False),
        "no depthwise": (nn.Conv2d(4, 8, 3), 10**9, "sh", "cpu", False),
        "no compiler": (DEPTHWISE, 10**9, "no-compiler-of-this-name", "cpu", False),
        "not measured": (DEPTHWISE, 10**9, "sh", "cuda", False),
    }.values(),
    ids=["long", "short", "no depthwise", "no compiler", "not measured"],
)
def test_compiling_is_for_long_trainings_of_depthwise_networks(network, num_images, compiler, device, gains, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    assert gains_from_compiling(network, num_images, torch.device(device)) is gains


@pytest.mark.parametrize("multiplies", [True, False])
def test_bf16_is_for_cpus_that_multiply_it(multiplies, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    assert multiplies_bf16(torch.device("cpu")) is multiplies
    assert not multiplies_bf16(torch.device("cuda"))


def test_a_wrong_format_fails_the_self_check(monkeypatch):
    network, images = nn.Linear(64, 10), torch.randn(16, 64)
    compute = Compute(torch.device("cpu"), 1, fused=False, half=torch.bfloat16)
    broken = nn.Linear(64, 10)
    answers = iter([network, broken])
    monkeypatch.setattr(network, "forward", lambda given: next(answers).weight.sum() * given[:, :10] + broken.bias)
    assert not is_precise(network, images, compute)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=["gpu", "python", "cpu", "other"],
)
def test_lack_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_lack_of_memory_is_recognised():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


class Keeping(nn.Module):
    """Keeps about so many bytes of each image for the backward pass, in a layer of much larger weights."""

    def __init__(self, megabytes):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, int(megabytes * 262_144)))

    def forward(self, images):
        return (images.flatten(1)[:, :1] * self.weights).square().sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("megabytes", "memory", "images", "expected"),
    [
        pytest.param(1, 2**30 + 2**25, 10**6, 512, id="half of a gigabyte, one megabyte each"),
        pytest.param(1, 2**30 - 2**20, 10**6, 256, id="a little less"),
        pytest.param(4, 2**30 + 2**25, 10**6, 128, id="four megabytes each"),
        pytest.param(1, 2**40, 10**6, 1024, id="as much as one likes"),
        pytest.param(1, 2**40, 1300, 64, id="at least twenty steps an epoch"),
        pytest.param(1, 2**20, 10**6, 16, id="never below 16"),
    ],
)
def test_the_largest_batch_that_fits_is_found(monkeypatch, megabytes, memory, images, expected):
    monkeypatch.setattr("tracked_cls.compute._memory_bytes", lambda device: memory)
    compute = Compute(torch.device("cpu"), 1, fused=False)
    network = Keeping(megabytes).train()
    size = fitting_batch_size(network, lambda count: torch.zeros(count, 3, 8, 8), compute, train_images=images)
    assert size == expected
