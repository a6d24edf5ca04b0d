"""tracked_cls: a folder of images becomes a trained, evaluated, registered and reproducible classifier."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracked_cls.api import evaluate, export_model, load_classifier, predict, prepare, promote, train, tune

# OpenMP threads that wait spin for millions of rounds, which makes training 5 to 20 times slower wherever another process wants
# one of the cores; so few rounds cost nothing on a quiet machine. Read when torch is imported, so it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"

__all__ = ["evaluate", "export_model", "load_classifier", "predict", "prepare", "promote", "train", "tune"]


def __getattr__(name: str) -> Any:
    """Import the functions of `tracked_cls.api` when they are first asked for: what only parses starts at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracked_cls import api

    return getattr(api, name)
