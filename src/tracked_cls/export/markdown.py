"""Texts in Markdown, where what others wrote is shown letter by letter."""

from __future__ import annotations

import re
from typing import Any

from tracked_cls.report.page import NO_VALUE, visible

_MARKS = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\w)-|[\\`*_{}\[\]()<>#+!|~:/@=^$&\"']")


class Markdown(str):
    """A text that is Markdown already; `fill` makes any other harmless."""


def escaped(text: str) -> Markdown:
    """Return a text, which may be anybody's, as Markdown that shows it as it is, on one line."""
    return Markdown(_MARKS.sub(r"\\\g<0>", visible(text)))


def code(text: object) -> Markdown:
    """Return a text, which may be anybody's, in the letters of a typewriter, on one line."""
    plain = visible(str(text)).replace("`", "'").replace("|", r"\|")
    return Markdown(f"`{plain}`" if plain else NO_VALUE)


def fill(template: str, **facts: Any) -> str:
    """Return one of our Markdown templates with these facts in it, each plain text of them `escaped`."""
    import jinja2  # needed only where a page is written

    environment = jinja2.Environment(  # noqa: S701 - HTML's escapes are none here; `_harmless` is this page's
        loader=jinja2.PackageLoader("tracked_cls"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=_harmless,
    )  # fmt: skip
    environment.filters["cells"] = lambda row: Markdown(" | ".join(_harmless(cell) for cell in row))
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**facts))


def _harmless(value: Any) -> Any:
    return escaped(value) if type(value) is str else value
