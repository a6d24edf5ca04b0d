"""Damaged images: `python -m benchmarks.bad_files --mutations 2000 --seed 0`, a minute or two on one core.

Makes pictures of six formats, damages copies of them at seeded places (bits flipped, ends cut off, parts exchanged), has each
decoded as `prepare` and `predict` do, in processes with limits, and by Pillow with none of our code, and prints what became
of them. Then each picture is prepared whole, damaged afterwards with its size and time kept, and looked for by its SHA-256.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from tracked_cls.data.decoders import Decoders, Limits
from tracked_cls.data.ingest import Plan, Rejection
from tracked_cls.data.intake import altered_files, take_in
from tracked_cls.data.reading import read
from tracked_cls.data.sources.base import FileSource, Sample

Pixels = npt.NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ENDING = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
_CHUNK = 32


@dataclass
class Tally:
    """What became of the damaged files of one format. `codes` counts rejections by code."""

    num: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    as_pillow: int = 0
    differently: int = 0
    unlike_the_original: int = 0
    altered_after: int = 0
    seen_after: int = 0

    @property
    def crashes(self) -> int:
        """How many ended the process that decoded them."""
        return self.codes["E_CRASHED"] + self.codes["E_MEMORY"]

    @property
    def hangs(self) -> int:
        """How many had to be given up."""
        return self.codes["E_TIMEOUT"]


# ---- pictures, and what is done to them ------------------------------------------------------------------------------


def originals(format: str, rng: np.random.Generator) -> list[bytes]:
    """Return encoded pictures of one format, in its common variants."""
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
    )
    picture = Image.fromarray(smooth)
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(np.roll(smooth, step, 1)) for step in (5, 9)]}
    variants: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(picture, {}), (picture.convert("L"), {}), (picture.convert("P"), {}), (picture.convert("RGBA"), {})],
        "JPEG": [(picture, {}), (picture, {"progressive": True}), (picture.convert("L"), {}), (picture.convert("CMYK"), {})],
        "WEBP": [(picture, {}), (picture, {"lossless": True}), (picture, frames), (picture.convert("RGBA"), {})],
        "GIF": [(picture, {}), (picture.convert("L"), {}), (picture, frames)],
        "BMP": [(picture, {}), (picture.convert("L"), {}), (picture.convert("1"), {})],
        "TIFF": [
            *((picture, {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate")),
            (picture, frames),
        ],
    }  # fmt: skip
    return [_encoded(image, format, options) for image, options in variants[format]]


def _encoded(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def damaged(data: bytes, donor: bytes, rng: random.Random, *, same_size: bool = False) -> bytes:
    """Return a file with flipped bits, cut short, or with a part of another one in it; never the file itself."""
    while True:
        way = rng.choice(("flip", "flip", "splice") if same_size else ("flip", "flip", "cut", "splice"))
        result = {"flip": _flipped, "cut": _cut, "splice": partial(_spliced, donor=donor, same_size=same_size)}[way](data, rng)
        if result != data:
            return result


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _spliced(data: bytes, rng: random.Random, donor: bytes, *, same_size: bool) -> bytes:
    length, start, to = rng.randint(1, 200), rng.randrange(len(donor)), rng.randrange(len(data))
    part = donor[start : start + length]
    if same_size:
        part = part[: len(data) - to]
        return data[:to] + part + data[to + len(part) :]
    return data[:to] + part + data[to + rng.choice((0, len(part), length // 2)) :]


# ---- Pillow without us -----------------------------------------------------------------------------------------------


def by_pillow(paths: Iterable[str]) -> list[Pixels | str]:
    """Return what Pillow itself makes of files, by the rules of docs/data.md written a second time; or its error."""
    return [_by_pillow(path) for path in paths]


def _by_pillow(path: str) -> Pixels | str:
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return _flat(ImageOps.exif_transpose(image) if _has_orientation(image) else image)
    except Exception as error:  # whatever its parsers raise
        return f"{type(error).__name__}: {error}"


def _has_orientation(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:
        return False


def _flat(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        return np.asarray(np.asarray(image).astype(np.uint16) >> 8, np.uint8)[:, :, None]
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        with_alpha = image.convert("LA" if grey else "RGBA")
        image = Image.new("L" if grey else "RGB", image.size, "white")
        image.paste(with_alpha.getchannel("L") if grey else with_alpha.convert("RGB"), mask=with_alpha.getchannel("A"))
    flat = np.asarray(image.convert("L" if grey else "RGB"))
    return flat[:, :, None] if flat.ndim == 2 else flat


# ---- the comparison --------------------------------------------------------------------------------------------------


def run(mutations: int, seed: int, folder: Path) -> dict[str, Tally]:
    """Damage and decode so many files in all, below a folder; return a tally for each format."""
    tallies = {}
    for number, format in enumerate(FORMATS):
        share = mutations // len(FORMATS) + (number < mutations % len(FORMATS))
        place = folder / format
        place.mkdir()
        tallies[format] = _tally(
            format, share, np.random.default_rng([seed, number]), random.Random(seed * 100 + number), place
        )
    return tallies


def _tally(format: str, num: int, pictures: np.random.Generator, rng: random.Random, folder: Path) -> Tally:
    files = originals(format, pictures)
    tally, names, sources = Tally(num), [], []
    for index in range(num):
        data = files[index % len(files)]
        names.append(f"{index}.{ENDING[format]}")
        sources.append(data)
        (folder / names[-1]).write_bytes(damaged(data, rng.choice(files), rng))
    paths = [str(folder / name) for name in names]
    whole = _whole(files, folder)
    for index, ours, theirs in zip(range(num), _ours(paths), _apart(by_pillow, paths), strict=True):
        _count(tally, ours, theirs, whole[index % len(files)])
    _damage_after(tally, names, sources, rng, folder)
    return tally


def _ours(paths: list[str]) -> Iterator[Pixels | Rejection]:
    found = _apart(partial(read, frames=None, geometry=None, digests=False), paths)
    return (getattr(each, "pixels", each) for each in found)


def _apart(work: Any, paths: list[str]) -> Iterator[Any]:
    """Yield what some work makes of files, in a process with the limits that `prepare` sets."""
    with Decoders(work, 1, Limits()) as decoders:
        for start in range(0, len(paths), _CHUNK):
            yield from decoders.submit(paths[start : start + _CHUNK])()


def _whole(files: list[bytes], folder: Path) -> list[Pixels]:
    paths = [folder / f"whole-{index}" for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return [pixels for pixels in _ours([str(path) for path in paths]) if not isinstance(pixels, Rejection)]


def _count(tally: Tally, ours: Pixels | Rejection, theirs: Pixels | str, original: Pixels) -> None:
    if isinstance(ours, Rejection):
        tally.codes[ours.code] += 1
    elif not isinstance(theirs, str) and np.array_equal(ours, theirs):
        tally.as_pillow += 1
        tally.unlike_the_original += not np.array_equal(ours, original)
    else:
        tally.differently += 1


def _damage_after(tally: Tally, names: list[str], sources: list[bytes], rng: random.Random, folder: Path) -> None:
    """Prepare the whole pictures, damage each with its size and time kept, and see which are named."""
    for name, data in zip(names, sources, strict=True):
        (folder / name).write_bytes(data)
    samples = [Sample(name, (f"class {index % 2}",)) for index, name in enumerate(names)]
    source = FileSource("damaged", folder, "", samples, {})
    plan = Plan(32, None, "crop", "bilinear", 64_000_000)
    taken = take_in(source, plan, workers=1, keep=lambda _: None)
    for name, data in zip(names, sources, strict=True):
        status = (folder / name).stat()
        (folder / name).write_bytes(damaged(data, rng.choice(sources), rng, same_size=True))
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (folder / name).stat().st_size == status.st_size
    digests = {sample.path: digest for sample, digest in zip(taken.samples, taken.sha256, strict=True)}
    tally.altered_after = len(digests)
    tally.seen_after = len(altered_files(source, digests, workers=1))


def table(tallies: dict[str, Tally]) -> list[str]:
    """Return the outcome as lines of Markdown."""
    head = (
        "format | damaged | rejected with a code | as Pillow decodes it | of these unlike the original | not as Pillow does "
        "| crashes | hangs | damaged after prepare: seen"
    )
    rows = [_row(name, tally) for name, tally in tallies.items()]
    total = Tally(codes=sum((tally.codes for tally in tallies.values()), Counter()))
    for name in ("num", "as_pillow", "differently", "unlike_the_original", "altered_after", "seen_after"):
        setattr(total, name, sum(getattr(tally, name) for tally in tallies.values()))
    return [f"| {head} |", "|---" * 9 + "|", *rows, _row("all", total)]


def _row(name: str, tally: Tally) -> str:
    codes = ", ".join(f"{code} {count}" for code, count in tally.codes.most_common())
    cells = [name, tally.num, f"{tally.codes.total()} ({codes})", tally.as_pillow, tally.unlike_the_original, tally.differently]
    cells += [tally.crashes, tally.hangs, f"{tally.seen_after} of {tally.altered_after}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = run(options.mutations, options.seed, Path(folder))
    print("\n".join(table(tallies)))
    print(f"\n{options.mutations} mutations, seed {options.seed}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
