"""Where numbers come from: which code, on which machine, with which versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tracked_cls.errors import UserError
from tracked_cls.processes import Process

CORES = "TRACKED_CLS_CORES"  # of a machine, for all processes of a scheduler's job together
_LIBRARIES = ("mlflow", "numpy", "onnxruntime", "pillow", "scikit-learn", "torch", "torchvision")
_CHECKOUT = Path(__file__).resolve().parents[2]


def origin() -> dict[str, str]:
    """Return the tags that say which code, where and by which process."""
    commit = _git("rev-parse", "HEAD")
    process = Process.me()
    tags = {"host": process.host, "pid": str(process.pid), "process": str(process)}
    if commit is not None:
        tags |= {"git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return tags


def num_cores() -> int:
    """Return how many cores of this machine there are for the work: as a scheduler's job says, else those of this process.

    A scheduler binds every process to cores of its own, or, as Kubernetes does, none to any; so its job says it by `CORES`.
    Raises `UserError` where that is no number of cores.
    """
    if (told := os.environ.get(CORES)) is not None:
        if not told.isdecimal() or int(told) < 1:
            raise UserError(f"{CORES} must be a whole number of cores >= 1, got {told!r}")
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(_CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Return the versions of everything that numbers depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": num_cores(),
        "packages": {name: _version(name) for name in _LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
