"""The network of a bundle on PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracked_cls.assessment import load_network
from tracked_cls.compute import Compute, make_compute
from tracked_cls.data.decode import Pixels
from tracked_cls.data.loaders import Batch
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.embedding import features
from tracked_cls.errors import UserError
from tracked_cls.prediction.engines import Scored
from tracked_cls.serving.packaging import Bundle


class Torch:
    """A network that scores images; with its features, those of the same pass."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, compute: Compute, *, with_features: bool) -> None:
        self._network = compute.place(network).eval()
        self._preprocess = preprocess
        self._compute = compute
        self._with_features = with_features

    @classmethod
    def load(cls, bundle: Bundle, preprocess: Preprocess, *, with_features: bool) -> Torch:
        """Rebuild the network from weights and description, on a GPU where there is one."""
        network, _ = load_network(bundle)
        return cls(network, preprocess, make_compute("auto", None), with_features=with_features)

    def __call__(self, seen: Pixels) -> Scored:
        """Return what the network says of views uint8 [B,V,S,S,C]."""
        flat = torch.from_numpy(self._preprocess.normalise(seen.reshape(-1, *seen.shape[2:])))
        images = self._compute.place_images(flat)
        if not self._with_features:
            with torch.inference_mode():
                return Scored(_mean(self._network(images), seen))
        return self._scored_with_features(images, seen)

    def _scored_with_features(self, images: Tensor, seen: Pixels) -> Scored:
        said: list[Tensor] = []
        handle = self._network.register_forward_hook(_keeping(said))
        try:
            found = features(self._network, [Batch(images, torch.zeros(len(seen)), views=seen.shape[1])])
        finally:
            handle.remove()
        if found is None:
            raise UserError("predict.embeddings: this network has no layer that gives logits, so there is none before it")
        return Scored(_mean(said[-1], seen), found)


def _keeping(said: list[Tensor]) -> Any:
    def keep(module: nn.Module, inputs: object, answer: Tensor) -> None:
        said.append(answer)

    return keep


def _mean(logits: Tensor, seen: Pixels) -> Any:
    """Return the mean over the views, float32 [B,K]."""
    return np.asarray(logits.float().reshape(*seen.shape[:2], -1).mean(dim=1).cpu().numpy(), np.float32)
