"""Names of files and classes: how they are ordered, and which of them can be written down."""

from __future__ import annotations

import re

_DIGITS = re.compile("([0-9]+)")


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that orders runs of digits by value, and equal ones by spelling."""
    parts: list[str | int] = [*_DIGITS.split(text)]
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), text


def is_utf8(text: str) -> bool:
    """Tell whether a name can be written as UTF-8; a file's name may be made of any bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Return a path that can be written as UTF-8, whatever bytes its name is made of."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
