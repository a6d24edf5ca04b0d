"""A trained network in other formats."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracked_cls.models import Shape

ONNX_INPUT, ONNX_OUTPUT = "images", "logits"
PT2_META = "meta.json"  # what a .pt2 file says about itself, among its extra files
_DESCRIBED = (
    *("classes", "preprocess", "temperature", "multi_label", "label_separator", "weights_digest", "data"),
    *("architecture", "run_id"),
)
_PRODUCER = "tracked_cls"


def to_onnx(model: nn.Module, shape: Shape, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network as one ONNX file: images float32 [B,C,S,S], or clips [B,T,C,S,S], in, logits [B,K] out, any B.

    `metadata` is put into it by `annotate`.
    """
    with _at_rest(model) as example, _quiet():
        program = torch.onnx.export(
            model,
            (example(shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[ONNX_INPUT],
            output_names=[ONNX_OUTPUT],
            verbose=False,
        )
        assert program is not None, "the dynamo exporter returns a program"
        program.save(path, external_data=False)
    annotate(path, path, metadata or {})


def annotate(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file once more with `metadata` for whoever opens it, and its opset and producer among that.

    What the exporter notes of each node goes: folders of this machine and lines of the user's code are among it.
    """
    import onnx  # half a second, where a model is written only

    model = onnx.load(source)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    about = {**metadata, "opset": str(opset), "producer": _PRODUCER}
    onnx.helper.set_model_props(model, dict(sorted(about.items())))
    onnx.save(model, path)


def metadata_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what a model's description says to a reader of its ONNX file, each value as text: JSON, where it is no text."""
    known = {key: meta[key] for key in _DESCRIBED if meta.get(key) is not None}
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in known.items()}


def to_pt2(model: nn.Module, shape: Shape, path: Path, meta: Mapping[str, Any]) -> None:
    """Write a network as `torch.export` has it, its input and output as those of `to_onnx`, its description beside it.

    The filters keep their memory format: in channels_last the program computes so too, two to three times faster on a CPU.
    """
    with _at_rest(model) as example, _quiet():
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(model, (example(shape),), dynamic_shapes=(batch,))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # folders of this machine, lines of the user's code
        content = io.BytesIO()  # a disk that is full says so to us: torch has an error of its own for that
        torch.export.save(program, content, extra_files={PT2_META: json.dumps(meta, indent=2, ensure_ascii=False)})
    path.write_bytes(content.getbuffer())


@contextlib.contextmanager
def _at_rest(model: nn.Module) -> Iterator[Any]:
    """Hold a network in evaluation mode; yield what makes an input for it, two items where it is."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            yield lambda shape: shape.blank(2).to(device)
    finally:
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
