"""Train, test, log and register a classifier: `python -m pipelines.train --help`."""

from collections.abc import Sequence

from pipelines.command import command, config_of, same_store, where_to_look
from tracked_cls.config import TrainConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Train one model, or one per fold, and say what was reached and where it is."""
    cfg = load(TrainConfig, argv, config_of=config_of)
    from tracked_cls import delivery, distributed, launch, lockstep, pipeline  # seconds of imports, after the arguments

    if launch.is_wanted(cfg):
        launch.run(cfg, "pipelines.train", argv)
        return
    with distributed.joined(cfg.distributed.timeout_seconds) as ranks:
        if not ranks.is_first:
            lockstep.follow(cfg, ranks)
            return
        with delivery.open_tracker(cfg.tracking) as tracker:
            ended = pipeline.train(cfg, tracker, ranks)
    for line in ended.lines:
        say(line)
    say(where_to_look(cfg.tracking))
    say(f"next:  {ended.next_command}{same_store(cfg.tracking)}")


if __name__ == "__main__":
    command(main, several=True)
