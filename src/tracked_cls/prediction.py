"""Labels for images nobody labelled: a folder in, a CSV out, every row traceable to the model and its run."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

import numpy as np
import numpy.typing as npt

from tracked_cls import registry
from tracked_cls.config import PredictConfig, find_input, workspace
from tracked_cls.console import progress
from tracked_cls.data.decode import Pixels, RejectedImage, decode, frames_of, read_file
from tracked_cls.data.preprocess import Geometry
from tracked_cls.data.sources import list_clips, list_images
from tracked_cls.errors import UserError
from tracked_cls.provenance import num_cores
from tracked_cls.serving.classifier import Classifier
from tracked_cls.tracking import Tracker
from tracked_cls.transforms.views import resolution, views

COLUMNS = ("image_id", "label", "probability")
_SHOWN = 10  # unreadable files named on the terminal


@dataclass(frozen=True)
class Rejected:
    """An image that got no label, and why."""

    image_id: str
    code: str
    reason: str


@dataclass(frozen=True)
class Predictions:
    """Where the labels are, and what they look like as a whole."""

    run_id: str
    url: str
    model: str
    output: Path
    count_by_label: Counter[str]
    rejected: list[Rejected]


def run(cfg: PredictConfig, tracker: Tracker) -> Predictions:
    """Label every image of ``predict.input``; files that are no image are listed beside the output, not fatal."""
    root = find_input(str(cfg.predict.input), cfg.tracking, "predict.input")
    source = Path(str(cfg.predict.input)).absolute()
    address = cfg.predict.model or f"models:/{cfg.data.model_name}@{registry.CHAMPION}"
    bundle, exact = registry.resolve(tracker.client, address)
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    files = find_images(root, clips=classifier.preprocess.frames is not None)
    with tracker.begin("predict", f"predict {source.name}") as tracked:
        output = _output(cfg, source, tracked.run_id)
        tracked.log_config(cfg)
        tracked.set_tags({"model": exact, "model.address": address, "weights.digest": classifier.meta["weights_digest"]})
        labels, rejected = _write(files, classifier, output, cfg)
        tracked.log_metrics({"num_images": sum(labels.values()), "num_rejected": len(rejected)})
        tracked.log_file(output, "tables")
        if rejected:
            tracked.log_file(_beside(output), "tables")
    return Predictions(tracked.run_id, tracked.url, exact, output, labels, rejected)


def find_images(root: Path, *, clips: bool = False) -> list[tuple[str, Path]]:
    """Return (image_id, path) of the image `root`, or of every image below it, in the order of their names.

    An image_id is the path relative to the input, so it is unique where two folders hold the same file name. `clips`: each
    image file, perhaps animated, and each folder of frames directly in the input is one.
    """
    if root.is_file():
        return [(root.name, root)]
    files = [(name, root / name) for name in (list_clips(root) if clips else list_images(root))]
    if not files:
        raise UserError(f"predict.input: no images below {str(root)!r}")
    return files


def _output(cfg: PredictConfig, source: Path, run_id: str) -> Path:
    home = workspace(cfg.tracking)
    output = home / (cfg.predict.output or f"predictions/{source.stem}-{run_id[:8]}.csv")
    if output.is_dir():
        raise UserError(f"predict.output: {str(output)!r} is a folder; name a CSV file")
    for path in (output, _beside(output)):
        if path.exists() and not cfg.predict.overwrite:
            raise UserError(f"predict.output: {str(path)!r} exists; set predict.overwrite=true to replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            return output
    except OSError as error:
        raise UserError(f"predict.output: {str(output)!r} cannot be written: {error.strerror}") from None


def _write(
    files: Sequence[tuple[str, Path]], classifier: Classifier, output: Path, cfg: PredictConfig
) -> tuple[Counter[str], list[Rejected]]:
    """Write the CSV under a temporary name first, so that a half-written one is never taken for whole."""
    labels: Counter[str] = Counter()
    rejected: list[Rejected] = []
    temporary = output.with_name(f".tmp-{os.getpid()}-{output.name}")
    try:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            _write_rows(file, files, classifier, cfg, labels, rejected)
        if not labels:
            raise UserError(f"none of the {len(files)} files below {cfg.predict.input!r} can be read: {rejected[0].reason}")
        _write_rejected(_beside(output), rejected)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return labels, rejected


def _write_rows(
    file: TextIO,
    files: Sequence[tuple[str, Path]],
    classifier: Classifier,
    cfg: PredictConfig,
    labels: Counter[str],
    rejected: list[Rejected],
) -> None:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    reader = _Reader(classifier, cfg)
    for batch in _decoded(files, reader, cfg):
        good = [(name, pixels) for name, pixels in batch if not isinstance(pixels, Rejected)]
        rejected.extend(pixels for _, pixels in batch if isinstance(pixels, Rejected))
        if not good:
            continue
        table = reader.probabilities([pixels for _, pixels in good])
        for (name, _), row in zip(good, table, strict=True):
            label = classifier.label(row)
            writer.writerow([name, label, f"{row.max():.6f}"])
            labels[label] += 1


def _decoded(
    files: Sequence[tuple[str, Path]], reader: _Reader, cfg: PredictConfig
) -> Iterator[list[tuple[str, Pixels | Rejected]]]:
    """Yield batches of (image_id, pixels or why there are none); the next batch is decoded while one is scored."""
    size = cfg.predict.batch_size
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(cfg.predict.workers or num_cores()) as pool:
        ahead = [pool.map(reader.read, batch) for batch in batches[:1]]
        for index, batch in enumerate(progress(batches, len(batches), "predicting", unit="batch")):
            ahead += [pool.map(reader.read, following) for following in batches[index + 1 : index + 2]]
            yield list(zip([name for name, _ in batch], ahead.pop(0), strict=True))


class _Reader:
    """Files to the pixels a classifier takes: the user's own transforms, the model's geometry, the views of it."""

    def __init__(self, classifier: Classifier, cfg: PredictConfig) -> None:
        geometry = classifier.preprocess.geometry
        self._classifier = classifier
        self._tta = cfg.predict.tta
        self._size = geometry.image_size
        self._geometry = replace(geometry, image_size=resolution(self._tta, geometry.image_size))
        self._transform = _own_transforms(cfg, geometry)

    def read(self, file: tuple[str, Path]) -> Pixels | Rejected:
        """Return uint8 [R,R,C] (clips [T,R,R,C]), R the side that the views are cut from, or why there is none."""
        name, path = file
        try:
            pixels = self._clip(path) if path.is_dir() else self._classifier.read(read_file(path))
            return self._geometry.apply(self._transform(pixels))
        except RejectedImage as error:
            return Rejected(name, error.code, error.reason)

    def _clip(self, folder: Path) -> Pixels:
        frames = self._classifier.preprocess.frames
        if frames is None:
            raise RejectedImage("E_NOT_FILE", "this is a folder, not a file")
        return frames_of([decode(read_file(folder / name)) for name in list_images(folder)], frames)

    def probabilities(self, images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K]: of the mean of the logits over the views."""
        batch = np.stack(images)
        if self._tta == "none":
            return self._classifier.probabilities_of(batch)
        seen = views(batch, self._size, self._tta)
        logits = self._classifier.logits_of(seen.reshape(-1, *seen.shape[2:]))
        return self._classifier.activate(logits.reshape(*seen.shape[:2], -1).mean(axis=1))


def _own_transforms(cfg: PredictConfig, geometry: Geometry) -> Callable[[Pixels], Pixels]:
    """Return what ``transforms.predict`` does to a decoded image [H,W,C]."""
    if not cfg.transforms.predict:
        return lambda pixels: pixels
    from tracked_cls.transforms.inference import pixel_transform  # torch: prediction without transforms needs none

    return pixel_transform(cfg.transforms.predict, (geometry.channels, geometry.image_size), search=(Path.cwd(),))


def _beside(output: Path) -> Path:
    return output.with_suffix(".rejected.csv")


def _write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("image_id", "code", "reason"))
        writer.writerows((item.image_id, item.code, item.reason) for item in rejected)


def lines(predictions: Predictions) -> list[str]:
    """Return what a person wants to know at the end of a prediction."""
    counts = ", ".join(f"{label} {count}" for label, count in predictions.count_by_label.most_common(10))
    text = [
        f"predict: {predictions.count_by_label.total():,} images labelled by {predictions.model}: {counts}",
        f"  run:    {predictions.url}",
        f"  labels: {predictions.output}",
    ]
    if predictions.rejected:
        text.append(f"  {len(predictions.rejected)} files could not be read, listed in {_beside(predictions.output)}:")
        text += [f"    {item.image_id}: {item.code}, {item.reason}" for item in predictions.rejected[:_SHOWN]]
    return text
