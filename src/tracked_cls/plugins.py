"""A user's own classes and functions, by import path. Import paths stand in the configuration, which is trusted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tracked_cls.errors import UserError, did_you_mean


def load(path: str, what: str, search: Sequence[Path] = ()) -> Any:
    """Return what ``my_pkg.my_module:Name`` names; modules are also looked for in `search` and the working folder.

    The folders stay on ``sys.path``, behind what is installed: a module may import its neighbours later, and so may the
    processes that are started from here.
    Raises `UserError`, which begins with the option `what`, for whatever stands in the way.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"{what}: {path!r} is no import path; give my_pkg.my_module:Name, the module and the name in it")
    folders = [str(folder.absolute()) for folder in (*search, Path.cwd())]
    sys.path.extend(folder for folder in dict.fromkeys(folders) if folder not in sys.path)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    module = _import(module_name, f"{what}: {path!r}", folders)
    if not hasattr(module, name):
        near = did_you_mean(name, (known for known in vars(module) if not known.startswith("_")))
        raise UserError(f"{what}: {path!r}: there is no {name!r} in {getattr(module, '__file__', None) or module_name}{near}")
    return getattr(module, name)


def _import(module_name: str, where: str, folders: Sequence[str]) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            looked = ", ".join(dict.fromkeys(folders))
            raise UserError(f"{where}: there is no module {error.name!r} among what is installed, nor in {looked}") from None
        raise UserError(f"{where}: the module imports {error.name!r}, which is not installed") from None
    except (Exception, SystemExit) as error:  # whatever the user's own lines raise
        raise UserError(f"{where}: importing the module raised {type(error).__name__}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no message"
