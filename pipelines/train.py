"""Train, test, log and register a classifier: `python -m pipelines.train --help`."""

from collections.abc import Sequence

from pipelines.command import command, same_store, where_to_look
from tracked_cls.config import TrainConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Train one model and say what it reached and where it is."""
    cfg = load(TrainConfig, argv)
    from tracked_cls import experiment, tracking  # seconds of imports, after the arguments were checked

    with tracking.open_tracker(cfg.tracking) as tracker:
        outcome = experiment.run(cfg, tracker)
    for line in experiment.lines(outcome):
        say(line)
    say(where_to_look(cfg.tracking))
    model = f"runs:/{outcome.run_id}{same_store(cfg.tracking)}"
    say(f"next:  mlflow run . -e predict --env-manager local -P input=FOLDER -P model={model}")


if __name__ == "__main__":
    command(main)
