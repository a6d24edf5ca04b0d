"""A tiny model of this project's own kind, for tests that look at how it is stored and not at what it answers."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from tracked_cls import weights
from tracked_cls.config import ModelConfig
from tracked_cls.models import Shape, make_model
from tracked_cls.serving.packaging import Bundle, log_model


def png() -> bytes:
    """Return an encoded image."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), 99).save(stream, "PNG")
    return stream.getvalue()


def make_bundle(folder: Path, digest: str = "d1") -> Bundle:
    """Write weights, a description and a file that stands for the network; `digest` is what the description says."""
    bundle = Bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights.save(make_model(ModelConfig(name="small_cnn"), Shape(3, 1, 8)), bundle.weights)
    bundle.onnx.write_bytes(b"stands for a network" * 99)
    bundle.golden.write_bytes(b"stands for images and answers" * 99)
    meta = {"classes": ["a", "b", "c"], "preprocess": {}, "architecture": {}, "weights_digest": digest}
    bundle.meta.write_text(json.dumps(meta))
    return bundle


def log(client, experiment: str, folder: Path, digest: str = "d1", run_id: str | None = None) -> tuple[str, str]:
    """Log such a model to a run, a new one unless told; return (address, run)."""
    run_id = run_id or client.create_run(experiment).info.run_id
    scratch = folder / f"scratch{len(list(folder.glob('scratch*')))}"
    scratch.mkdir(parents=True)
    return log_model(make_bundle(folder / "bundle", digest), run_id, scratch=scratch, example=png()), run_id
