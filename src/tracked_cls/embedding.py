"""Images as points of a plane: near each other where a network finds them alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tracked_cls.anatomy import at_rest
from tracked_cls.data.loaders import Batch
from tracked_cls.errors import UserError
from tracked_cls.models import heads_of

_FEWEST = 10  # images; fewer have no shape
_COMPONENTS, _PERPLEXITY = 30, 30.0

Features = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]


def features(network: nn.Module, batches: Iterable[Batch]) -> Features | None:
    """Return what the layer before the last answers to images, float32 [N,D]: the mean over places, frames and views.

    None where a network has no last Linear or Conv2d layer, or does not call it.
    """
    try:
        head = network.get_submodule(heads_of(network)[0])
    except UserError:
        return None
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(_pooled(inputs[0], module))

    rows: list[Tensor] = []
    handle = head.register_forward_pre_hook(keep)
    try:
        with at_rest(network):
            for batch in batches:
                network(batch.images)
                if not seen:
                    return None
                rows.append(seen[-1].reshape(len(batch.targets), -1, seen[-1].shape[1]).mean(dim=1).float().cpu())
                seen.clear()
    finally:
        handle.remove()
    return np.asarray(torch.cat(rows).numpy(), np.float32)


def _pooled(answer: Tensor, head: nn.Module) -> Tensor:
    """Return [B,D]: the mean over places, which stand last for a convolution and in the middle for a linear layer."""
    if isinstance(head, nn.Conv2d):
        return answer.mean(dim=(2, 3))
    return answer.flatten(1, -2).mean(dim=1) if answer.dim() > 2 else answer


def project(points: Features, *, seed: int = 0) -> Points | None:
    """Return points [N,D] in a plane, float32 [N,2]: 30 principal components, then t-SNE. The same points give the same plane.

    None for fewer than 10 points, and where all of them are one. Source: van der Maaten and Hinton, "Visualizing Data
    using t-SNE", 2008.
    """
    from sklearn.decomposition import PCA  # seconds of imports that few commands need
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(points) < _FEWEST or not points.std(axis=0).max() > 0:
        return None
    count = min(_COMPONENTS, *points.shape)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    with threadpool_limits(1, user_api="openmp"):  # sums of several threads differ in their last bit
        reduced = PCA(count, svd_solver="randomized", random_state=seed).fit_transform(points.astype(np.float64))
        plane = reduced if count < 2 else TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return np.asarray(plane, np.float32) if plane.shape[1] == 2 else None
