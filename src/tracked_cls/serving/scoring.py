"""MLflow's own scoring server around a classifier of ours: the code that came with the model is not run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pandas as pd
from mlflow.models import Model
from mlflow.pyfunc import scoring_server

from tracked_cls.serving.packaging import signature

Predict = Callable[[pd.DataFrame, dict[str, Any]], pd.DataFrame]


class _Served:
    """As much of a pyfunc model as MLflow's scoring server asks for."""

    def __init__(self, predict: Predict) -> None:
        self.metadata = Model(signature=signature())
        self._predict = predict

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the answers to a request, whose parameters have not been checked."""
        return self._predict(data, params or {})


def mlflow_app(predict: Predict, timeout_seconds: float) -> Any:
    """Return MLflow's ASGI application: ``/invocations``, ``/ping``, ``/version``.

    Its own time limit is set well above ours, which answers first.
    """
    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(math.ceil(2 * timeout_seconds) + 60)
    return scoring_server.init(_Served(predict))
