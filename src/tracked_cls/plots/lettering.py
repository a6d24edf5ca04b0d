"""Letters of every script in pictures: fonts beside matplotlib's own, where they are installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import font_manager, rc_context

_OTHERS = (  # tried in this order, letter by letter, where DejaVu Sans has none
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei"),
    *("PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI"),
)


@contextmanager
def lettering() -> Iterator[None]:
    """Draw class names in whatever installed fonts have their letters; one that none has is a box, without a warning each."""
    installed = {font.name for font in font_manager.fontManager.ttflist}  # a font that is not there would warn, too
    families = ["DejaVu Sans", *(name for name in _OTHERS if name in installed)]
    with rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
