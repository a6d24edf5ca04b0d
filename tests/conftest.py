"""Shared parts: a tracking store of its own for every test session, and one trained model to look at from many sides."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "src"))
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)

PARAMS = ["--params", str(ROOT / "params" / "train.yaml")]


def fast(**options):
    """Return the words of a training that takes seconds; options are given with `__` for the dot."""
    words = {
        "model": "small_cnn",
        "epochs": 3,
        "threads": 1,
        "tracking__pictures": "false",
        "checkpoint__max_cost": 1,
        **options,
    }
    return [*PARAMS, *(word for key, value in words.items() for word in (f"--{key.replace('__', '.')}", str(value)))]


def do(use_case, cls, words):
    """Run a use case in this process, on a configuration read from words."""
    from tracked_cls import tracking
    from tracked_cls.config import load

    cfg = load(cls, words)
    with tracking.open_tracker(cfg.tracking) as tracker:
        return use_case(cfg, tracker)


@pytest.fixture(scope="session")
def answers_apart():
    """How a logged model is asked in a process of its own: seconds, which the tests of other things do without."""
    from tracked_cls import parity

    return parity.answers


@pytest.fixture(scope="session", autouse=True)
def _asked_here(answers_apart):
    """Ask the exported network in this process instead, wherever a model is checked before it is registered."""
    from tracked_cls import parity
    from tracked_cls.serving.classifier import Classifier

    def ask(bundle):
        return Classifier.load(bundle.onnx, bundle.meta).classify(parity.Golden.load(bundle.golden).images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "answers", ask)
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a migrated tracking store: making one takes seconds, so the session shares it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def store(home):
    """The options that point a command at the session's tracking store."""
    return ["--tracking.uri", f"sqlite:///{home / 'mlflow.db'}"]


@pytest.fixture(scope="session")
def trained(store):
    """The outcome of a short training on the digits, registered as their first champion."""
    from tracked_cls import experiment
    from tracked_cls.config import TrainConfig

    return do(experiment.run, TrainConfig, [*fast(tracking__pictures="true"), *store])


@pytest.fixture
def client(store, trained):
    """A client of the session's store, which exists once `trained` does."""
    from mlflow import MlflowClient

    return MlflowClient(store[1])
