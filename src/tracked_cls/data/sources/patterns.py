"""What a regular expression of the configuration takes from paths: classes and groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tracked_cls.errors import UserError


def captured(pattern: str, paths: Sequence[str], shown: str, where: str) -> list[str]:
    """Return what the pattern's one group takes from each path; raises `UserError` where that is nothing.

    `shown` is what the user calls the pattern, `where` what the paths belong to.
    """
    search = re.compile(pattern).search
    found = [match.group(1) if (match := search(path)) else None for path in paths]
    missed = sorted(path for path, text in zip(paths, found, strict=True) if not text)
    if missed:
        raise UserError(
            f"{where}: {missed[0]!r} does not match {shown}, like {len(missed)} of {len(paths)} in all; "
            "mend the pattern or move those files away"
        )
    return [text for text in found if text]
