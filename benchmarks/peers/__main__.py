"""Make the Python that the peers run in: Lightning and timm, with the versions of torch, torchvision and MLflow that we run on.

    python -m benchmarks.peers make FOLDER      then: python -m benchmarks --peers FOLDER/bin/python

By uv where it is there, else by venv and pip; 6 GB with PyTorch. Nothing is fetched but packages by name. The train script of
timm is in none of its packages: take train.py of its repository, and put it at FOLDER/timm_train.py.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SAME = ("torch", "torchvision", "mlflow")
PEERS = ("lightning", "timm")
TIMM_SCRIPT = "timm_train.py"


def main() -> None:
    """Make the environment, and say how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["make"])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    python = folder / "bin" / "python"
    packages = [*(f"{name}=={version(name)}" for name in SAME), *PEERS]
    for command in _commands(folder, python, packages):
        subprocess.run(command, check=True)
    print(f"python -m benchmarks --peers {python}")
    if not (folder / TIMM_SCRIPT).exists():
        print(f"for the row against timm, put train.py of timm's repository at {folder / TIMM_SCRIPT}")


def _commands(folder: Path, python: Path, packages: list[str]) -> list[list[str]]:
    uv = shutil.which("uv")
    if uv is not None:
        return [
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *packages],
        ]
    return [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", *packages]]


if __name__ == "__main__":
    main()
