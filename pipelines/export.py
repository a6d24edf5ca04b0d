"""Write a model as ONNX, .pt2 and safetensors: `python -m pipelines.export --help`."""

from collections.abc import Sequence

from pipelines.command import command, same_store, where_to_look
from tracked_cls.config import ExportConfig, load
from tracked_cls.console import say


def main(argv: Sequence[str]) -> None:
    """Write the model's files, each compared with the model, and say where they are."""
    cfg = load(ExportConfig, argv)
    from tracked_cls import delivery, export  # seconds of imports, after the arguments were checked

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        exported = export.run(cfg, tracker)
    for line in export.lines(exported):
        say(line)
    if exported.next_command:
        say(f"next:  {exported.next_command}{same_store(cfg.tracking)}")
    say(where_to_look(cfg.tracking))


if __name__ == "__main__":
    command(main)
