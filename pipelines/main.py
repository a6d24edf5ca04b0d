"""Prepare, train, evaluate and predict in one go: `python -m pipelines.main --help`."""

from collections.abc import Sequence

from pipelines.command import command, same_store, where_to_look
from tracked_cls.config import MainConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Run the whole pipeline and say what came out of each step."""
    cfg = load(MainConfig, argv)
    from tracked_cls import assessment, delivery, experiment, pipeline, prediction  # seconds of imports

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        whole = pipeline.run(cfg, tracker)
    steps = [experiment.lines(whole.outcome), assessment.lines(whole.evaluation), prediction.lines(whole.predictions)]
    for line in [line for step in steps for line in ("", *step)]:
        say(line)
    say(f"\nall of it: {whole.url}")
    say(where_to_look(cfg.tracking))
    say(f"next:  mlflow run . -e predict --env-manager local -P input=FOLDER_OF_IMAGES{same_store(cfg.tracking)}")


if __name__ == "__main__":
    command(main)
