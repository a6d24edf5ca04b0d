"""Runs in MLflow: opened, written to and ended with a status that tells the truth, whether its server answers or not."""

import os

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # what does not arrive waits in the journal; MLflow would try for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in _QUIET.items():  # read while mlflow is imported
    os.environ.setdefault(_name, _value)
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever the user's says: nothing of ours needs it

from tracked_cls.tracking.run import Run as Run  # noqa: E402
from tracked_cls.tracking.store import StoreError as StoreError  # noqa: E402
from tracked_cls.tracking.store import is_refusal as is_refusal  # noqa: E402
from tracked_cls.tracking.tracker import Tracker as Tracker  # noqa: E402
from tracked_cls.tracking.tracker import config_of_run as config_of_run  # noqa: E402
from tracked_cls.tracking.tracker import journal_store as journal_store  # noqa: E402
from tracked_cls.tracking.tracker import open_tracker as open_tracker  # noqa: E402
