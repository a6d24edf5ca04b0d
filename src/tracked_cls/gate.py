"""The rule by which a challenger takes the champion's place: significantly better, worse at no class, within its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tracked_cls.config import GateSection
from tracked_cls.statistics import paired
from tracked_cls.statistics.intervals import Estimate
from tracked_cls.statistics.paired import Counts, Flags

PROMOTED, KEPT, UNDECIDED = "promoted", "kept", "undecided"


@dataclass(frozen=True, eq=False)
class Side:
    """What one model did on N images, and what it costs.

    `labels` and `predictions` are int64 [N], or uint8 [N,K] of 0 and 1 where an image has any number of labels; `ece` is the
    expected calibration error, `latency_ms` the time for one image, None where it was not measured.
    """

    address: str
    labels: npt.NDArray[np.integer]
    predictions: npt.NDArray[np.integer]
    size_bytes: int
    ece: float
    latency_ms: float | None = None

    @property
    def right(self) -> Flags:
        """Which images are right [N]; with several labels: all of them."""
        hits = self.predictions == self.labels
        return np.asarray(hits.all(axis=1) if hits.ndim == 2 else hits)

    @property
    def accuracy(self) -> float:
        """Share of right images, in [0, 1]."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Verdict:
    """What became of a challenger, and why, in one sentence; `evidence` is all that was compared, as plain JSON values."""

    verdict: str  # promoted | kept | undecided
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Challenger against champion: images right by one of them alone, in all and by class [K], and what follows from that."""

    challenger: Side
    champion: Side
    gained: int
    lost: int
    p_value: float
    difference: Estimate
    class_gained: Counts
    class_lost: Counts
    class_p_values: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.challenger.labels)


def compare(challenger: Side, champion: Side, num_classes: int) -> Comparison:
    """Compare two models on the same images in the same order."""
    assert np.array_equal(challenger.labels, champion.labels)
    gained, lost = (int((one.right & ~other.right).sum()) for one, other in _both_ways(challenger, champion))
    class_gained, class_lost = (_by_class(one, other, num_classes) for one, other in _both_ways(challenger, champion))
    return Comparison(
        challenger=challenger,
        champion=champion,
        gained=gained,
        lost=lost,
        p_value=float(paired.mcnemar(np.array(gained), np.array(lost))),
        difference=paired.difference(gained, lost, len(challenger.labels)),
        class_gained=class_gained,
        class_lost=class_lost,
        class_p_values=paired.class_worsening(class_gained, class_lost),
    )


def _both_ways(challenger: Side, champion: Side) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
    return (challenger, champion), (champion, challenger)


def _by_class(one: Side, other: Side, num_classes: int) -> Counts:
    """Return how many images of each true class one model alone has right [K]; with several labels: each class by itself."""
    if one.labels.ndim == 2:
        return np.asarray(((one.predictions == one.labels) & (other.predictions != other.labels)).sum(axis=0), np.int64)
    return np.bincount(one.labels[one.right & ~other.right], minlength=num_classes).astype(np.int64)


def judge(challenger: Side, champion: Side, rules: GateSection, classes: Sequence[str]) -> Verdict:
    """Return what becomes of a challenger that was scored on the same images as the champion.

    promoted: significantly better, by `min_gain` or more, with no class significantly worse and all limits held; kept:
    significantly worse, or one of those rules is broken; undecided: no significant difference.
    """
    found = compare(challenger, champion, len(classes))
    verdict, why = _judge(found, rules, classes)
    return Verdict(verdict, f"{why}: {_in_numbers(found)}", _evidence(found, rules, classes))


def _judge(found: Comparison, rules: GateSection, classes: Sequence[str]) -> tuple[str, str]:
    is_significant, gain = found.p_value < rules.alpha, found.difference.value
    if is_significant and gain < 0:
        return KEPT, "significantly worse"
    broken = next(_broken(found, rules, classes), None)
    if broken is not None:
        return KEPT, broken
    if not is_significant:
        return UNDECIDED, "no significant difference"
    if gain < rules.min_gain:
        return KEPT, f"better by less than promote.min_gain={rules.min_gain:g}"
    return PROMOTED, "significantly better"


def _broken(found: Comparison, rules: GateSection, classes: Sequence[str]) -> Iterator[str]:
    """Yield what speaks against a challenger however good it is."""
    ours, theirs = found.challenger, found.champion
    worst = int(found.class_p_values.argmin())
    if rules.class_alpha is not None and found.class_p_values[worst] < rules.class_alpha:
        yield (
            f"significantly worse at class {classes[worst]!r} (right alone {found.class_gained[worst]} to "
            f"{found.class_lost[worst]}, corrected p = {found.class_p_values[worst]:.2g})"
        )
    if rules.max_size_ratio is not None and ours.size_bytes > rules.max_size_ratio * theirs.size_bytes:
        sizes = f"{ours.size_bytes:,} bytes of weights against {theirs.size_bytes:,}"
        yield f"larger than promote.max_size_ratio={rules.max_size_ratio:g} allows ({sizes})"
    if rules.max_latency_ratio is not None:
        assert ours.latency_ms is not None
        assert theirs.latency_ms is not None
        if ours.latency_ms > rules.max_latency_ratio * theirs.latency_ms:
            times = f"{ours.latency_ms:.2f} ms for one image against {theirs.latency_ms:.2f} ms"
            yield f"slower than promote.max_latency_ratio={rules.max_latency_ratio:g} allows ({times})"
    if rules.max_ece_increase is not None and ours.ece > theirs.ece + rules.max_ece_increase:
        errors = f"expected calibration error {ours.ece:.4f} against {theirs.ece:.4f}"
        yield f"calibrated worse than promote.max_ece_increase={rules.max_ece_increase:g} allows ({errors})"


def _in_numbers(found: Comparison) -> str:
    gap = found.difference
    return (
        f"accuracy {found.challenger.accuracy:.4f} against {found.champion.accuracy:.4f} of {found.champion.address} on the "
        f"same {found.count:,} images (difference {gap.value:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}; "
        f"right alone {found.gained} to {found.lost}, p = {found.p_value:.2g})"
    )


def _evidence(found: Comparison, rules: GateSection, classes: Sequence[str]) -> dict[str, Any]:
    columns = (classes, found.class_gained.tolist(), found.class_lost.tolist(), found.class_p_values.tolist())
    return {
        "images": found.count,
        "challenger": _of_side(found.challenger),
        "champion": _of_side(found.champion),
        "gained": found.gained,
        "lost": found.lost,
        "p_value": found.p_value,
        "difference": asdict(found.difference),
        "classes": [
            {"class": name, "gained": gained, "lost": lost, "p_value_worse": p_value}
            for name, gained, lost, p_value in zip(*columns, strict=True)
        ],
        "rules": rules.model_dump(mode="json"),
    }


def _of_side(side: Side) -> dict[str, Any]:
    return {
        "model": side.address,
        "accuracy": side.accuracy,
        "ece": side.ece,
        "size_bytes": side.size_bytes,
        "latency_ms": side.latency_ms,
    }
