"""Are copies of training images found among the test images? Recall by what was done to the copy, false alarms, and seconds.

Some training images are changed (encoded again, resized, mirrored) and put among the test images of a real set, at the size
they have; each counts as found when it is paired with the image it was made of. Images of the test split that were not
planted and are paired all the same are the alarms: on MNIST all of them are false, on photos look at them (--pictures).

    python -m benchmarks.leakage --data mnist=FOLDER --data cifar=FOLDER        folders that hold train/ and test/
    python -m benchmarks.leakage --data cifar=FOLDER --pictures FILE.png        and the most alike pairs of the set as it is
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import assembly  # noqa: E402 - the checkout this file lies in, not an installed copy
from tracked_cls.config import DataConfig  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.data import sources  # noqa: E402
from tracked_cls.data.cache import Prepared  # noqa: E402
from tracked_cls.data.encode import as_image  # noqa: E402
from tracked_cls.data.likeness import Likeness, near_copies  # noqa: E402

Change = Callable[[Image.Image], Image.Image]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def jpeg(quality: int) -> Change:
    """Return what encodes a picture as JPEG and reads it again."""

    def change(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(io.BytesIO(stream.getvalue()))

    return change


def scaled(factor: float, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Change:
    """Return what resizes a picture."""
    return lambda image: image.resize((round(factor * image.width), round(factor * image.height)), resample)


def mirrored(image: Image.Image) -> Image.Image:
    """Return the picture flipped from left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES: Mapping[str, Change] = {
    **{f"JPEG, quality {quality}": jpeg(quality) for quality in (50, 60, 75, 85, 95)},
    **{f"resized {factor:g} x": scaled(factor) for factor in (0.5, 0.75, 1.5, 2)},
    **{f"resized 0.5 x, {name.lower()}": scaled(0.5, Image.Resampling[name]) for name in ("BICUBIC", "LANCZOS", "NEAREST")},
    "resized 2 x, nearest": scaled(2, Image.Resampling.NEAREST),
    "mirrored": mirrored,
    "mirrored, JPEG 50": lambda image: jpeg(50)(mirrored(image)),
    "resized 0.5 x, JPEG 75": lambda image: jpeg(75)(scaled(0.5)(image)),
}


def main() -> None:
    """Print one table for all sets."""
    args = _arguments()
    columns = {}
    for name, _, folder in (text.partition("=") for text in args.data):
        with TemporaryDirectory() as store:
            prepared, seconds = _prepared(name, Path(folder), Path(store))
            columns[name] = _measured(prepared, args.planted, args.seed) | {"prepare without it, s": f"{seconds:.1f}"}
            if args.pictures:
                _draw(prepared, args.pictures, args.pairs)
    rows = list(next(iter(columns.values())))
    say("| " + " | ".join(["", *columns]) + " |")
    say("|---" * (len(columns) + 1) + "|")
    for row in rows:
        say("| " + " | ".join([row, *(column[row] for column in columns.values())]) + " |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--planted", type=int, default=1000, help="copies of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="write the most alike pairs of the set as it is to this PNG file")
    parser.add_argument("--pairs", type=int, default=20)
    return parser.parse_args()


def _prepared(name: str, folder: Path, store: Path) -> tuple[Prepared, float]:
    cfg = DataConfig(source="folder", root=str(folder), name=name, near_duplicates="off")
    started = time.perf_counter()
    prepared = assembly.build(cfg, store, sources.scan(cfg, folder))
    return prepared, time.perf_counter() - started


def _measured(prepared: Prepared, num_planted: int, seed: int) -> dict[str, str]:
    """Return row -> text: recalls, alarms and seconds."""
    splits = np.asarray(prepared.manifest.splits)
    started, computing = time.perf_counter(), time.process_time()
    found = near_copies(prepared.sized, splits)
    seconds, computed = time.perf_counter() - started, time.process_time() - computing
    test = prepared.manifest.indices("test")
    alarms = np.isin([pair.held_out for pair in found.pairs], test).sum()
    recalls = _recalls(prepared, num_planted, seed)
    return {
        "images: train, val, test": ", ".join(f"{prepared.manifest.num_of(split):,}" for split in sources.SPLITS),
        **{f"recall: {name}": f"{recall:.3f}" for name, recall in recalls.items()},
        "alarms: of val and test": f"{len(found.pairs)} of {found.compared:,}",
        "alarms: of test": f"{alarms} of {len(test):,} ({alarms / len(test):.2%})",
        "s in all": f"{seconds:.1f} ({computed:.1f} of computing)",
        "s per 10,000 images": f"{seconds / len(splits) * 10_000:.2f} ({computed / len(splits) * 10_000:.2f} of computing)",
    }


def _recalls(prepared: Prepared, num_planted: int, seed: int) -> dict[str, float]:
    """Return the share of planted copies that are paired with their originals; all kinds are planted together."""
    train = prepared.manifest.indices("train")
    places = np.random.default_rng(seed).choice(len(train), min(num_planted, len(train)), replace=False)
    planted = np.concatenate([_planted(prepared, train[places], change) for change in CHANGES.values()])
    is_right = np.zeros(len(planted), bool)
    for pair in _look(prepared, train, planted).pairs:
        number = pair.held_out - len(train)
        is_right[number] = pair.other == places[number % len(places)]
    return dict(zip(CHANGES, is_right.reshape(len(CHANGES), -1).mean(axis=1).tolist(), strict=True))


def _planted(prepared: Prepared, originals: Any, change: Change) -> Pixels:
    geometry = prepared.preprocess.geometry
    copies = [np.asarray(change(as_image(image))) for image in prepared.sized(originals)]
    return np.stack([geometry.apply(copy if copy.ndim == 3 else copy[:, :, None]) for copy in copies])


def _look(prepared: Prepared, train: Any, planted: Pixels) -> Likeness:
    """Return what is found among planted images that stand behind the training images."""

    def images(indices: Any) -> Pixels:
        is_planted = indices >= len(train)
        result = np.empty((len(indices), *planted.shape[1:]), np.uint8)
        result[is_planted] = planted[indices[is_planted] - len(train)]
        result[~is_planted] = prepared.sized(train[indices[~is_planted]])
        return result

    return near_copies(images, np.repeat(np.array([0, 2], np.uint8), [len(train), len(planted)]))


def _draw(prepared: Prepared, path: Path, num_pairs: int) -> None:
    """Write the most alike pairs of the set, one below the other, four times enlarged, and say how alike they are."""
    pairs = near_copies(prepared.sized, np.asarray(prepared.manifest.splits)).pairs[:num_pairs]
    for pair in pairs:
        paths = [prepared.manifest.paths[index] for index in (pair.held_out, pair.other)]
        say(f"{pair.likeness:.4f} {'mirrored' if pair.flipped else '        '} {paths[0]}  {paths[1]}")
    if pairs:
        columns = [np.concatenate(list(prepared.sized([pair.held_out, pair.other]))) for pair in pairs]
        sheet = as_image(np.concatenate(columns, axis=1))
        sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
