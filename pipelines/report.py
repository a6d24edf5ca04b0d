"""Write the page of a run, or of several side by side: `python -m pipelines.report --help`."""

from collections.abc import Sequence

from pipelines.command import command, where_to_look
from tracked_cls.config import ReportConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Write the page and say where it is."""
    cfg = load(ReportConfig, argv)
    from tracked_cls import delivery  # seconds of imports, after the arguments were checked
    from tracked_cls.report import publication

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        published = publication.run(cfg, tracker)
    for line in publication.lines(published):
        say(line)
    say(where_to_look(cfg.tracking))


if __name__ == "__main__":
    command(main)
