"""What models say about images they never saw: as a table, and the labels this puts in doubt as table, page and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracked_cls import plots
from tracked_cls.assessment import write_csv
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decode import Pixels
from tracked_cls.data.manifest import Manifest
from tracked_cls.evaluation import Scores
from tracked_cls.report.page import MAX_BYTES, open_template, thumbnail_uri
from tracked_cls.serving.classifier import softmax
from tracked_cls.suspects import Suspects, find_suspects, margins

Indices = npt.NDArray[np.int64]

_LISTED_SHARE, _FEWEST_LISTED = 0.05, 50  # of all images, in suspects.csv
_IN_PAGE, _IN_PICTURE = 400, 24
_SIDE = 96  # pixels of a thumbnail


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Scores of N images, each by a model that never saw it; `indices` [N] in the manifest, ascending, `folds` [N]."""

    indices: Indices
    folds: Indices
    scores: Scores


@dataclass(frozen=True)
class Suspect:
    """One label in doubt: `rank` from 1, class names, probabilities in [0, 1], `index` its position in the manifest.

    `score` is that of `suspects.Suspects`; `is_error`: whether confident learning counts the label as wrong.
    """

    rank: int
    path: str
    sample_id: str
    label: str
    rival: str
    label_probability: float
    rival_probability: float
    score: float
    is_error: bool
    fold: int
    index: int

    @property
    def row(self) -> list[object]:
        """The values of a line of ``suspects.csv``."""
        numbers = [f"{value:.6f}" for value in (self.label_probability, self.rival_probability, self.score)]
        verdict = str(self.is_error).lower()
        return [self.rank, self.path, self.sample_id, self.label, self.rival, *numbers, verdict, self.fold]


_COLUMNS = ("rank", "path", "id", "label", "rival", "label_probability", "rival_probability", "score", "looks_wrong", "fold")


# ---- every image -----------------------------------------------------------------------------------------------------


def write_predictions(judged: OutOfFold, manifest: Manifest, separator: str, path: Path) -> None:
    """Write a CSV with a line per image; where images have several labels these are joined, without a probability."""
    scores, classes = judged.scores, manifest.classes
    columns = {
        "path": [manifest.paths[index] for index in judged.indices.tolist()],
        "id": [manifest.ids[index] for index in judged.indices.tolist()],
        "label": _names(scores.labels, classes, separator),
        "predicted": _names(scores.predictions, classes, separator),
    }
    if not manifest.multi_label:
        probabilities = softmax(scores.logits)
        own = probabilities[np.arange(len(scores.labels)), scores.labels]
        columns["probability"] = [f"{value:.6f}" for value in own]
        columns["margin"] = [f"{value:.6f}" for value in margins(probabilities, scores.labels)]
    columns["fold"] = [str(fold) for fold in judged.folds]
    write_csv(path, list(columns), list(zip(*columns.values(), strict=True)))


def _names(labels: npt.NDArray[np.int64], classes: Sequence[str], separator: str) -> list[str]:
    """Return the class name of each label [N], or the joined names of each row of marks [N,K]."""
    if labels.ndim == 1:
        return [classes[label] for label in labels.tolist()]
    return [separator.join(classes[label] for label in np.flatnonzero(row).tolist()) for row in labels]


# ---- labels in doubt -------------------------------------------------------------------------------------------------


def write_suspects(judged: OutOfFold, prepared: Prepared, folder: Path) -> int:
    """Write the labels most in doubt below a folder; return how many of all look wrong."""
    found = find_suspects(softmax(judged.scores.logits), judged.scores.labels)
    num_errors = int(found.are_errors.sum())
    suspects = _suspects(found, judged, prepared.manifest)
    write_csv(folder / "tables" / "suspects.csv", _COLUMNS, [suspect.row for suspect in suspects])
    shown = suspects[:_IN_PAGE]
    pictures = [_still(image) for image in prepared.sized([suspect.index for suspect in shown])]
    page = render(shown, pictures, name=prepared.manifest.name, num_images=len(found.order), num_errors=num_errors)
    (folder / "suspects.html").write_text(page, encoding="utf-8")
    titles = [
        f"label {suspect.label}\nrival {suspect.rival} ({suspect.rival_probability:.2f})" for suspect in shown[:_IN_PICTURE]
    ]
    plots.suspect_grid(pictures[:_IN_PICTURE], titles, folder / "plots" / "suspects.png")
    return num_errors


def _suspects(found: Suspects, judged: OutOfFold, manifest: Manifest) -> list[Suspect]:
    """Return the most suspect labels: a share of all, or as many as look wrong if these are more."""
    labels, probabilities = judged.scores.labels, softmax(judged.scores.logits)
    count = max(round(_LISTED_SHARE * len(labels)), _FEWEST_LISTED, int(found.are_errors.sum()))
    return [
        Suspect(
            rank=rank,
            path=manifest.paths[judged.indices[row]],
            sample_id=manifest.ids[judged.indices[row]],
            label=manifest.classes[labels[row]],
            rival=manifest.classes[found.rivals[row]],
            label_probability=float(probabilities[row, labels[row]]),
            rival_probability=float(probabilities[row, found.rivals[row]]),
            score=float(found.scores[row]),
            is_error=bool(found.are_errors[row]),
            fold=int(judged.folds[row]),
            index=int(judged.indices[row]),
        )
        for rank, row in enumerate(found.order[:count].tolist(), 1)
    ]


def render(suspects: Sequence[Suspect], pictures: Sequence[Pixels], *, name: str, num_images: int, num_errors: int) -> str:
    """Return a self-contained page below 3 MB: no scripts, nothing from elsewhere, names escaped.

    `pictures` are the suspects' images, uint8 [H,W,C]. The least suspect are left out where the page would be too large.
    """
    template = open_template("suspects.html")
    facts = {"name": name, "num_images": num_images, "num_errors": num_errors}
    shown = [(suspect, thumbnail_uri(picture, _SIDE)) for suspect, picture in zip(suspects, pictures, strict=True)]
    while len((page := template.render(suspects=shown, **facts)).encode()) > MAX_BYTES:
        shown = shown[: len(shown) * 3 // 4]
    return page


def _still(pixels: Pixels) -> Pixels:
    """Return uint8 [H,W,C]: an image, or the middle frame of a clip."""
    return pixels if pixels.ndim == 3 else pixels[len(pixels) // 2]
