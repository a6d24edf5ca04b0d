"""The images of a prepared set as PyTorch reads them: one by one for a user, batch by batch for a feed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracked_cls.data.cache import Prepared, open_partial
from tracked_cls.transforms import SamplePipeline

Indices = npt.NDArray[np.int64]


class Item(NamedTuple):
    """One image as it is stored, uint8 [C,S,S] (clips [T,C,S,S]), its label, and the id that names it everywhere."""

    image: Tensor
    label: Tensor
    sample_id: str


class Request(NamedTuple):
    """A batch to fetch: positions [B], and a seed for each image [B] where it is to be transformed at random."""

    indices: Indices
    seeds: npt.NDArray[np.uint64] | None


class ImageDataset(Dataset[Item]):
    """A prepared set as PyTorch sees one. Light to send to a worker process, which opens the files itself."""

    def __init__(
        self, prepared: Prepared, train: SamplePipeline | None = None, evaluation: SamplePipeline | None = None
    ) -> None:
        self.prepared = prepared
        self.train = train
        self.evaluation = evaluation

    def __len__(self) -> int:
        return len(self.prepared.manifest)

    def __getitem__(self, index: int) -> Item:
        label = torch.as_tensor(np.asarray(self.prepared.manifest.labels[index]))
        stored = channels_first(self.prepared.sized(np.array([index])))[0]
        return Item(stored, label, self.prepared.manifest.ids[index])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.prepared.folder, "train": self.train, "evaluation": self.evaluation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(open_partial(state["folder"]), state["train"], state["evaluation"])  # type: ignore[misc]

    def batch(self, request: Request) -> Tensor:
        """Return images as they leave their transforms: uint8 or float32 [B,C,S,S], [B,V,C,S,S] after five or ten crops.

        A request with seeds is one for training; where no list of transforms works image by image, images come as stored.
        """
        pipeline = self.evaluation if request.seeds is None else self.train
        if pipeline is None:
            return channels_first(self.prepared.sized(request.indices))
        seeds = self.prepared.manifest.keys[request.indices] if request.seeds is None else request.seeds
        originals = (channels_first(self.prepared.original(int(index))) for index in request.indices)
        return torch.stack([pipeline(image, int(seed)) for image, seed in zip(originals, seeds, strict=True)])


def channels_first(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return uint8 [...,H,W,C] as a tensor [...,C,H,W], channels last in memory, as the cache is.

    A view of the cache is copied: a transform that wrote into it would end the process.
    """
    return torch.from_numpy(np.require(pixels, requirements=["W", "E"])).movedim(-1, -3)
