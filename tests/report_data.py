"""Artifacts as runs leave them, made up, and a reader of the pages that are made of them."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tracked_cls.report.artifacts import RunFacts

RUN_ID = "0123456789abcdef" * 2


def png(width=40, height=30, seed=0, noise=False):
    """A picture of one colour, or of noise, which cannot be made small."""
    draws = np.random.default_rng(seed)
    pixels = (
        draws.integers(0, 256, (height, width, 3), np.uint8) if noise else np.full((height, width, 3), seed * 20 + 40, np.uint8)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def put_pictures(folder, *names):
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        (folder / "plots" / name).write_bytes(png(seed=place))


def put_predictions(folder, right, *, split="test", ids=None, labels=None):
    """Predictions for images of ten classes, right or wrong as told."""
    right = np.asarray(right, bool)
    ids = [f"image{index:05d}" for index in range(len(right))] if ids is None else ids
    labels = [str(index % 10) for index in range(len(right))] if labels is None else labels
    predicted = [label if fine else f"not {label}" for label, fine in zip(labels, right, strict=True)]
    put_parquet(folder, {"id": ids, "path": ids, "label": labels, "predicted": predicted, "right": right}, split)


def put_parquet(folder, columns, split="test"):
    path = folder / "tables" / f"{split}_predictions.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def put_metrics(folder, metrics, split="test"):
    path = folder / "tables" / f"{split}_metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics))


def facts(folder, kind="train", **known):
    folder.mkdir(parents=True, exist_ok=True)
    return RunFacts(**{"run_id": RUN_ID, "name": f"{kind} on digits", "kind": kind, "folder": folder, **known})


class Page(HTMLParser):
    """The parts of a page: `tables` by caption, `facts`, `images`, `headings`, `text`; `errors` are tags out of place."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.facts, self.images, self.headings, self.errors = {}, {}, [], [], []
        self.text, self.tags, self.ids, self.links = "", [], set(), []
        self._open, self._caption, self._rows, self._cell = [], "", [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids.add(attrs.get("id"))
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption", "summary", "h1", "h2"):
            self._cell = ""
        if tag not in ("img", "meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.errors.append(tag)
        if tag in ("td", "th"):
            self._rows[-1].append(" ".join(self._cell.split()))
        elif tag in ("caption", "summary"):
            self._caption = self._cell
        elif tag in ("h1", "h2"):
            self.headings.append(self._cell)
        elif tag == "table":
            self._end_table()

    def _end_table(self):
        if all(len(row) == 2 for row in self._rows) and not self._caption:
            self.facts.update(dict(self._rows))
        else:
            self.tables[self._caption] = self._rows
        self._caption = ""

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if self._cell is not None:
            self._cell += data
