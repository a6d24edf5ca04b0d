"""Search better options and register the winner: `python -m pipelines.tune --help`."""

from collections.abc import Sequence

from pipelines.command import command, same_store, where_to_look
from tracked_cls.config import TuneConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Search, and say what was found and where it is."""
    cfg = load(TuneConfig, argv)
    from tracked_cls import tracking, tuning  # seconds of imports, after the arguments were checked

    with tracking.open_tracker(cfg.tracking) as tracker:
        found = tuning.run(cfg, tracker)
    for line in tuning.lines(found):
        say(line)
    say(where_to_look(cfg.tracking))
    store = same_store(cfg.tracking)
    say(f"next:  mlflow run . -e predict --env-manager local -P input=FOLDER -P model=runs:/{found.winner_run_id}{store}")


if __name__ == "__main__":
    command(main)
