"""Renders the job files of Kubernetes and Slurm from one set of parameters: ``python -m deploy.render --help``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
FILES = ("kubernetes/job.yaml", "kubernetes/backend.json", "kubernetes/together.yaml", "slurm/together.sh")


def render(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return path -> text of every job file.

    Raises `ValueError` for processes that do not fill their machines, and jinja2's `UndefinedError` for a missing parameter.
    """
    processes, each = parameters["processes"], parameters["slurm"]["processes_per_machine"]
    if processes % each:
        raise ValueError(f"processes={processes} must be a multiple of slurm.processes_per_machine={each}")
    words = [word for key, value in parameters["options"].items() for word in (f"--{key}", str(value))]
    templates = Environment(  # noqa: S701 - no HTML
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["quoted"] = shlex.quote
    return {name: templates.get_template(f"{Path(name).name}.j2").render(parameters, words=words) for name in FILES}


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=Path, default=HERE / "jobs.yaml", help="the values; default: deploy/jobs.yaml")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files; default: deploy")
    asked = parser.parse_args()
    for name, text in render(yaml.safe_load(asked.parameters.read_text())).items():
        path = asked.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
