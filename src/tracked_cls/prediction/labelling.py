"""Labels for images nobody labelled: images in, a table out, every row traceable to the model and its run."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tracked_cls import failpoints, registry
from tracked_cls.config import PredictConfig, workspace
from tracked_cls.console import progress
from tracked_cls.data.ingest import Rejection
from tracked_cls.errors import UserError
from tracked_cls.prediction import output as outputs
from tracked_cls.prediction import sidecar
from tracked_cls.prediction.choice import engine_of
from tracked_cls.prediction.engines import Engine, seen_by
from tracked_cls.prediction.inputs import Source, source_of
from tracked_cls.prediction.listing import Listing, digest_of
from tracked_cls.prediction.parts import EMBEDDINGS, REJECTED, ROWS, Part, part_of, unfinished
from tracked_cls.prediction.reader import Batch, Reader, reading
from tracked_cls.prediction.rows import (
    REJECTED_COLUMNS,
    Format,
    Layout,
    Said,
    csv_lines,
    format_of,
    safe_cell,
    say_of,
)
from tracked_cls.prediction.sheet import Sheet
from tracked_cls.serving.classifier import Classifier
from tracked_cls.tracking import Run, Tracker

_SHOWN = 10  # unreadable files named on the terminal
_REMEMBERED = 1000  # unreadable files held in memory; all of them are in the list beside the output
_HEADER_BYTES = 128  # of an .npy file


@dataclass(frozen=True)
class Rejected:
    """An image that got no label, and why."""

    image_id: str
    code: str
    reason: str


@dataclass(frozen=True)
class Predictions:
    """Where the labels are, and what they look like as a whole. `rejected`: the first 1,000 of `num_rejected`."""

    run_id: str
    url: str
    model: str
    output: Path
    count_by_label: Counter[str]
    num_unsure: int
    unsure_below: float
    rejected: list[Rejected]
    num_rejected: int = 0
    embeddings: tuple[int, int] | None = None


@dataclass
class Told:
    """What was written so far. `seconds` of work, those of interrupted processes too; `listing`: digest of the entries."""

    labels: Counter[str] = field(default_factory=Counter)
    num_unsure: int = 0
    num_rejected: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    width: int = 0  # of the embeddings
    seconds: float = 0.0
    listing: str = ""

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Told:
        """Return what `_as_dict` wrote."""
        rejected = [Rejected(**each) for each in told.get("rejected", [])]
        return cls(**{**told, "labels": Counter(told.get("labels", {})), "rejected": rejected})

    def copy(self) -> Told:
        """Return what is told by now."""
        return replace(self, labels=self.labels.copy(), rejected=self.rejected[:])

    @property
    def num_images(self) -> int:
        """How many images have a label."""
        return self.labels.total()

    @property
    def metrics(self) -> dict[str, float]:
        """What the run is told in numbers."""
        read = self.num_images + self.num_rejected
        return {
            "num_images": self.num_images,
            "num_unsure": self.num_unsure,
            "num_rejected": self.num_rejected,
            "images_per_second": read / max(self.seconds, 1e-9),
        }


def run(cfg: PredictConfig, tracker: Tracker) -> Predictions:
    """Label every image of ``predict.input``; what is no image is listed beside the output, and ends nothing."""
    address = cfg.predict.model or f"models:/{cfg.data.model_name}@{registry.CHAMPION}"
    wanted = str(cfg.predict.input)
    source_of(cfg)  # what does not exist is told before a model is fetched, and so is an output that is there
    if cfg.predict.output is not None:
        outputs.output_of(cfg, Path())
    bundle, exact = registry.open_model(tracker.client, address, cfg.tracking, "predict.model")
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    source = source_of(cfg, clips=classifier.preprocess.frames is not None)
    engine = engine_of(cfg.predict, bundle, classifier)
    decides = sidecar.about(cfg, classifier, Layout.of(cfg.predict, classifier.classes), address=address, exact=exact)
    with tracker.begin("predict", f"predict {Path(wanted).name}") as tracked:
        output = outputs.output_of(cfg, _unnamed(cfg, wanted, tracked.run_id, decides))
        tracked.log_config(cfg)
        meta = classifier.meta
        tracked.set_tags({"model": exact, "model.address": address, "weights.digest": meta["weights_digest"]})
        tracked.set_tags({"train.run": meta["run_id"]} if meta.get("run_id") else {})
        job = Job(cfg, classifier, engine, output, decides, {"id": tracked.run_id, "url": tracked.url})
        told, sheet = job.write(source)
        failpoints.reach("predict.after_rename")
        _log(tracked, told, sheet, output, pictures=cfg.tracking.pictures)
    outputs.keep(output)
    return Predictions(
        run_id=tracked.run_id,
        url=tracked.url,
        model=exact,
        output=output,
        count_by_label=told.labels,
        num_unsure=told.num_unsure,
        unsure_below=cfg.predict.unsure_below,
        rejected=told.rejected,
        num_rejected=told.num_rejected,
        embeddings=(told.num_images, told.width) if cfg.predict.embeddings else None,
    )


def _unnamed(cfg: PredictConfig, source: str, run_id: str, decides: Mapping[str, Any]) -> Path:
    """Return the output of a prediction that names none: what the same command left unfinished, else one of its own."""
    folder, stem = workspace(cfg.tracking) / "predictions", outputs.stem_of(source)
    left = unfinished(folder, stem, sidecar.key_of(decides, cfg, ".csv"))
    return left or folder / f"{stem}-{run_id[:8]}.csv"


# ---- the work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Job:
    """One prediction: what is asked, of which model, and where the answers go. `run` names the run it belongs to."""

    cfg: PredictConfig
    classifier: Classifier
    engine: Engine
    output: Path
    decides: Mapping[str, Any]
    run: Mapping[str, str]

    def write(self, source: Source) -> tuple[Told, Sheet]:
        """Write the labels of a source, and what could not be read beside them."""
        options = self.cfg.predict
        rows = format_of(self.output, Layout.of(options, self.classifier.classes))
        starts = {ROWS: rows.start(), REJECTED: csv_lines([REJECTED_COLUMNS])}
        starts |= {EMBEDDINGS: bytes(_HEADER_BYTES)} if options.embeddings else {}
        key = sidecar.key_of(self.decides, self.cfg, self.output.suffix.lower())
        with reading(self.cfg, self.classifier.preprocess) as reader:  # whose processes start while the input is listed
            with outputs.writing(self.output):
                found = Listing(source, self.output.parent)
            with found as listing:
                if not len(listing):
                    raise UserError(f"predict.input: no images in {options.input!r}")
                with part_of(self.output, key, starts, lambda count: digest_of(islice(listing, count))) as part:
                    outputs.output_of(self.cfg, self.output)  # another process may have finished it before this one held it
                    told, sheet = self._label(listing, source, reader, part, rows)
                    self._require_labels(told, part)
                    outputs.publish(self.output, self._finished(part, rows, told))
        return told, sheet

    def _require_labels(self, told: Told, part: Part) -> None:
        if not told.labels:
            part.forget()
            source, reason = repr(self.cfg.predict.input), told.rejected[0].reason
            if told.num_rejected == 1:
                raise UserError(f"predict.input: the only image of {source} cannot be read: {reason}")
            raise UserError(f"predict.input: none of the {told.num_rejected:,} files of {source} can be read: {reason}")

    def _label(self, listing: Listing, source: Source, reader: Reader, part: Part, rows: Format) -> tuple[Told, Sheet]:
        """Write a row for each entry that is not behind the part already."""
        done, before = part.progress.done, dict(part.progress.told)
        sheet, told = Sheet(before.pop("sheet", None)), Told.from_dict(before)
        entries, sha = iter(listing), hashlib.sha256()
        for entry in islice(entries, done):
            sha.update(entry.line)
        remaining = progress(entries, len(listing) - done, "predicting", unit="image")
        started = time.monotonic() - told.seconds
        with source.opened() as fetch:
            for batch in reader.batches(remaining, fetch):
                self._take(batch, part, rows, told, sheet)
                for entry in batch.entries:
                    sha.update(entry.line)
                done, told.seconds, told.listing = done + len(batch.entries), time.monotonic() - started, sha.hexdigest()
                part.commit(done, told.listing, partial(_as_dict, told.copy(), sheet.copy()))
        return told, sheet

    def _take(self, batch: Batch, part: Part, rows: Format, told: Told, sheet: Sheet) -> None:
        """Score a batch and write its rows."""
        pairs = list(zip(batch.entries, batch.found, strict=True))
        rejected = [Rejected(entry.image_id, *found) for entry, found in pairs if isinstance(found, Rejection)]
        part.write(
            REJECTED, csv_lines([safe_cell(cell) for cell in (each.image_id, each.code, each.reason)] for each in rejected)
        )
        told.num_rejected += len(rejected)
        told.rejected += rejected[: _REMEMBERED - len(told.rejected)]
        good = [(entry.image_id, found) for entry, found in pairs if not isinstance(found, Rejection)]
        if not good:
            return
        failpoints.reach("predict.mid_rows")
        pixels = [found.pixels for _, found in good]
        scored = self.engine(seen_by(self.classifier, np.stack(pixels), self.cfg.predict.tta))
        names, digests = [name for name, _ in good], [found.sha256 for _, found in good]
        said = say_of(self.classifier, self.classifier.activate(scored.logits), names, digests, self.cfg.predict.unsure_below)
        part.write(ROWS, rows.encode(rows.layout.columns(said)))
        if scored.features is not None:
            part.write(EMBEDDINGS, np.ascontiguousarray(scored.features, "<f4").tobytes())
            told.width = scored.features.shape[1]
        self._count(said, pixels, told, sheet)

    def _count(self, said: Said, pixels: list[Any], told: Told, sheet: Sheet) -> None:
        told.labels.update(said.labels)
        told.num_unsure += int(said.unsure.sum())
        if self.cfg.tracking.pictures:
            sheet.add(said, pixels)

    def _finished(self, part: Part, rows: Format, told: Told) -> dict[Path, Path]:
        """Return name -> complete file that is to have it."""
        written = part.close()
        whole = {self.output: rows.finish(written[ROWS], sidecar.in_parquet(self.decides))}
        if told.num_rejected:
            whole[outputs.rejected_of(self.output)] = written[REJECTED]
        if EMBEDDINGS in written:
            _complete(written[EMBEDDINGS], (told.num_images, told.width))
            whole[outputs.embeddings_of(self.output)] = written[EMBEDDINGS]
        about = part.folder / "meta.json"
        about.write_bytes(self._about(whole[self.output], told))
        whole[sidecar.beside(self.output)] = about
        part.forget()
        return whole

    def _about(self, rows: Path, told: Told) -> bytes:
        counts = {"rows": told.num_images, "rejected": told.num_rejected, "unsure": told.num_unsure}
        embeddings = outputs.embeddings_of(self.output).name
        shape = [told.num_images, told.width]
        files = {"embeddings": {"file": embeddings, "shape": shape, "dtype": "float32"}} if told.width else {}
        source = str(self.cfg.predict.input)
        return sidecar.whole(
            self.decides, output=self.output, rows=rows, counts=counts, source=source, listing=told.listing, run=self.run,
            files=files,
        )  # fmt: skip


def _as_dict(told: Told, sheet: Sheet) -> dict[str, Any]:
    plain = {"labels": dict(told.labels), "rejected": [asdict(each) for each in told.rejected]}
    return {**vars(told), **plain, "sheet": sheet.told}


def _complete(path: Path, shape: tuple[int, int]) -> None:
    """Write the header of an .npy file, whose shape is known at the end only, into the room that was left for it."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    length = _HEADER_BYTES - 10
    with path.open("r+b") as file:
        file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n")


# ---- what is logged and said -----------------------------------------------------------------------------------------


def _log(tracked: Run, told: Told, sheet: Sheet, output: Path, *, pictures: bool) -> None:
    tracked.log_metrics(told.metrics)
    for path in outputs.files_of(output):
        if path.exists() and path != outputs.embeddings_of(output):  # which may be large
            tracked.log_file(path, "tables")
    with TemporaryDirectory() as scratch:
        counts = Path(scratch) / "tables" / "label_counts.csv"
        counts.parent.mkdir()
        lines = [
            [safe_cell(label), str(count)] for label, count in sorted(told.labels.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
        counts.write_bytes(csv_lines([["label", "count"], *lines]))
        if pictures:
            from tracked_cls.plots.answers import contact_sheet  # matplotlib, for the picture only

            (Path(scratch) / "plots").mkdir()
            contact_sheet(*sheet.chosen(), Path(scratch) / "plots" / "contact_sheet.png")
        tracked.log_folder(Path(scratch))


def lines(predictions: Predictions) -> list[str]:
    """Return what a person wants to know at the end of a prediction."""
    counts = ", ".join(f"{label}: {count:,}" for label, count in predictions.count_by_label.most_common(10))
    text = [
        f"predict: {predictions.count_by_label.total():,} images labelled by {predictions.model}: {counts}",
        f"  run:    {predictions.url}",
        f"  labels: {predictions.output}",
        f"  about:  {sidecar.beside(predictions.output)}",
    ]
    if predictions.embeddings is not None:
        num, width = predictions.embeddings
        text.append(f"  embeddings: {outputs.embeddings_of(predictions.output)}, float32 [{num}, {width}]")
    if predictions.num_unsure:
        text.append(f"  {predictions.num_unsure:,} unsure: a probability below {predictions.unsure_below:g}")
    if predictions.num_rejected:
        listed = outputs.rejected_of(predictions.output)
        text.append(f"  {predictions.num_rejected:,} could not be read, listed in {listed}:")
        text += [f"    {item.image_id}: {item.code}, {item.reason}" for item in predictions.rejected[:_SHOWN]]
    return text
