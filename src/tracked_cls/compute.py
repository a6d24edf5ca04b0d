"""Where and how numbers are crunched: device, threads, number format, memory layout, determinism."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tracked_cls.errors import UserError
from tracked_cls.host import keep_freed_memory
from tracked_cls.provenance import num_cores

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_DEVIATION = 0.1  # of half-precision logits from float32 ones, relative to their own size
_SIZES = (16, 32, 64, 128, 256, 512, 1024)  # batch sizes that `fitting_batch_size` chooses from
_SHARE_OF_MEMORY = 0.5
_COMPILED_IMAGES = 1_200_000
_LEAST_STEPS = 20  # per epoch, for which a batch stays smaller than memory allows


@dataclass(frozen=True)
class Compute:
    """The resolved choice: `fused` optimizers, the number format of the forward pass, and the layout of images.

    `half` is bfloat16 or float16 under automatic mixed precision, None for float32 throughout. channels_last is 2-4 times
    faster for convolutions on CPU.
    """

    device: torch.device
    threads: int
    fused: bool
    half: torch.dtype | None = None
    channels_last: bool = True

    def place(self, module: nn.Module) -> nn.Module:
        """Move a network to the device in the memory format used for images."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def place_images(self, images: Tensor) -> Tensor:
        """Move a batch [B,C,H,W] to the device in the memory format used for images; frames [B,T,C,H,W] as they are."""
        layout = torch.preserve_format
        if images.dim() == 4:
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, memory_format=layout, non_blocking=True)

    def in_precision(self, name: str) -> Compute:
        """Return the same choice with the number format of ``training.precision``: bf16, fp16 or float32."""
        return replace(self, half=_HALVES.get(name))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass for training: mixed precision, or nothing special."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler that keeps float16 gradients from vanishing; for other formats it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)


def cpu() -> Compute:
    """Return the plain choice for small work beside the training: this process, its threads as they are."""
    return Compute(torch.device("cpu"), torch.get_num_threads(), fused=False)


def make_compute(device: str, threads: int | None, performance: str = "auto", *, channels_last: bool = True) -> Compute:
    """Pin the threads, keep the memory and choose the device; raises `UserError` for a device that is not there."""
    count = threads or num_cores()
    torch.set_num_threads(count)
    keep_freed_memory()
    if torch.are_deterministic_algorithms_enabled() != (performance == "exact"):  # the call imports PyTorch's compiler: seconds
        torch.use_deterministic_algorithms(performance == "exact")
    torch.backends.cudnn.allow_tf32 = performance != "exact"  # torch's own default would cut float32 to 10 bits of mantissa
    chosen = _device(device)
    fused = performance == "auto" and chosen.type in ("cpu", "cuda")
    return Compute(chosen, count, fused=fused, channels_last=channels_last)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device is a CPU with instructions for bfloat16 (AVX512-BF16). On others its speed was not measured."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def gains_from_bf16(network: nn.Module) -> bool:
    """Whether a CPU that multiplies bfloat16 trains a network faster in it: one of convolutions, none of them depthwise.

    Measured per step against float32, both channels_last, on one core: resnet18 2.1 times faster, densenet121 2.0, resnext50
    1.4, small_cnn 1.4 to 1.7 (1.0 in small batches), vgg11 1.1; mobilenetv3_small 0.3.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return bool(convolutions) and not _is_depthwise(network)


def gains_from_compiling(network: nn.Module, num_images: int, device: torch.device) -> bool:
    """Whether to compile a network for a training that shows it so many images.

    Measured on two cores, 28x28, batches of 128: mobilenetv3_small takes 0.88 of the time per image after 62 s of compiling,
    which 1.2 million images bring in again, mobilenetv3 0.90 (0.7 million); a small CNN 1.14. On GPUs it was not measured.
    Without a C++ compiler it cannot be done.
    """
    can = device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
    return can and num_images >= _COMPILED_IMAGES and _is_depthwise(network)


def _is_depthwise(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels for module in network.modules())


def deviation(network: nn.Module, images: Tensor, compute: Compute) -> float:
    """Return how far mixed precision moves the logits of some images, relative to their size; inf where it breaks them."""
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        exact = network(images).float()
        with compute.autocast():
            rough = network(images).float()
    network.train(was_training)
    if not rough.isfinite().all():
        return float("inf")
    return float((rough - exact).norm() / exact.norm().clamp_min(1e-12))


def is_precise(network: nn.Module, images: Tensor, compute: Compute) -> bool:
    """Whether mixed precision gives about the logits of float32: the self-check before it is used."""
    return compute.half is None or deviation(network, images, compute) <= _MAX_DEVIATION


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate" in str(error)


def release_memory(device: torch.device) -> None:
    """Give back what the allocator holds without need."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fitting_batch_size(network: nn.Module, blank: Callable[[int], Tensor], compute: Compute, *, train_images: int) -> int:
    """Return the largest of 16, 32, ... 1024 images whose step fits into half of the memory, at 20 steps an epoch or more.

    `blank(count)` makes inputs. What autograd keeps of them for the backward pass is counted, not tried, so that the answer
    is the same each time on the same machine.
    """
    two, four = (_kept_bytes(network, compute.place_images(blank(count)), compute) for count in (2, 4))
    per_image = max((four - two) / 2, 1)  # the difference leaves the weights out
    most = min(_SHARE_OF_MEMORY * _memory_bytes(compute.device) / per_image, train_images / _LEAST_STEPS)
    return max((size for size in _SIZES if size <= most), default=_SIZES[0])


def _kept_bytes(network: nn.Module, images: Tensor, compute: Compute) -> int:
    """Return the size of what autograd keeps of a forward pass in training mode; buffers are left as they were."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    trial = copy.deepcopy(network).train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), compute.autocast():
        logits = trial(images)  # alive to the end: storage freed too early would be counted once for two tensors
    del logits
    return sum(sizes.values())


def _memory_bytes(device: torch.device) -> int:
    """Return all memory of a GPU, or what the machine (or its container) has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return machine if text == "max" else min(int(text), machine)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"device {name!r} is not there: this machine has {count} CUDA devices; use device=auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not there; use device=auto or cpu")
    return device
