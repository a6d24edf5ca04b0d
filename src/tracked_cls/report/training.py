"""The page of one training or evaluation: how good the model is, how sure one can be of that, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracked_cls.errors import UserError
from tracked_cls.report import origin
from tracked_cls.report.artifacts import (
    Row,
    RunFacts,
    read_estimates,
    read_mapping,
    read_pictures,
    read_rows,
    scored_split,
    tried,
)
from tracked_cls.report.numbers import (
    METRIC_WORDS,
    decimals,
    has_interval,
    interval,
    interval_in_percent,
    percent,
    short,
)
from tracked_cls.report.page import NO_VALUE, Picture, Section, Table, Tile, captioned, render
from tracked_cls.statistics.intervals import Estimate

_MOST_CLASSES, _MOST_CONFUSED, _MOST_SLICES = 60, 10, 60
_CALIBRATION = ("ece", "brier", "loss")
_CLASS_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "support": "images",
}
_SLICE_COLUMNS = ("column", "value", "count", "accuracy", "accuracy_low", "accuracy_high")
_COSTS = {
    "num_parameters": "Parameters",
    "flops": "Floating-point operations of one image",
    "latency_ms": "Latency of one image, ms",
    "images_per_second": "Images per second in training, last epoch",
    "test_images_per_second": "Images per second in evaluation",
}
_GALLERIES = {
    "mistakes": ("Most confident mistakes", "Images that the model labels wrong and is surest of, each beside its Grad-CAM"),
    "unsure": ("Least certain", "Images for which the model is least sure of its answer"),
    "right": ("Right", "Examples of images that the model labels right"),
    "embedding": ("All images in a plane", "Each image a point, near those that the network sees alike, coloured by its class"),
}
_NETWORK = {
    "augmented.png": ("Training images", "Training images, plain in the first column, then as the first epochs see them"),
    "network.png": ("The network", "Parameters and output sizes of the network, part by part"),
    "filters.png": ("First filters", "The filters of the first convolution"),
    "feature_maps.png": ("Feature maps", "One image, and what some layers of the network make of it"),
    "profile.png": ("Where the time goes", "Shares of a training step's time, and the slowest operations"),
    "fold_curves.png": ("Folds", "Validation loss and accuracy of each fold by epoch, and their mean"),
    "suspects.png": ("Suspect labels", "Images whose label the models doubt most"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """A run, the split that it was scored on and the numbers of that; empty where it was scored on none."""

    facts: RunFacts
    split: str
    estimates: Mapping[str, Estimate]

    def rows(self, name: str, columns: Sequence[str] = ()) -> list[Row]:
        """Return the rows of a table of the split; none where there is no such file."""
        path = self.table(name)
        return read_rows(path, columns) if path.is_file() else []

    def table(self, name: str) -> Path:
        """Return where a table of the split would be."""
        return self.facts.folder / "tables" / f"{self.split}_{name}"

    def pictures(self, words: Mapping[str, tuple[str, str]]) -> list[Picture]:
        """Return the pictures that are there: file name -> (title, what it shows, if the run does not say it better)."""
        own = self._descriptions()
        told = {name: (title, own.get(name, alt)) for name, (title, alt) in words.items()}
        return captioned(read_pictures(self.facts.folder / "plots", list(told)), told)

    def _descriptions(self) -> dict[str, str]:
        path = self.table("pictures.json")
        return {name: str(text) for name, text in read_mapping(path).items()} if path.is_file() else {}


def page(facts: RunFacts) -> str:
    """Return the page of a run of ``train``, ``evaluate``, a trial or a fold, from its plain facts and its artifacts.

    What is not there is left out; of what cannot be read the page says why.
    """
    split = scored_split(facts) or ""
    path = facts.folder / "tables" / f"{split}_metrics.json"
    troubles: list[str] = []
    run = Scored(facts, split, tried(lambda: read_estimates(path), dict[str, Estimate], troubles) if split else {})
    sections = [tried(lambda build=build: build(run), Section, troubles) for build in _PARTS]  # type: ignore[misc]
    sections += [tried(lambda build=build: build(facts), Section, troubles) for build in origin.PARTS]  # type: ignore[misc]
    return render(
        facts.name,
        kind=f"{facts.kind} report",
        lead=origin.lead(facts, facts.kind, facts.params.get("model", "")),
        summary=[*tried(lambda: _summary(run), list[str], troubles), *dict.fromkeys(troubles)],
        tiles=_tiles(run),
        sections=sections,
        footer=f"Run {facts.run_id}. Pictures and tables are among its artifacts, too.",
    )


# ---- the top ---------------------------------------------------------------------------------------------------------


def _summary(run: Scored) -> list[str]:
    """Return what a reader in a hurry wants to know: how good it is, how sure that is, what became of it."""
    facts, text = run.facts, []
    if "accuracy" in run.estimates:
        text.append(_on_accuracy(run))
    elif "val_accuracy_best" in facts.metrics:
        best = percent(facts.metrics["val_accuracy_best"])
        text.append(
            f"At the best epoch {best} of the validation images are labelled right; the test images were not looked at."
        )
    return [*text, *origin.registry_sentences(facts), *facts.notes]


def _on_accuracy(run: Scored) -> str:
    accuracy, num_images = run.estimates["accuracy"], sum(sum(_counts(row)) for row in run.rows("confusion.csv"))
    images = f"{num_images:,} {run.split} images" if num_images else f"the {run.split} images"
    if not has_interval(accuracy):
        return f"Of {images}, {percent(accuracy.value)} are labelled right."
    between = f"{100 * accuracy.low:.2f} and {100 * accuracy.high:.2f} %"
    right = f"Of {images}, {percent(accuracy.value)} are labelled right."
    return f"{right} For all images like these it is between {between} (95 % confidence)."


def _tiles(run: Scored) -> list[Tile]:
    found, metrics = run.estimates, run.facts.metrics
    shares = {
        "accuracy": f"{run.split} accuracy",
        "top5_accuracy": "top-5 accuracy",
        "label_accuracy": "accuracy of single labels",
    }
    numbers = {"mean_average_precision": "mAP", "f1_macro": "F1, mean of classes", "ece_calibrated": "calibration error"}
    tiles = [
        Tile(shares[name], percent(found[name].value), interval_in_percent(found[name])) for name in shares if name in found
    ]
    tiles += [Tile(numbers[name], short(found[name].value), _in_words(found[name])) for name in numbers if name in found]
    if "val_accuracy_best" in metrics:
        note = f"epoch {metrics['best_epoch']:.0f} of {run.facts.params.get('epochs', '?')}" if "best_epoch" in metrics else ""
        tiles.append(Tile("validation accuracy", percent(metrics["val_accuracy_best"]), note))
    return tiles


def _in_words(estimate: Estimate) -> str:
    return f"95 % CI {interval(estimate)}" if has_interval(estimate) else ""


# ---- how it learned, and what came of it -----------------------------------------------------------------------------


def _learning(run: Scored) -> Section:
    alt = "Lines of loss and accuracy on training and validation images and of the learning rate, by epoch"
    return Section("How it learned", pictures=run.pictures({"curves.png": ("Loss, accuracy and learning rate", alt)}))


def _results(run: Scored) -> Section:
    rows = [
        [METRIC_WORDS.get(name, name), short(estimate.value), interval(estimate)]
        for name, estimate in run.estimates.items()
        if not name.endswith("_calibrated")
    ]
    tables = [Table(f"All numbers on the {run.split} images", ["number", "value", "95 % interval"], rows)] if rows else []
    words = {
        f"{run.split}_confusion.png": ("Confusion matrix", "Counts of images by true class, in rows, and predicted class"),
        f"{run.split}_roc.png": ("ROC and precision-recall", "True over false positive rate, and precision over recall"),
    }
    confusion = run.rows("confusion.csv")
    confused = _confused(confusion)
    text = ["Not one image was taken for another class."] if confusion and not confused.rows else []
    return Section(
        "What it gets right", text=text, tables=[*tables, *([confused] if confused.rows else [])], pictures=run.pictures(words)
    )


def _confused(confusion: Sequence[Row]) -> Table:
    """Return the pairs of classes that are taken for each other most often."""
    pairs = []
    for row in confusion:
        (_, name), *cells = row.items()
        counts = dict(zip((column for column, _ in cells), _counts(row), strict=True))
        total = sum(counts.values())
        pairs += [(count, name, other, count / total) for other, count in counts.items() if other != name and count > 0]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [[name, other, f"{count:,}", percent(share, 1)] for count, name, other, share in pairs[:_MOST_CONFUSED]]
    return Table("Most often mistaken", ["true class", "taken for", "images", "of the true class"], rows, texts=2)


def _counts(row: Row) -> list[int]:
    """Return the counts of a row of a confusion matrix, whose first cell is the class."""
    try:
        return [int(value) for value in list(row.values())[1:]]
    except ValueError:
        raise UserError("confusion.csv: counts must be whole numbers") from None


def _classes(run: Scored) -> Section:
    rows = run.rows("per_class.csv", ["class"])
    columns = {name: words for name, words in _CLASS_COLUMNS.items() if rows and name in rows[0]}
    shown = rows if len(rows) <= _MOST_CLASSES else sorted(rows, key=_f1)[:_MOST_CLASSES]
    cells = [[row["class"], *(_with_bounds(row, name) for name in columns)] for row in shown]
    where = f"tables/{run.split}_per_class.csv"
    note = f"The {len(shown)} classes of lowest F1 of {len(rows):,}; all are in {where}." if len(shown) < len(rows) else ""
    caption = "Each class" + (", with 95 % intervals" if any("recall_low" in row for row in rows[:1]) else "")
    words = {f"{run.split}_per_class.png": ("F1 of each class", "F1 of each class as a point with its interval")}
    tables = [Table(caption, ["class", *columns.values()], cells, note)] if rows else []
    return Section("Class by class", tables=tables, pictures=run.pictures(words))


def _f1(row: Row) -> float:
    """Return what classes are ordered by; one that has no images comes last."""
    try:
        value = float(row.get("f1", "nan"))
    except ValueError:
        return math.inf
    return math.inf if math.isnan(value) else value


def _with_bounds(row: Row, name: str) -> str:
    """Return a cell with its bounds, where the table has them: ``0.972 (0.903 to 0.993)``."""
    if name == "support":
        return short(row[name])
    value, low, high = (decimals(row.get(key, "")) for key in (name, f"{name}_low", f"{name}_high"))
    return value if NO_VALUE in (low, high) else f"{value} ({low} to {high})"


def _calibration(run: Scored) -> Section:
    found = run.estimates
    known = [name for name in _CALIBRATION if f"{name}_calibrated" in found and name in found]
    if all(found[name].value == found[f"{name}_calibrated"].value for name in known):
        known = []  # never fitted
    rows = [[METRIC_WORDS[name], *_cells(found[name]), *_cells(found[f"{name}_calibrated"])] for name in known]
    header = ["number", "as it is", "95 % interval", "temperature-scaled", "95 % interval"]
    text = []
    if rows:
        text.append(
            "Of the answers that a well calibrated model is 90 % sure of, 90 % are right. Lower is better in the table."
        )
    if "temperature" in run.facts.metrics:
        temperature = run.facts.metrics["temperature"]
        sure = "too sure" if temperature > 1 else "not sure enough"
        text.append(
            f"The temperature is {temperature:.3f}, fitted on the validation images alone: the model was {sure} of itself."
        )
    alt = "Share of right answers by the model's confidence; the diagonal would be perfect calibration"
    pictures = run.pictures({f"{run.split}_reliability.png": ("Confidence, and what it is worth", alt)})
    return Section(
        "How sure it is", text=text, tables=[Table("Before and after", header, rows)] if rows else [], pictures=pictures
    )


def _cells(estimate: Estimate) -> tuple[str, str]:
    return short(estimate.value), interval(estimate)


def _slices(run: Scored) -> Section:
    rows = run.rows("slices.csv", _SLICE_COLUMNS)
    shown = sorted(rows, key=lambda row: row["column"])[:_MOST_SLICES]  # stable: values stay in their order
    cells = [[row["column"], row["value"] or "(empty)", short(row["count"]), _with_bounds(row, "accuracy")] for row in shown]
    where = f"tables/{run.split}_slices.csv"
    note = f"The first {len(shown)} of {len(rows):,} slices; all are in {where}." if len(rows) > len(shown) else ""
    words = {f"{run.split}_slices.png": ("Accuracy by slice", "Accuracy with its interval for each value of each column")}
    header = ["column of the data", "value", "images", "accuracy (95 % interval)"]
    return Section(
        "Slices of the data",
        tables=[Table("Accuracy by slice", header, cells, note, texts=2)] if rows else [],
        pictures=run.pictures(words),
    )


def _galleries(run: Scored) -> Section:
    return Section(
        "Images to look at", pictures=run.pictures({f"{run.split}_{name}.png": words for name, words in _GALLERIES.items()})
    )


def _network(run: Scored) -> Section:
    metrics = run.facts.metrics
    costs = [(label, _cost(metrics[name])) for name, label in _COSTS.items() if name in metrics]
    return Section("The network and what it saw", facts=costs, pictures=run.pictures(_NETWORK))


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_PARTS: Sequence[Callable[[Scored], Section]] = (*(_learning, _results, _classes, _calibration, _slices, _galleries, _network),)
