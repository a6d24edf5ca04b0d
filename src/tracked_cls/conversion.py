"""A trained network in other formats."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tracked_cls.models import Shape

ONNX_INPUT, ONNX_OUTPUT = "images", "logits"


def to_onnx(model: nn.Module, shape: Shape, path: Path) -> None:
    """Write a network as one ONNX file: images float32 [B,C,S,S], or clips [B,T,C,S,S], in, logits [B,K] out, any B."""
    was_training = model.training
    model = model.eval()
    device = next(model.parameters()).device
    example = shape.blank(2).to(device)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[ONNX_INPUT],
            output_names=[ONNX_OUTPUT],
            verbose=False,
        )
        assert program is not None, "the dynamo exporter returns a program"
        program.save(path, external_data=False)
    model.train(was_training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about its own internals off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
