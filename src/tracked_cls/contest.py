"""Two versions of a registered model scored on the same images, now: what the gate judges by."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tracked_cls import assessment, evaluation, gate, preparation, registry
from tracked_cls.compute import Compute
from tracked_cls.config import DataConfig, GateSection, LoaderConfig, TrackingConfig
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Feed, open_split
from tracked_cls.data.manifest import Manifest
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.gate import KEPT, Side, Verdict
from tracked_cls.registry import Version
from tracked_cls.serving.classifier import read_meta, temperature_of
from tracked_cls.serving.packaging import Bundle
from tracked_cls.statistics.calibration import reliability
from tracked_cls.tracking import Tracker

TEST_DIGEST = "test.digest"  # a version's tag


class MismatchError(UserError):
    """A model that gives other classes, or takes other input, than the images have: nothing can be compared."""


@dataclass(frozen=True)
class Images:
    """Which images are looked at: a split of the data, which are `prepared` already, or are looked for when they are needed."""

    data: DataConfig
    split: str
    batch_size: int
    prepared: Prepared | None = None


@dataclass(frozen=True, eq=False)
class Contest:
    """The images, the rules and a place to compute; each version is scored once, at its own geometry."""

    images: Images
    rules: GateSection
    compute: Compute
    tracking: TrackingConfig
    tracker: Tracker
    _scored: dict[str, Side] = field(default_factory=dict)
    _bundles: dict[str, Bundle] = field(default_factory=dict)

    def judge(self, challenger: Version, champion: Version) -> Verdict:
        """Score both and judge them; where one was tested on other images, the champion is kept unless the rules say otherwise.

        Raises `MismatchError` for a model that does not fit the data, `UserError` for files that have changed, logits that are
        not finite, and data that are not there.
        """
        for version in (challenger, champion):
            self._require_same_task(version)
        strange = [version.uri for version in (challenger, champion) if not self._is_tested_here(version)]
        if strange and self.rules.other_data == "refuse":
            where = f"{self.prepared.manifest.name!r} holds now in its {self.images.split} split"
            cure = "promote.other_data=compare compares all the same"
            return Verdict(KEPT, f"{strange[0]} was tested on other images than {where}: no comparison ({cure})")
        classes = self.prepared.manifest.classes
        verdict = gate.judge(self._side(challenger), self._side(champion), self.rules, classes)
        return replace(verdict, evidence={**self._ground, "tested_on_other_images": strange, **verdict.evidence})

    @cached_property
    def prepared(self) -> Prepared:
        """The data, prepared now if they are not there."""
        return self.images.prepared or preparation.open_or_prepare(self.images.data, self.tracking, self.tracker)

    @property
    def has_looked(self) -> bool:
        """Whether the data were opened, which a first version does without."""
        return "prepared" in self.__dict__

    @property
    def _ground(self) -> dict[str, Any]:
        manifest = self.prepared.manifest
        return {"data.name": manifest.name, "data.digest": manifest.digest, "split": self.images.split}

    def _is_tested_here(self, version: Version) -> bool:
        """Whether a version was tested on the images that are looked at: then it was trained on none of them."""
        if self.images.split == "test" and TEST_DIGEST in version.tags:
            return version.tags[TEST_DIGEST] == digest_of(self.prepared.manifest, "test")
        return version.tags.get("data.digest") == self.prepared.manifest.digest

    def _require_same_task(self, version: Version) -> None:
        meta = read_meta(self._bundle(version).meta)
        manifest, frames = self.prepared.manifest, Preprocess.from_dict(meta["preprocess"]).frames
        try:
            assessment.require_same_classes(manifest.classes, meta, version.uri, manifest.name)
        except UserError as error:
            raise MismatchError(str(error)) from None
        if frames != self.prepared.frames or bool(meta.get("multi_label", False)) != manifest.multi_label:
            raise MismatchError(f"{version.uri} is no model for {manifest.name!r}: data.frames or data.multi_label differ")

    def _bundle(self, version: Version) -> Bundle:
        if version.uri not in self._bundles:
            self._bundles[version.uri] = registry.files_of(self.tracker.client, version.uri)
        return self._bundles[version.uri]

    def _side(self, version: Version) -> Side:
        if version.uri not in self._scored:
            self._scored[version.uri] = self._score(version)
        return self._scored[version.uri]

    def _score(self, version: Version) -> Side:
        """Score a version; what it says is put in the order of the images' ids."""
        bundle = self._bundle(version)
        network, meta = assessment.load_network(bundle)
        preprocess = Preprocess.from_dict(meta["preprocess"])
        seen = replace(self._prepared_at(preprocess.geometry), preprocess=preprocess)
        with closing(Feed(seen, self.compute, LoaderConfig())) as feed:
            split = open_split(feed, self.images.split)
            scores = evaluation.score(self.compute.place(network), split.eval_batches(self.images.batch_size))
        if self.images.split == "test":
            registry.count_read(self.tracker.client, version.run_id)
        evaluation.require_finite(scores, version.uri)
        cool = scores.tempered(temperature_of(meta)).judged
        order = np.argsort([seen.manifest.ids[index] for index in split.indices.tolist()], kind="stable")
        return Side(
            address=version.uri,
            labels=scores.labels[order],
            predictions=scores.predictions[order],
            size_bytes=bundle.weights.stat().st_size,
            ece=reliability(cool.confidence, cool.right).ece,
            latency_ms=None if self.rules.max_latency_ratio is None else assessment.latency_ms(network, meta),
        )

    def _prepared_at(self, geometry: Geometry) -> Prepared:
        """Return the same images as a model of some geometry sees them."""
        if self.prepared.preprocess.geometry == geometry:
            return self.prepared
        found = preparation.open_or_prepare(assessment.at_geometry(self.images.data, geometry), self.tracking, self.tracker)
        if digest_of(found.manifest, self.images.split) != digest_of(self.prepared.manifest, self.images.split):
            raise UserError(f"{found.folder} and {self.prepared.folder} hold other images; run prepare again")
        return found


def digest_of(manifest: Manifest, split: str) -> str:
    """Return what names the images of a split and their labels, whatever their order, their size, and the other splits."""
    ids, indices = manifest.ids, manifest.indices(split)
    labels = np.asarray(manifest.labels)[indices].tolist()
    rows = sorted(zip((ids[index] for index in indices.tolist()), labels, strict=True))
    return hashlib.sha256(json.dumps([list(manifest.classes), rows]).encode()).hexdigest()[:16]
