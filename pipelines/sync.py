"""Deliver what waits for the tracking server: `python -m pipelines.sync --help`."""

import sys
from collections.abc import Sequence

from pipelines.command import command, where_to_look
from tracked_cls.config import SyncConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Deliver all journals and say what arrived; exit with 2 where something still waits."""
    cfg = load(SyncConfig, argv)
    from tracked_cls import delivery  # seconds of imports, after the arguments were checked

    synced = delivery.sync(cfg)
    for line in delivery.lines(synced):
        say(line)
    if synced.delivered:
        say(where_to_look(cfg.tracking))
    if any(one.waiting for one in synced.delivered):
        sys.exit(2)


if __name__ == "__main__":
    command(main)
