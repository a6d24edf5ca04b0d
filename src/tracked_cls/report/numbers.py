"""Numbers as people read them: few digits, intervals, differences, times, amounts."""

from __future__ import annotations

import math

from tracked_cls.report.page import NO_VALUE
from tracked_cls.statistics.intervals import Estimate

METRIC_WORDS = {
    "accuracy": "accuracy",
    "top5_accuracy": "label among the 5 likeliest",
    "label_accuracy": "accuracy of single labels",
    "loss": "loss, nats",
    "loss_calibrated": "loss, temperature-scaled",
    "precision_macro": "precision, mean of classes",
    "recall_macro": "recall, mean of classes",
    "f1_macro": "F1, mean of classes",
    "precision_micro": "precision, all images alike",
    "recall_micro": "recall, all images alike",
    "f1_micro": "F1, all images alike",
    "precision_weighted": "precision, classes by size",
    "recall_weighted": "recall, classes by size",
    "f1_weighted": "F1, classes by size",
    "roc_auc_macro": "area under ROC, mean of classes",
    "pr_auc_macro": "average precision, mean of classes",
    "mean_average_precision": "mean average precision (mAP)",
    "ece": "calibration error (ECE)",
    "ece_calibrated": "calibration error, temperature-scaled",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, temperature-scaled",
}


def short(value: object) -> str:
    """Return a value with four decimals where it is a fraction, with commas where it is large; text stays as it is."""
    if isinstance(value, str):
        return _short_text(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NO_VALUE
    if isinstance(value, bool):
        return str(value).lower()
    return _short_number(float(value)) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def decimals(text: str) -> str:
    """Return a number between 0 and 1 with three decimals; a dash for what is none."""
    try:
        value = float(text)
    except ValueError:
        return NO_VALUE
    return f"{value:.3f}" if math.isfinite(value) else NO_VALUE


def percent(value: float, digits: int = 2) -> str:
    """Return a share in [0, 1] as ``98.61 %``."""
    return NO_VALUE if math.isnan(value) else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign: ``+0.42``."""
    return NO_VALUE if math.isnan(value) else f"{100 * value:+.2f}"


def interval(estimate: Estimate) -> str:
    """Return the 95 % confidence interval: ``0.9794 to 0.9912``, or that there is none."""
    return f"{short(estimate.low)} to {short(estimate.high)}" if has_interval(estimate) else NO_VALUE


def interval_in_percent(estimate: Estimate) -> str:
    """Return the interval of a share: ``95 % CI 97.94 to 99.12``; empty where there is none."""
    return f"95 % CI {100 * estimate.low:.2f} to {100 * estimate.high:.2f}" if has_interval(estimate) else ""


def has_interval(estimate: Estimate) -> bool:
    """Whether both bounds are known."""
    return math.isfinite(estimate.low) and math.isfinite(estimate.high)


def p_value(value: float) -> str:
    """Return a p value with three decimals, or as ``<0.001``."""
    return NO_VALUE if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return a time in the unit in which it has few digits."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _short_text(text: str) -> str:
    """Return the text of a number with few digits, any other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return _short_number(value) if "." in text or "e" in text.lower() else text


def _short_number(value: float) -> str:
    if not math.isfinite(value):
        return NO_VALUE if math.isnan(value) else str(value)
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"
