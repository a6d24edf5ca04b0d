"""Score a run, version or alias on a prepared split: `python -m pipelines.evaluate --help`."""

from collections.abc import Sequence

from pipelines.command import command, where_to_look
from tracked_cls.config import EvaluateConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Evaluate one model and say how good it is, and at which classes it is weakest."""
    cfg = load(EvaluateConfig, argv)
    from tracked_cls import assessment, delivery  # seconds of imports, after the arguments were checked

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        evaluation = assessment.run(cfg, tracker)
    for line in assessment.lines(evaluation):
        say(line)
    say(where_to_look(cfg.tracking))


if __name__ == "__main__":
    command(main)
