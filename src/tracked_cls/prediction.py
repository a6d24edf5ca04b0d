"""Labels for images nobody labelled: a folder in, a CSV out, every row traceable to the model and its run."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from tracked_cls import durable, failpoints, registry
from tracked_cls.config import PredictConfig, find_input, workspace
from tracked_cls.console import progress
from tracked_cls.data.decode import Pixels, RejectedImage
from tracked_cls.data.decoders import Decoders, Limits
from tracked_cls.data.ingest import Rejection, read_images
from tracked_cls.data.preprocess import Geometry
from tracked_cls.data.sources import list_clips, list_images
from tracked_cls.errors import UserError
from tracked_cls.processes import Process
from tracked_cls.provenance import num_cores
from tracked_cls.serving.classifier import Classifier
from tracked_cls.tracking import Tracker
from tracked_cls.transforms.views import resolution, views

COLUMNS = ("image_id", "label", "probability", "unsure")
REJECTED_COLUMNS = ("image_id", "code", "reason")
_SHOWN = 10  # unreadable files named on the terminal
_PART = 32  # files that a decoding process is given at a time


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
    num_unsure: int
    unsure_below: float
    rejected: list[Rejected]


@dataclass
class _Told:
    """What was written so far."""

    labels: Counter[str] = field(default_factory=Counter)
    num_unsure: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "num_images": sum(self.labels.values()),
            "num_unsure": self.num_unsure,
            "num_rejected": len(self.rejected),
        }


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
        told = _write(files, classifier, output, cfg)
        failpoints.reach("predict.after_rename")
        tracked.log_metrics(told.metrics)
        tracked.log_file(output, "tables")
        if told.rejected:
            tracked.log_file(_beside(output), "tables")
    _keep(output)
    return Predictions(
        run_id=tracked.run_id,
        url=tracked.url,
        model=exact,
        output=output,
        count_by_label=told.labels,
        num_unsure=told.num_unsure,
        unsure_below=cfg.predict.unsure_below,
        rejected=told.rejected,
    )


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
        if path.exists() and not cfg.predict.overwrite and not _is_left_over(path, output):
            raise UserError(f"predict.output: {str(path)!r} exists; set predict.overwrite=true to replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            return output
    except OSError as error:
        raise UserError(f"predict.output: {str(output)!r} cannot be written: {error.strerror}") from None


def _write(files: Sequence[tuple[str, Path]], classifier: Classifier, output: Path, cfg: PredictConfig) -> _Told:
    """Write the labels, and what could not be read beside them: last comes the name that says that all is there."""
    told = _Told()
    with _whole(output) as file:
        _write_rows(file, files, classifier, cfg, told)
        if not told.labels:
            raise UserError(
                f"none of the {len(files)} files below {cfg.predict.input!r} can be read: {told.rejected[0].reason}"
            )
        _write_rejected(_beside(output), told.rejected)
        failpoints.reach("predict.before_rename")
    return told


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """Yield a text file that is there under its name, and on the disk, once the block has ended well."""
    temporary = path.with_name(f".tmp-{path.name}-{Process.me().mark}")
    _sweep(path)
    try:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _note(path).write_text(durable.sha256_of(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that were killed left of a file."""
    for left in path.parent.glob(f".tmp-{escape(path.name)}-*"):
        process = Process.marked(left.name)
        if process is not None and process.is_gone():
            left.unlink(missing_ok=True)


def _write_rows(
    file: TextIO, files: Sequence[tuple[str, Path]], classifier: Classifier, cfg: PredictConfig, told: _Told
) -> None:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    with _reading(classifier, cfg) as reader:
        _write_batches(writer, _decoded(files, reader, cfg), reader, cfg.predict.unsure_below, told)


def _write_batches(
    writer: Any, batches: Iterable[list[tuple[str, Pixels | Rejected]]], reader: _Reader, unsure_below: float, told: _Told
) -> None:
    for batch in batches:
        good = [(name, pixels) for name, pixels in batch if not isinstance(pixels, Rejected)]
        told.rejected.extend(pixels for _, pixels in batch if isinstance(pixels, Rejected))
        if not good:
            continue
        failpoints.reach("predict.mid_rows")
        table = reader.probabilities([pixels for _, pixels in good])
        for (name, _), row in zip(good, table, strict=True):
            label, unsure = reader.classifier.label(row), reader.classifier.confidence(row) < unsure_below
            writer.writerow([name, label, f"{row.max():.6f}", str(unsure).lower()])
            told.labels[label] += 1
            told.num_unsure += unsure


def _decoded(
    files: Sequence[tuple[str, Path]], reader: _Reader, cfg: PredictConfig
) -> Iterator[list[tuple[str, Pixels | Rejected]]]:
    """Yield batches of (image_id, pixels or why there are none); the next batch is decoded while one is scored."""
    size = cfg.predict.batch_size
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    ahead = [reader.begin(batch) for batch in batches[:1]]
    for index, batch in enumerate(progress(batches, len(batches), "predicting", unit="batch")):
        ahead += [reader.begin(following) for following in batches[index + 1 : index + 2]]
        yield list(zip([name for name, _ in batch], ahead.pop(0)(), strict=True))


class _Reader:
    """Files to the pixels a classifier takes: the user's own transforms, the model's geometry, the views of it."""

    def __init__(
        self, classifier: Classifier, cfg: PredictConfig, decoders: Decoders[Pixels | Rejection], threads: ThreadPoolExecutor
    ) -> None:
        self.classifier = classifier
        self._tta = cfg.predict.tta
        self._size = classifier.preprocess.geometry.image_size
        self._decoders = decoders
        self._threads = threads
        self._geometry = _geometry(classifier, cfg)
        self._transform = _own_transforms(cfg, classifier.preprocess.geometry)

    def begin(self, batch: Sequence[tuple[str, Path]]) -> Callable[[], list[Pixels | Rejected]]:
        """Return a call that waits for uint8 [R,R,C] (clips [T,R,R,C]) of each file, or why there is none.

        R is the side that the views are cut from.
        """
        if self._transform is not None:
            return partial(list, self._threads.map(partial(self._transformed, self._transform), batch))
        parts = [batch[start : start + _PART] for start in range(0, len(batch), _PART)]
        waiting = [self._decoders.submit([str(path) for _, path in part]) for part in parts]
        return lambda: [
            _named(file, found) for file, found in zip(batch, (found for wait in waiting for found in wait()), strict=True)
        ]

    def _transformed(self, transform: Callable[[Pixels], Pixels], file: tuple[str, Path]) -> Pixels | Rejected:
        """Whole photos come one by one: few of them are held at a time."""
        [found] = self._decoders.submit([str(file[1])])()
        try:
            return _named(file, found) if isinstance(found, Rejection) else self._geometry.apply(transform(found))
        except RejectedImage as error:
            return Rejected(file[0], error.code, error.reason)

    def probabilities(self, images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K]: of the mean of the logits over the views."""
        batch = np.stack(images)
        if self._tta == "none":
            return self.classifier.probabilities_of(batch)
        seen = views(batch, self._size, self._tta)
        logits = self.classifier.logits_of(seen.reshape(-1, *seen.shape[2:]))
        return self.classifier.activate(logits.reshape(*seen.shape[:2], -1).mean(axis=1))


@contextmanager
def _reading(classifier: Classifier, cfg: PredictConfig) -> Iterator[_Reader]:
    """Yield a reader whose files are opened in processes of their own, and sized there unless transforms come first."""
    sized_to = None if cfg.transforms.predict else _geometry(classifier, cfg)
    work = partial(read_images, frames=classifier.preprocess.frames, geometry=sized_to)
    limits = Limits(cfg.predict.decode_seconds, cfg.predict.decode_memory_bytes, "predict")
    workers = cfg.predict.workers or num_cores()
    with ThreadPoolExecutor(workers) as threads, Decoders(work, workers, limits) as decoders:
        yield _Reader(classifier, cfg, decoders, threads)


def _named(file: tuple[str, Path], found: Pixels | Rejection) -> Pixels | Rejected:
    return Rejected(file[0], found.code, found.reason) if isinstance(found, Rejection) else found


def _geometry(classifier: Classifier, cfg: PredictConfig) -> Geometry:
    """Return the model's geometry, at the size that the views are cut from."""
    geometry = classifier.preprocess.geometry
    return replace(geometry, image_size=resolution(cfg.predict.tta, geometry.image_size))


def _own_transforms(cfg: PredictConfig, geometry: Geometry) -> Callable[[Pixels], Pixels] | None:
    """Return what ``transforms.predict`` does to a decoded image [H,W,C], if anything."""
    if not cfg.transforms.predict:
        return None
    from tracked_cls.transforms.inference import pixel_transform  # torch: prediction without transforms needs none

    return pixel_transform(cfg.transforms.predict, (geometry.channels, geometry.image_size), search=(Path.cwd(),))


def _beside(output: Path) -> Path:
    return output.with_suffix(".rejected.csv")


def _is_left_over(path: Path, output: Path) -> bool:
    """Whether a file was left by a prediction that was killed before its run ended: the same command may write it again."""
    if path != output and not output.exists():
        with path.open("rb") as file:
            return file.readline().strip() == ",".join(REJECTED_COLUMNS).encode()
    return _note(path).is_file() and _note(path).read_text() == durable.sha256_of(path)


def _keep(output: Path) -> None:
    """Make what was written the user's, which no later prediction replaces unasked."""
    for path in (output, _beside(output)):
        _note(path).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    """Return the file that holds the digest of what was written at `path`, until the run has ended."""
    return path.with_name(f".tmp-{path.name}.sha256")


def _write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with _whole(path) as file:
        writer = csv.writer(file)
        writer.writerow(REJECTED_COLUMNS)
        writer.writerows((item.image_id, item.code, item.reason) for item in rejected)


def lines(predictions: Predictions) -> list[str]:
    """Return what a person wants to know at the end of a prediction."""
    counts = ", ".join(f"{label} {count}" for label, count in predictions.count_by_label.most_common(10))
    text = [
        f"predict: {predictions.count_by_label.total():,} images labelled by {predictions.model}: {counts}",
        f"  run:    {predictions.url}",
        f"  labels: {predictions.output}",
    ]
    if predictions.num_unsure:
        text.append(f"  {predictions.num_unsure:,} of them are unsure: a probability below {predictions.unsure_below:g}")
    if predictions.rejected:
        text.append(f"  {len(predictions.rejected)} files could not be read, listed in {_beside(predictions.output)}:")
        text += [f"    {item.image_id}: {item.code}, {item.reason}" for item in predictions.rejected[:_SHOWN]]
    return text
