"""Which images a contact sheet shows: those the model is least sure of, and some of the others by lot."""

from __future__ import annotations

import base64
import copy
import io
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from heapq import nsmallest
from typing import Any

import numpy as np
from PIL import Image

from tracked_cls.data.decode import Pixels
from tracked_cls.data.encode import as_image, to_png
from tracked_cls.data.names import printable
from tracked_cls.prediction.rows import Said

_LEAST, _DRAWN = 25, 25
_SIDE = 96  # pixels of a picture


@dataclass(frozen=True)
class Shown:
    """One image of a sheet: its rank by confidence or by lot, what is said of it, and its picture as base64 of a PNG."""

    confidence: float
    lot: int
    image_id: str
    label: str
    probability: float
    png: str

    @property
    def captioned(self) -> tuple[Pixels, str]:
        """The picture, uint8 [H,W,C], and what is written over it."""
        with Image.open(io.BytesIO(base64.b64decode(self.png)), formats=["PNG"]) as image:
            pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None], f"{self.probability:.2f} {self.label}"


class Sheet:
    """Chooses images as they pass; the choice depends on what is said of them and on their ids, not on when they came."""

    def __init__(self, told: dict[str, Any] | None = None) -> None:
        held = told or {"least": [], "drawn": []}
        self._least = [Shown(**each) for each in held["least"]]
        self._drawn = [Shown(**each) for each in held["drawn"]]

    @property
    def told(self) -> dict[str, Any]:
        """What a later process goes on with."""
        return {"least": [asdict(each) for each in self._least], "drawn": [asdict(each) for each in self._drawn]}

    def copy(self) -> Sheet:
        """Return the choice by now."""
        return copy.copy(self)  # the lists are replaced, never altered

    def add(self, said: Said, pixels: Sequence[Pixels]) -> None:
        """Consider B more images, uint8 [R,R,C] or clips."""
        lots = [zlib.crc32(printable(name).encode()) for name in said.ids]
        unsure = nsmallest(_LEAST, range(len(lots)), key=lambda index: (said.confidence[index], lots[index]))
        drawn = nsmallest(_LEAST + _DRAWN, range(len(lots)), key=lots.__getitem__)
        self._least = self._better(self._least, unsure, _LEAST, said, lots, pixels, by_lot=False)
        self._drawn = self._better(self._drawn, drawn, _LEAST + _DRAWN, said, lots, pixels, by_lot=True)

    @staticmethod
    def _better(
        held: list[Shown], chosen: Sequence[int], most: int, said: Said, lots: Sequence[int], pixels: Sequence[Pixels], *,
        by_lot: bool,
    ) -> list[Shown]:  # fmt: skip
        """Return the best of those held and those chosen; a picture is made of what is kept only."""
        keys = [_key(each.confidence, each.lot, by_lot=by_lot) for each in held]
        worst = max(keys) if len(keys) == most else None
        for index in chosen:
            key = _key(float(said.confidence[index]), lots[index], by_lot=by_lot)
            if worst is not None and key >= worst:
                break
            held = [*held, _shown(said, index, lots[index], pixels[index])]
        return nsmallest(most, held, key=lambda each: _key(each.confidence, each.lot, by_lot=by_lot))

    def chosen(self) -> tuple[list[tuple[Pixels, str]], list[tuple[Pixels, str]]]:
        """Return the least sure images, the least sure first, and some of the others."""
        there = {each.image_id for each in self._least}
        others = [each for each in self._drawn if each.image_id not in there][:_DRAWN]
        return [each.captioned for each in self._least], [each.captioned for each in others]


def _key(confidence: float, lot: int, *, by_lot: bool) -> tuple[float, float]:
    return (lot, 0.0) if by_lot else (confidence, lot)


def _shown(said: Said, index: int, lot: int, pixels: Pixels) -> Shown:
    still = pixels if pixels.ndim == 3 else pixels[len(pixels) // 2]
    image = as_image(still)
    image.thumbnail((_SIDE, _SIDE))
    small = np.asarray(image)
    png = to_png(small if small.ndim == 3 else small[:, :, None])
    probability = float(said.probabilities[index].max())
    name, label = printable(said.ids[index]), said.labels[index]
    return Shown(float(said.confidence[index]), lot, name, label, probability, base64.b64encode(png).decode())
