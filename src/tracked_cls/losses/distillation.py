"""Learning from a trained network too."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracked_cls.data.preprocess import Preprocess
from tracked_cls.errors import UserError

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow does it


class Teacher(nn.Module):
    """A trained network that takes its student's input: frozen, always in evaluation, without gradients.

    `own` and `student` are the two networks' preprocessing. Images are taken back to pixels, made grey or coloured, resized
    (bilinear, antialiased) and normalised anew as far as the two differ; squares are resized whole, whatever `own` crops.
    """

    def __init__(self, network: nn.Module, own: Preprocess, student: Preprocess) -> None:
        super().__init__()
        if own.frames != student.frames:
            raise UserError(
                f"loss.teacher takes {own.frames or 'no'} frames, the data have {student.frames or 'none'}: "
                "set data.frames to the teacher's"
            )
        self.network = network.requires_grad_(False)
        self._size, self._channels = own.geometry.image_size, own.geometry.channels
        device = next((parameter.device for parameter in network.parameters()), None)
        for name, values in {
            "_own_mean": own.mean, "_own_std": own.std, "_student_mean": student.mean, "_student_std": student.std,
            "_grey": _GREY,
        }.items():  # fmt: skip
            self.register_buffer(name, torch.tensor(values, device=device)[:, None, None], persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 [B,K] for images normalised for the student, [B,C,H,W] or [B,T,C,H,W]."""
        single = images.float().flatten(0, -4)  # frames one by one
        converted = self._normalised(self._resized(self._recoloured(self._pixels(single))))
        logits: Tensor = self.network(converted.reshape(*images.shape[:-3], *converted.shape[1:]))
        return logits.float()

    def _pixels(self, images: Tensor) -> Tensor:
        return images * self._buffer("_student_std") + self._buffer("_student_mean")

    def _recoloured(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] == self._channels:
            return pixels
        if self._channels == 1:
            return (pixels * self._buffer("_grey")).sum(dim=1, keepdim=True)
        return pixels.expand(-1, self._channels, -1, -1)

    def _resized(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] == (self._size, self._size):
            return pixels
        return functional.interpolate(pixels, (self._size, self._size), mode="bilinear", antialias=True, align_corners=False)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels - self._buffer("_own_mean")) / self._buffer("_own_std")

    def _buffer(self, name: str) -> Tensor:
        return self.get_buffer(name)


def softened(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of the softmax at temperature T [B].

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def softened_binary(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the same for every class for itself, the mean over the classes [B]."""
    shares = (teacher_logits / temperature).sigmoid()
    entropies = [
        functional.binary_cross_entropy_with_logits(given / temperature, shares, reduction="none")
        for given in (logits, teacher_logits)
    ]
    return temperature**2 * (entropies[0] - entropies[1]).mean(dim=1)
