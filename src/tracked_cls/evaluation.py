"""The one loop that scores a set of images, and the numbers that follow from its logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls import freezing
from tracked_cls.compute import is_out_of_memory, release_memory
from tracked_cls.data.loaders import Batch, Split
from tracked_cls.data.names import natural_key
from tracked_cls.distributed import Ranks
from tracked_cls.errors import UserError
from tracked_cls.scores import Floats, Marks, MultiLabelScores, Scores
from tracked_cls.statistics.calibration import NUM_BINS, Reliability, bins_of, calibration_error, reliability
from tracked_cls.statistics.counts import Counts
from tracked_cls.statistics.intervals import Estimate, bootstrapped, resampled_sums, share
from tracked_cls.statistics.ranking import Ranking, rank

__all__ = ["TOP", "EvalReport", "MultiLabelScores", "Scores", "Slice", "refresh_batchnorm", "report", "score", "validate"]

TOP = 5


@dataclass(frozen=True, eq=False)
class Slice:
    """The images with one value of a column of the manifest, and how many of them are predicted right."""

    column: str
    value: str
    count: int
    accuracy: Estimate


@dataclass(frozen=True, eq=False)
class EvalReport:
    """Everything one evaluation says.

    `estimates`: every number by its name, with its interval, nan where it is not defined. `per_class` holds one row per class:
    class, precision, recall, f1, support, roc_auc, average_precision, and ``<name>_low`` and ``<name>_high`` of each but
    support. `confusion` is [true, predicted] counts, None where images have several labels. What is `calibrated` is so by
    `temperature`, 1 where none was fitted. `notes` are sentences about what is not defined, and why.
    """

    classes: tuple[str, ...]
    scores: Scores
    temperature: float
    estimates: dict[str, Estimate]
    per_class: list[dict[str, str | float | int]]
    confusion: npt.NDArray[np.int64] | None
    reliability: Reliability
    reliability_calibrated: Reliability
    slices: list[Slice]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers that MLflow gets: those that are defined, and the bounds of the accuracy."""
        accuracy = self.estimates["accuracy"]
        values = {name: estimate.value for name, estimate in self.estimates.items()}
        values |= {"accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
        return {name: value for name, value in values.items() if np.isfinite(value)}


def score(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Run a network in evaluation mode; its own mode is restored afterwards. Several views of an image: mean of logits."""
    was_training, was_tf32 = model.training, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa: no exported network would agree within 1e-4
    model.eval()
    try:
        with torch.inference_mode():
            pairs = [(_logits(model, batch), batch.targets.cpu()) for batch in batches]
    finally:
        torch.backends.cudnn.allow_tf32 = was_tf32
        model.train(was_training)
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return MultiLabelScores(logits, labels) if labels.ndim == 2 else Scores(logits, labels)


def validate(model: nn.Module, split: Split, batch_size: int, ranks: Ranks) -> tuple[float, float]:
    """Return the mean loss and the accuracy over a split, of which several processes score a part each.

    They are sums over all images, divided by their number: the same as of one process, up to the rounding of the sums.
    """
    ranks.copy_buffers(model)
    part = split.shared(ranks)
    scores = score(model, part.eval_batches(batch_size)) if len(part) else None
    if scores is not None and not ranks.are_several:
        return scores.loss, scores.accuracy
    sums = (0.0, 0.0, 0.0) if scores is None else (scores.loss * len(part), float(scores.right.sum()), float(len(part)))
    loss, right, count = ranks.total(sums)
    return loss / count, right / count


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits = _in_halves(model, batch.images).float().cpu()
    return logits if batch.views == 1 else logits.reshape(-1, batch.views, logits.shape[1]).mean(dim=1)


def _in_halves(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits, of half the images at a time where memory does not suffice for all."""
    try:
        logits: Tensor = model(images)
        return logits
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(images) == 1:
            raise
    release_memory(images.device)
    return torch.cat([_in_halves(model, half) for half in torch.tensor_split(images, 2)])


def refresh_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Take BatchNorm's statistics anew, as the plain mean over some training images.

    The running averages lag behind weights that still move fast, which leaves short trainings near chance in evaluation.
    Training itself never reads them. Frozen layers keep theirs.
    Source: Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, section 3.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and not freezing.is_held(module)
    ]
    if not norms:
        return
    momenta, modes = [norm.momentum for norm in norms], [(module, module.training) for module in model.modules()]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # means: cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode


# ---- the numbers -----------------------------------------------------------------------------------------------------


def report(
    scores: Scores,
    classes: tuple[str, ...],
    temperature: float = 1.0,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> EvalReport:
    """Compute the numbers of an evaluation, with intervals; `columns` hold a value of each image, and make slices of them.

    A class that no image has is nan in everything and left out of means over classes. Raises `UserError` where there are no
    images, and where logits are not finite.
    """
    _require_sound(scores, classes)
    tempered = scores.tempered(temperature)
    counts, rankings = scores.counts, rank(scores.probabilities, scores.marks)
    before, after = (reliability(kind.judged.confidence, kind.judged.right) for kind in (scores, tempered))
    samples = _Resamples.draw(scores, tempered)
    estimates = {
        **_shares(scores),
        **_averages(scores, counts, samples),
        **_of_rankings(scores, rankings),
        **_calibration(scores, before, samples.plain, ""),
        **_calibration(tempered, after, samples.tempered, "_calibrated"),
    }
    return EvalReport(
        classes=classes,
        scores=scores,
        temperature=temperature,
        estimates=estimates,
        per_class=_rows(classes, counts, rankings),
        confusion=scores.confusion(),
        reliability=before,
        reliability_calibrated=after,
        slices=[found for column, values in (columns or {}).items() for found in _slices(column, values, scores.right)],
        notes=_notes(classes, counts),
    )


def _require_sound(scores: Scores, classes: Sequence[str]) -> None:
    if len(scores.labels) == 0:
        raise UserError("there are no images to evaluate")
    require_finite(scores, "the model")
    assert scores.logits.shape[1] == len(classes)


def require_finite(scores: Scores, model: str) -> None:
    """Raise `UserError`, which names the model, where its logits are not all finite."""
    if not np.isfinite(scores.logits).all():
        bad = int((~np.isfinite(scores.logits)).any(axis=1).sum())
        raise UserError(f"{model} gives no finite numbers for {bad} of {len(scores.labels)} images")


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over R resamples of the images: means of loss and Brier score [R], and the sums of right - confidence by bin [R,M]."""

    loss: Floats
    brier: Floats
    gaps: Floats


@dataclass(frozen=True, eq=False)
class _Resamples:
    """The same R resamples of N images for every number that is bootstrapped."""

    counts: Counts
    agreement: Floats
    plain: _Sums
    tempered: _Sums

    @classmethod
    def draw(cls, scores: Scores, tempered: Scores) -> _Resamples:
        from scipy import sparse  # 0.4 s that training does without

        kinds = (scores, tempered)
        single: list[Any] = [part for kind in kinds for part in (kind.losses, kind.briers)]
        single.append(scores.agreement if isinstance(scores, MultiLabelScores) else scores.right)
        tables = [scores.marks & scores.said, scores.said, scores.marks]
        gaps = [_gaps(kind) for kind in kinds]
        columns = sparse.hstack([*map(sparse.csr_array, tables), *gaps, sparse.csr_array(np.stack(single, axis=1))])
        sums = resampled_sums(columns)
        num_classes, count = scores.logits.shape[1], len(scores.labels)
        ends = np.cumsum([num_classes] * 3 + [NUM_BINS] * 2)
        *by_class, plain_gaps, tempered_gaps, means = np.split(sums, ends, axis=1)
        loss, brier, cool_loss, cool_brier, agreement = (means / count).T
        return cls(Counts(*by_class), agreement, _Sums(loss, brier, plain_gaps), _Sums(cool_loss, cool_brier, tempered_gaps))


def _gaps(scores: Scores) -> Any:
    """Return a sparse [N,M]: right - confidence of each image, in the bin of its confidence."""
    from scipy import sparse  # see above

    rows, confidence, right = scores.judged
    return sparse.coo_array((right - confidence, (rows, bins_of(confidence))), shape=(len(scores.labels), NUM_BINS))


def _shares(scores: Scores) -> dict[str, Estimate]:
    count = len(scores.labels)
    found = {"accuracy": share(scores.right.sum(), count)}
    if not isinstance(scores, MultiLabelScores):
        found[f"top{TOP}_accuracy"] = share(scores.in_top(TOP).sum(), count)
    return found


def _averages(scores: Scores, counts: Counts, samples: _Resamples) -> dict[str, Estimate]:
    """Return label accuracy and averages over classes, bootstrapped; with one label, some of them are the accuracy."""
    found = {"label_accuracy": bootstrapped(scores.agreement.mean(), samples.agreement)} \
        if isinstance(scores, MultiLabelScores) else {}  # fmt: skip
    resampled = samples.counts.averages()
    found |= {name: bootstrapped(float(value), resampled[name]) for name, value in counts.averages().items()}
    if not isinstance(scores, MultiLabelScores):
        accuracy = share(scores.right.sum(), len(scores.labels))
        found |= dict.fromkeys(("precision_micro", "recall_micro", "f1_micro", "recall_weighted"), accuracy)
    return found


def _of_rankings(scores: Scores, rankings: tuple[Ranking, Ranking]) -> dict[str, Estimate]:
    auc, precision = rankings
    name = "mean_average_precision" if isinstance(scores, MultiLabelScores) else "pr_auc_macro"
    return {"roc_auc_macro": auc.macro, name: precision.macro}


def _calibration(scores: Scores, found: Reliability, sums: _Sums, suffix: str) -> dict[str, Estimate]:
    _, confidence, _ = scores.judged
    variances = np.asarray(np.bincount(bins_of(confidence), confidence * (1 - confidence), NUM_BINS), np.float64)
    return {
        f"loss{suffix}": bootstrapped(scores.loss, sums.loss),
        f"ece{suffix}": calibration_error(found, sums.gaps, variances),
        f"brier{suffix}": bootstrapped(scores.briers.mean(), sums.brier),
    }


def _rows(classes: Sequence[str], counts: Counts, rankings: tuple[Ranking, Ranking]) -> list[dict[str, str | float | int]]:
    bounds = counts.bounds()
    columns: dict[str, Sequence[str | float | int]] = {
        "class": classes,
        "precision": counts.precision.tolist(),
        "recall": counts.recall.tolist(),
        "f1": counts.f1.tolist(),
        "support": counts.support.astype(np.int64).tolist(),
    }
    for name, ranking in zip(("roc_auc", "average_precision"), rankings, strict=True):
        columns[name] = ranking.values.tolist()
        bounds[name] = (ranking.low, ranking.high)
    for name, (low, high) in bounds.items():
        columns |= {f"{name}_low": low.tolist(), f"{name}_high": high.tolist()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _slices(column: str, values: Sequence[str], right: Marks) -> list[Slice]:
    """Return one slice for each value, in their natural order."""
    names = sorted(set(values), key=natural_key)
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([code_of[value] for value in values])
    counts, hits = np.bincount(codes), np.bincount(codes, weights=right)
    return [Slice(column, name, int(count), share(hit, count)) for name, count, hit in zip(names, counts, hits, strict=True)]


def _notes(classes: Sequence[str], counts: Counts) -> tuple[str, ...]:
    absent = [name for name, support in zip(classes, counts.support, strict=True) if support == 0]
    if not absent:
        return ()
    listed = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return (f"no image of {listed}: left out of means over classes",)
