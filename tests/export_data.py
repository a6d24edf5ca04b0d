"""Models as they are registered, made up without a training, for the tests of what leaves MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import torch

from tracked_cls import conversion, parity, weights
from tracked_cls.config import ModelConfig
from tracked_cls.data.encode import to_png
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.models import Shape, make_model
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.packaging import Bundle

RUN_ID = "0123456789abcdef" * 2


def description(shape, model="small_cnn", **known):
    """What ``meta.json`` says of a network for such images."""
    geometry = Geometry(shape.image_size, shape.channels)
    values = ((0.3, 0.4, 0.5)[: shape.channels], (0.25, 0.3, 0.35)[: shape.channels])
    return {
        "format": 1,
        "classes": [f"class {index}" for index in range(shape.num_classes)],
        "preprocess": Preprocess(geometry, *values, frames=shape.frames).to_dict(),
        "architecture": {"model": ModelConfig(name=model).model_dump(), "shape": asdict(shape)},
        "weights_digest": "0" * 16,
        "temperature": 0.5,
        "run_id": RUN_ID,
        "data": {"name": "tiny", "digest": "d" * 16, "content_digest": "c" * 16},
        "multi_label": False,
        "label_separator": "|",
        **known,
    }


def packed(folder, shape, model="small_cnn", num_images=9, **known):
    """A bundle of a network that has seen something, with images and what it says of them; return (bundle, network, meta)."""
    torch.manual_seed(0)
    network = make_model(ModelConfig(name=model), shape)
    with torch.no_grad():
        network.train()(
            torch.randn(32, *shape.blank(1).shape[1:]) * 2 + 1
        )  # BatchNorm statistics that are not the initial ones
    network.eval()
    meta = description(shape, model, weights_digest=weights.digest(network), **known)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(folder)
    weights.save(network, bundle.weights)
    conversion.to_onnx(network, shape, bundle.onnx)
    bundle.meta.write_text(json.dumps(meta))
    size = (num_images, *(() if shape.frames is None else (shape.frames,)), shape.image_size, shape.image_size, shape.channels)
    images = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(Preprocess.from_dict(meta["preprocess"]).normalise(images))).numpy()
    said = Classifier.load(bundle.onnx, bundle.meta).activate(logits)
    golden = parity.Golden(tuple(meta["classes"]), tuple(map(to_png, images)), said)
    golden.save(bundle.golden)
    return bundle, network, meta


def shape(channels=1, frames=None, num_classes=4, image_size=16):
    return Shape(num_classes, channels, image_size, frames)
