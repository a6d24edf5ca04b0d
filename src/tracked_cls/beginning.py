"""What a training starts from besides its data: weights to begin with, and a teacher to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tracked_cls import assessment, pretrained, registry, weights
from tracked_cls.config import TrainConfig
from tracked_cls.data.loaders import Feed
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.losses import Teacher
from tracked_cls.pretrained import Transfer
from tracked_cls.serving.packaging import Bundle
from tracked_cls.tracking import Tracker

Values = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Beginning:
    """Weights, with the normalisation they were trained on where it is known, and the bundle of a teacher."""

    tensors: Mapping[str, Tensor] | None = None
    source: str = ""
    normalisation: tuple[Values, Values] | None = None
    teacher: Bundle | None = None
    digest: str = ""

    def give(self, network: nn.Module) -> Transfer | None:
        """Load the weights into a network as far as they fit; return what was loaded and what was not."""
        return None if self.tensors is None else pretrained.transfer(network, self.tensors, self.source)

    def open_teacher(self, feed: Feed) -> Teacher | None:
        """Return the teacher, ready for what the feed brings."""
        if self.teacher is None:
            return None
        network, meta = assessment.load_network(self.teacher)
        assessment.require_same_classes(feed.prepared.manifest.classes, meta, "loss.teacher", feed.prepared.manifest.name)
        own = Preprocess.from_dict(meta["preprocess"])
        return Teacher(feed.compute.place(network), own, feed.prepared.preprocess)


def open_beginning(cfg: TrainConfig, tracker: Tracker) -> Beginning:
    """Find what ``model.weights`` and ``loss.teacher`` name; raises `UserError` before any data are touched."""
    if cfg.loss.teacher is not None:
        tracker.store.require()
    teacher = None if cfg.loss.teacher is None else registry.resolve(tracker.client, cfg.loss.teacher)[0]
    taught = "" if teacher is None else weights.file_digest(teacher.weights)
    if cfg.model.weights is None:
        return Beginning(teacher=teacher, digest=taught)
    local = _local(cfg.model.weights, tracker)
    tensors, source, normalisation = pretrained.open_weights(cfg.model, local)
    return Beginning(tensors, source, normalisation, teacher, f"{weights.digest_of(tensors)} {taught}".strip())


def _local(name: str, tracker: Tracker) -> Path | None:
    """Return the file of weights behind the address of a run or a registered model; None for other names."""
    if not pretrained.is_address(name):
        return None
    tracker.store.require()
    return registry.resolve(tracker.client, name)[0].weights
