"""Search better options and register the winner: `python -m pipelines.tune --help`."""

from collections.abc import Sequence

from pipelines.command import command, same_store, where_to_look
from tracked_cls.config import TuneConfig, load
from tracked_cls.console import say
from tracked_cls.tuning import space


def main(argv: Sequence[str]) -> None:
    """Search, and say what was found and where it is."""
    cfg = load(TuneConfig, argv)
    space.corners(cfg)  # before seconds of imports
    from tracked_cls import delivery
    from tracked_cls.tuning import campaign, results

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        found = campaign.run(cfg, tracker)
    for line in results.lines(found):
        say(line)
    say(where_to_look(cfg.tracking))
    store = same_store(cfg.tracking)
    say(f"next:  mlflow run . -e predict --env-manager local -P input=FOLDER -P model=runs:/{found.winner_run_id}{store}")


if __name__ == "__main__":
    command(main)
