"""Answer requests for labels over HTTP: `python -m pipelines.serve --help`."""

import os
from collections.abc import Sequence

from pipelines.command import command
from tracked_cls.config import ServeConfig, load


def main(argv: Sequence[str]) -> None:
    """Serve a model until Ctrl-C, saying where once it answers."""
    cfg = load(ServeConfig, argv)
    from tracked_cls import finding
    from tracked_cls.serving import address

    with address.bind(cfg.serve.host, cfg.serve.port) as bound, finding.begin(cfg) as find:
        from tracked_cls import service  # seconds of imports, while the model is looked for

        service.run(cfg, bound, find, _end)


def _end() -> None:
    """Say so, also to the run that `mlflow run` opened: Ctrl-C reaches the launcher too, which writes FAILED."""
    from tracked_cls import afterword
    from tracked_cls.console import say

    say("serve: ended")
    if "MLFLOW_EXPERIMENT_ID" in os.environ and "MLFLOW_RUN_ID" in os.environ:  # an id alone may be set by hand
        afterword.leave(os.environ["MLFLOW_RUN_ID"], "FINISHED")


if __name__ == "__main__":
    command(main)
