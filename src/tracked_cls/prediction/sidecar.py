"""Where the rows of a prediction come from: the file beside them, from which every row leads to training run and data."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracked_cls import durable
from tracked_cls.config import PredictConfig
from tracked_cls.prediction.engines import name_of
from tracked_cls.prediction.rows import Layout
from tracked_cls.serving.classifier import Classifier

_FORMAT = 1


def beside(output: Path) -> Path:
    """Return where the file about an output stands."""
    return output.with_name(f"{output.name}.meta.json")


def about(cfg: PredictConfig, classifier: Classifier, layout: Layout, *, address: str, exact: str) -> dict[str, Any]:
    """Return all that decides the rows: the same for every run of the same prediction."""
    meta, options = classifier.meta, cfg.predict
    return {
        "format": _FORMAT,
        "model": {
            "address": address,
            "exact": exact,
            "version": exact.rpartition("/")[2] if exact.startswith("models:/") else None,
            "weights_digest": meta["weights_digest"],
            "temperature": classifier.temperature,
            "multi_label": classifier.multi_label,
            "classes": list(classifier.classes),
        },
        "training": {"run_id": meta.get("run_id"), "data": meta.get("data")},
        "options": {
            "unsure_below": options.unsure_below,
            "engine": name_of(options),
            "tta": options.tta,
            "batch_size": options.batch_size,
            "transforms": cfg.transforms.predict,
        },
        "columns": layout.meanings(options.unsure_below),
        "software": {name: version(name) for name in ("numpy", "onnxruntime", "pillow")}
        | {"python": platform.python_version()},
    }


def key_of(decides: Mapping[str, Any], cfg: PredictConfig, ending: str) -> str:
    """Return the digest of all that decides the rows and their files, and of where the images are."""
    limits = [cfg.predict.decode_seconds, cfg.predict.decode_memory_bytes]
    others = [str(Path(str(cfg.predict.input)).absolute()), cfg.predict.embeddings, cfg.tracking.pictures]
    text = json.dumps([decides, ending, limits, *others], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def in_parquet(decides: Mapping[str, Any]) -> dict[str, str]:
    """Return what a Parquet file says of itself: nothing that another run of the same prediction would say otherwise."""
    return {"tracked_cls": json.dumps(decides, ensure_ascii=False)}


def whole(
    decides: Mapping[str, Any], *, output: Path, rows: Path, counts: Mapping[str, int], source: Path | str, listing: str,
    run: Mapping[str, str], files: Mapping[str, Any],
) -> bytes:  # fmt: skip
    """Return the file about an output, whose rows are still in a file of another name."""
    return _as_json(
        {
            **decides,
            "input": {"path": str(source), "images": counts["rows"] + counts["rejected"], "listing_sha256": listing},
            "output": {"file": output.name, "rows": counts["rows"], "sha256": durable.sha256_of(rows)},
            "rejected": counts["rejected"],
            "unsure": counts["unsure"],
            **files,
            "run": dict(run),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _as_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=True) + "\n").encode()
