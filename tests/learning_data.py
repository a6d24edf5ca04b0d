"""Small prepared sets for the tests of what learns: real digits, or arrays made up on the spot, held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tracked_cls.compute import Compute
from tracked_cls.config import LoaderConfig, TransformsConfig
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Feed, open_split
from tracked_cls.data.manifest import make_manifest
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.models import Shape

CPU = Compute(torch.device("cpu"), threads=2, fused=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads that share their cores with other work wait for each other longer than small networks compute.

    A module of tests that imports this runs on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_prepared(pixels, labels, splits) -> Prepared:
    """Return a set with these uint8 [N,S,S,C] pixels, int labels [N] and split names [N]; nothing is written."""
    size, channels = pixels.shape[2:]
    geometry = Geometry(size, channels)
    preprocess = Preprocess(geometry, mean=(0.3, 0.4, 0.5)[:channels], std=(0.25, 0.3, 0.35)[:channels])
    names = [f"{index:05d}" for index in range(len(labels))]
    manifest = make_manifest(
        "tiny",
        [f"class-{label}" for label in range(int(max(labels)) + 1)],
        labels=np.asarray(labels, np.int64),
        splits=np.array([("train", "val", "test").index(split) for split in splits], np.uint8),
        paths=names,
        sha256=names,
        pixel_digests=names,
        geometry={},
    )
    return Prepared(Path("memory"), manifest, preprocess, pixels, {})


def digits(num_train=70, num_val=30, zoom=1) -> Prepared:
    """Return the first handwritten digits, 8 pixels wide times `zoom`, in 10 classes."""
    source = load_digits()
    count = num_train + num_val
    pixels = np.kron(source.images[:count] * 15, np.ones((1, zoom, zoom))).astype(np.uint8)[..., None]
    return make_prepared(pixels, source.target[:count], ["train"] * num_train + ["val"] * num_val)


def noise(labels, channels=1, size=8, splits=None) -> Prepared:
    """Return random pixels with these labels, all in the training split unless told."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, channels), dtype=np.uint8)
    return make_prepared(pixels, labels, splits or ["train"] * len(labels))


def make_feed(prepared, transforms=None, **loader) -> Feed:
    """Return the feed of a list of training transforms (or of whole options of transforms) on the CPU."""
    options = transforms if isinstance(transforms, dict) else {"train": transforms or []}
    return Feed.create(prepared, CPU, TransformsConfig.model_validate(options), LoaderConfig.model_validate(loader))


def train_and_val(prepared, cfg=None, compute=CPU):
    """Return both splits on the CPU, with the transforms and the loader of a configuration."""
    feed = Feed.create(prepared, compute, cfg.transforms, cfg.loader) if cfg else make_feed(prepared)
    return open_split(feed, "train"), open_split(feed, "val")


def shape_of(prepared) -> Shape:
    """Return what a network for these data must fit."""
    return Shape(len(prepared.manifest.classes), prepared.pixels.shape[3], prepared.pixels.shape[1])
