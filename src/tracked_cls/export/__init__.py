"""`export` as a use case: a model as files that need neither MLflow nor this project, each checked against it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tracked_cls import assessment, registry
from tracked_cls.config import ExportConfig
from tracked_cls.errors import UserError
from tracked_cls.export import agreement, evidence, formats
from tracked_cls.export import card as model_card
from tracked_cls.export.agreement import Comparison
from tracked_cls.export.place import CARD, output_of, staged
from tracked_cls.serving.classifier import read_meta
from tracked_cls.serving.packaging import Bundle, local_bundle
from tracked_cls.tracking import Tracker

__all__ = ["Exported", "lines", "run"]


@dataclass(frozen=True)
class Exported:
    """Where the files are, how large each is, and how far each is from the model at most."""

    run_id: str
    url: str
    model: str
    folder: Path
    size_by_file: dict[str, int]
    comparison: Comparison

    @property
    def next_command(self) -> str | None:
        """What labels images with the files, as words for a shell; None without the ONNX file, which that takes."""
        if "model.onnx" not in self.size_by_file:
            return None
        return f"mlflow run . -e predict --env-manager local -P model={shlex.quote(str(self.folder))} -P input=SOME/IMAGES"


def run(cfg: ExportConfig, tracker: Tracker) -> Exported:
    """Write a model into a folder, all or nothing, log how well it agrees, and its card, to a run of kind export."""
    address = cfg.export.model or f"models:/{cfg.data.model_name}@{registry.CHAMPION}"
    bundle, exact = _resolved(tracker, address)
    meta = read_meta(bundle.meta)
    output = output_of(cfg, exact, str(meta["run_id"]))
    with tracker.begin("export", f"export {exact.removeprefix('models:/')}") as tracked:
        tracked.log_config(cfg)
        tracked.set_tags({"model": exact, "model.address": address, "weights.digest": meta["weights_digest"]})
        with TemporaryDirectory() as scratch, staged(output, overwrite=cfg.export.overwrite) as folder:
            known = evidence.gather(tracker, exact, meta, Path(scratch))
            comparison = _write(cfg, bundle, meta, known, folder)
            text = model_card.render(exact, meta, known, comparison, _sizes(folder))
            (folder / CARD).write_text(text, encoding="utf-8")
            tracked.log_metrics(_metrics(comparison))
            tracked.log_text(text, CARD)
        tracked.describe(f"`{exact}` as {', '.join(cfg.export.formats)} in `{output}`; *Artifacts*, {CARD}, describes it.")
    if "onnx" in cfg.export.formats:
        local_bundle(output)  # what predict and serve would say of it
    return Exported(tracked.run_id, tracked.url, exact, output, _sizes(output), comparison)


def _resolved(tracker: Tracker, address: str) -> tuple[Bundle, str]:
    """Return the files of a model, and its exact address; of a run that kept weights alone it is said why."""
    try:
        return registry.resolve(tracker.client, address)
    except UserError:
        reason = evidence.weights_only(tracker, address)
        if reason is None:
            raise
        raise UserError(f"{address}: only the weights of this run were kept, as an artifact: {reason}") from None


def _write(cfg: ExportConfig, bundle: Bundle, meta: Any, known: evidence.Evidence, folder: Path) -> Comparison:
    """Write the formats into a folder; raises `UserError` where one answers otherwise than the model."""
    network, _ = assessment.load_network(bundle)
    network = agreement.at_rest(network)
    formats.write(bundle, network, meta, cfg.export.formats, folder)
    comparison = agreement.compare(bundle, network, cfg.export.formats, folder, more=known.prepared)
    comparison.require()
    return comparison


def _metrics(comparison: Comparison) -> dict[str, float]:
    found = {f"{one.format}_max_difference": one.probability for one in comparison.formats}
    logits = {f"{one.format}_max_logit_difference": one.logits for one in comparison.formats}
    return {**found, **logits, "num_images": comparison.num_images}


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def lines(exported: Exported) -> list[str]:
    """Return what a person wants to know: where the files are, that they agree, and what to do with them."""
    comparison = exported.comparison
    table = [("format", "logits", "probability", "labels")]
    table += [(one.format, f"{one.logits:.1e}", f"{one.probability:.1e}", str(one.relabelled)) for one in comparison.formats]
    return [
        f"export: {exported.model} in {exported.folder}",
        *(f"  {name:18} {size:>12,} bytes" for name, size in exported.size_by_file.items()),
        f"  largest difference from the network on {comparison.num_images:,} real images, batches of 1, 2, 7 and 64:",
        *(f"    {name:12} {logits:>10} {probability:>12} {labels:>7}" for name, logits, probability, labels in table),
        f"  run:   {exported.url}",
        "  load it without this project: docs/export.md",
    ]
