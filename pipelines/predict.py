"""Label images with a registered model: `python -m pipelines.predict --help`."""

from collections.abc import Sequence

from pipelines.command import command
from tracked_cls.config import PredictConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Label every image of the input and say where the labels are."""
    cfg = load(PredictConfig, argv)
    from tracked_cls import delivery, prediction  # seconds of imports, after the arguments were checked

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        predictions = prediction.run(cfg, tracker)
    for line in prediction.lines(predictions):
        say(line)


if __name__ == "__main__":
    command(main)
