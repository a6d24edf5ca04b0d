"""Where the paths of a table lead: below its root and nowhere else."""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path, PureWindowsPath


class EscapeError(ValueError):
    """A path that names no file below the root, and why."""


class Places:
    """Finds the files of a table. Paths come from people: none may lead out of `root`, by dots or by links."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._real_root = os.path.realpath(root)
        self._inside: dict[str, bool] = {}  # folder -> whether it really lies below the root

    def find(self, listed: str) -> tuple[str, os.stat_result | None]:
        """Return a listed path in its plain form, and what the file system knows of it: None where it is not there.

        Raises `EscapeError`. One look at the disk per path: only links are resolved, folders once each.
        """
        path = self._plain(listed)
        folder = path.rpartition("/")[0]
        if folder not in self._inside:
            self._inside[folder] = self._leads_inside(folder)
        if not self._inside[folder]:
            raise self._outside(listed, folder)
        full = f"{self._root}/{path}"
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                if not self._leads_inside(path):
                    raise self._outside(listed, path)
                status = os.stat(full)  # noqa: PTH116 - hot, and names may be odd
        except OSError:
            return path, None
        return path, status

    def _plain(self, listed: str) -> str:
        """Return the path without dots and doubled slashes; raises `EscapeError` where it does not stay below the root."""
        if "\0" in listed:
            raise EscapeError(f"the path {listed!r} has a NUL character in it")
        path = posixpath.normpath(self._with_slashes(listed)) if listed else "."
        if path == ".":
            raise EscapeError(f"the path is {'empty' if not listed else repr(listed)}; name the image file")
        if path.startswith("/") or ((":" in path or "\\" in path) and PureWindowsPath(path).is_absolute()):
            raise EscapeError(f"the path {listed!r} is absolute; paths must be relative to {self._root} (data.root)")
        if path.startswith("../") or path == "..":
            raise EscapeError(f"the path {listed!r} leads out of {self._root}; images must lie below data.root")
        return path

    def _with_slashes(self, listed: str) -> str:
        """Return a path that Windows wrote with its own slashes as ours, where the file is found that way only."""
        if "\\" not in listed or os.path.lexists(f"{self._root}/{listed}"):
            return listed
        turned = listed.replace("\\", "/")
        return turned if os.path.lexists(f"{self._root}/{turned}") else listed

    def _leads_inside(self, path: str) -> bool:
        real = os.path.realpath(f"{self._root}/{path}")
        return real == self._real_root or real.startswith(self._real_root.rstrip("/") + "/")

    def _outside(self, listed: str, link: str) -> EscapeError:
        target = os.path.realpath(f"{self._root}/{link}")
        return EscapeError(
            f"the path {listed!r} leads by a link to {target}, out of {self._root}; copy the files below data.root"
        )
