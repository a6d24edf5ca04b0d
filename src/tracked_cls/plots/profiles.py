"""A picture of where the time of training goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_COLOURS = {"data": "#d1480f", "forward": "#1f6feb", "backward": "#0a3069", "optimizer": "#7a8699"}
_SHOWN = 12


def profile(parts: Mapping[str, float], operations: Sequence[tuple[str, int, float]], num_steps: int, path: Path) -> None:
    """Draw seconds per part of a step, and the operations that take the longest; `operations` are (name, calls, seconds)."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    whole, single = figure.subplots(1, 2, width_ratios=(1, 1.6))
    steps = max(num_steps, 1)
    values = [1000 * seconds / steps for seconds in parts.values()]
    bars = whole.bar(list(parts), values, color=[_COLOURS.get(name, "#7a8699") for name in parts])
    whole.bar_label(bars, fmt="%.1f")
    whole.set_ylabel("ms per step")
    whole.set_title(f"parts of a step, mean of {num_steps}", fontsize=10)
    longest = list(reversed(operations[:_SHOWN]))
    single.barh([f"{name} ({calls})" for name, calls, _ in longest], [1000 * own / steps for _, _, own in longest])
    single.set_xlabel("ms per step, of its own")
    single.set_title("longest operations (calls)", fontsize=10)
    single.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")
