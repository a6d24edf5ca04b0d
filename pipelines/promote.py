"""Compare a challenger with the champion and move the alias by rule: `python -m pipelines.promote --help`."""

from collections.abc import Sequence

from pipelines.command import command, where_to_look
from tracked_cls.config import PromoteConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Judge one version, or take the last promotion back, and say who is champion and why."""
    cfg = load(PromoteConfig, argv)
    from tracked_cls import delivery, promotion  # seconds of imports, after the arguments were checked

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        done = promotion.run(cfg, tracker)
    for line in promotion.lines(done):
        say(line)
    say(where_to_look(cfg.tracking))


if __name__ == "__main__":
    command(main)
