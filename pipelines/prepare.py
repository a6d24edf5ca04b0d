"""Check, split and cache images: `python -m pipelines.prepare --help`."""

from collections.abc import Sequence

from pipelines.command import command
from tracked_cls.config import PrepareConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Prepare the data and say what they hold."""
    cfg = load(PrepareConfig, argv)
    from tracked_cls import delivery, preparation  # seconds of imports, after the arguments were checked

    with delivery.open_tracker(cfg.tracking) as tracker:
        result = preparation.run(cfg, tracker)
    for line in preparation.lines(result):
        say(line)
    say("next:  the same options with -e train (python -m pipelines.train)")


if __name__ == "__main__":
    command(main)
