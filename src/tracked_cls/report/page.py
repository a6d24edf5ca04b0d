"""One page: plain parts in, one self-contained HTML file out, below 3 MB, with no scripts and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from PIL import Image

from tracked_cls.data.decode import Pixels
from tracked_cls.data.encode import as_image

if TYPE_CHECKING:
    import jinja2

MAX_BYTES = 3_000_000
NO_VALUE = "\u2013"  # an en dash, where a table has nothing to say
Tone = Literal["plain", "good", "bad"]

_WIDTHS = (None, 1400, 1000, 700)  # pixels that pictures are brought down to, one after the other, until the page is small
_SMALL_BYTES = 60_000  # a picture below is not worth making smaller
_WIDE = 1.7  # width by height: from there on a picture has a row of its own
_SCROLLED = 900  # pixels of width: from there on a wide picture is scrolled on a phone, where its letters would vanish
_LONGEST_TEXT = 600
_ONE = r"<?[+-]?[\d,.]+(e[+-]?\d+)?"
_NUMBER = re.compile(rf"{_ONE}( ?%| [a-z]{{1,5}})?( ± [\d.]+)?|{_ONE} to {_ONE}|{_ONE} \({_ONE} to {_ONE}\)|{NO_VALUE}|")


@dataclass(frozen=True)
class Tile:
    """One number at the top of a page, with what it is and, in small letters, what to know of it."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Picture:
    """A PNG file with its title, what it shows in words for those who cannot see it, and the place it has in the run."""

    title: str
    alt: str
    png: bytes
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of texts, the first cell of each being its name.

    The first `texts` columns are names even where they look like numbers; `folded`: shown on a click.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False
    texts: int = 1

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers only, and is aligned to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ([""] for _ in self.header)
        are_numbers = [any(column) and all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
        return [number and place >= self.texts for place, number in enumerate(are_numbers)]


@dataclass(frozen=True)
class Section:
    """A part of a page; what it has none of is left out. `commands` are (what it does, what to type)."""

    title: str = ""
    text: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[tuple[str, str]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below the title."""
        return not (self.text or self.facts or self.tables or self.pictures or self.commands)


@dataclass(frozen=True)
class Shown:
    """A picture as it stands in a page: its address is empty where it had to be left out."""

    picture: Picture
    uri: str
    width: int
    height: int

    @property
    def is_wide(self) -> bool:
        """Whether it is much wider than high."""
        return self.width > _WIDE * self.height

    @property
    def is_scrolled(self) -> bool:
        """Whether a narrow screen shows a part of it at a time."""
        return self.is_wide and self.width > _SCROLLED


def render(
    title: str,
    *,
    kind: str,
    lead: str = "",
    summary: Sequence[str] = (),
    tiles: Sequence[Tile] = (),
    sections: Sequence[Section] = (),
    footer: str = "",
) -> str:
    """Return the page. Pictures are made smaller, then left out with a note, before it grows beyond 3 MB."""
    template = open_template("page.html")
    sections = [section for section in sections if not section.is_empty]
    pictures = [picture for section in sections for picture in section.pictures]
    facts = {"title": title, "kind": kind, "lead": lead, "summary": summary, "tiles": tiles, "sections": sections}
    for width in _WIDTHS:
        shown = {picture: _shown(picture, width) for picture in pictures}
        page = template.render(shown=shown, footer=footer, **facts)
        if len(page.encode()) <= MAX_BYTES:
            return page
    for picture in sorted(pictures, key=lambda picture: -len(shown[picture].uri)):
        shown[picture] = Shown(picture, "", 0, 0)
        page = template.render(shown=shown, footer=footer, **facts)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def open_template(name: str) -> jinja2.Template:
    """Return one of our pages to fill: texts are escaped and made `visible`, and a value that is missing is an error."""
    import jinja2  # needed only where a page is written

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tracked_cls"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: visible(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters["visible"] = visible
    environment.filters["cut"] = cut
    return environment.get_template(name)


def visible(path: str) -> str:
    """Return a path with its line breaks and other controls written out, which a page would swallow."""
    if path.isprintable():  # nearly always, and there are megabytes of pictures among what is looked through
        return path
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in path)


def cut(text: str) -> str:
    """Return the beginning of a text that is too long for a page."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"


def thumbnail_uri(pixels: Pixels, side: int) -> str:
    """Return an image uint8 [H,W,C], or the middle frame of a clip, at most `side` pixels wide and high, as an address."""
    image = as_image(pixels if pixels.ndim == 3 else pixels[len(pixels) // 2])
    image.thumbnail((side, side))
    return png_uri(_png(image))


def png_uri(png: bytes) -> str:
    """Return a PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def captioned(pictures: Mapping[str, bytes], words: Mapping[str, tuple[str, str]], prefix: str = "plots/") -> list[Picture]:
    """Return the pictures that are there, in the order of `words`: file name -> (title, what it shows)."""
    return [Picture(title, alt, pictures[name], prefix + name) for name, (title, alt) in words.items() if name in pictures]


def _shown(picture: Picture, width: int | None) -> Shown:
    """Return a picture as it is, or of so many pixels and 256 colours at most."""
    with Image.open(io.BytesIO(picture.png), formats=["PNG"]) as image:
        if width is None or len(picture.png) <= _SMALL_BYTES:
            return Shown(picture, png_uri(picture.png), *image.size)
        size = (min(width, image.width), max(1, round(image.height * min(1.0, width / image.width))))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(256, Image.Quantize.FASTOCTREE)
    png = min(_png(small), picture.png, key=len) if size == image.size else _png(small)
    return Shown(picture, png_uri(png), *size)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
