"""Search optimizer and scheduler choices: not there yet."""

from collections.abc import Sequence

from pipelines.command import command
from tracked_cls.config import TuneConfig, load
from tracked_cls.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Check the options and say that the search is not built yet."""
    load(TuneConfig, argv)
    raise UserError("tune is not there yet; until it is, compare runs of train with other -P optimizer=... -P scheduler=...")


if __name__ == "__main__":
    command(main)
