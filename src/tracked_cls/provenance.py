"""Where numbers come from: which code, on which machine, with which versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tracked_cls.processes import Process

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
    """Return how many cores this process may use."""
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
