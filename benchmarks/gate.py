"""How often does the gate promote? Pairs of models drawn at random, equally good or truly better, against two simpler rules.

Each pair is drawn as what its models do on the same images: which are right by one of them alone. The rules:

- higher number wins: the usual one, a higher accuracy on the test images;
- gate: `promote` as it is by default, McNemar at 0.05 and the guard on classes at 0.05, corrected;
- without guard: the same, `promote.class_alpha=off`;
- point guard: the same, but stopped by any class whose accuracy is lower, however little.

    python -m benchmarks.gate                seconds
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from tracked_cls.config import GateSection  # noqa: E402 - of this checkout
from tracked_cls.statistics import paired  # noqa: E402
from tracked_cls.statistics.paired import Counts, Flags  # noqa: E402

RULES = ("higher number wins", "gate", "without guard", "point guard")


@dataclass(frozen=True)
class Setting:
    """Pairs of models on `images` images of `classes` classes: the share they differ on, and the true gain in accuracy."""

    images: int
    classes: int
    discordant: float
    gain: float

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{self.images:,} images, {self.classes} classes, {self.discordant:.0%} discordant, gain {self.gain:+.1%}"


SETTINGS = (
    *(Setting(images, 10, discordant, 0.0) for images in (1_000, 10_000) for discordant in (0.02, 0.06)),
    *(Setting(10_000, 10, discordant, 0.01) for discordant in (0.02, 0.06)),
    Setting(10_000, 100, 0.06, 0.01),
)


def draw(setting: Setting, pairs: int, seed: int) -> tuple[Counts, Counts]:
    """Return how many images of each class the challenger gained and lost [pairs,classes]; all classes gain alike."""
    per_class = setting.images // setting.classes
    gained, lost = (setting.discordant + sign * setting.gain for sign in (1, -1))
    chances = [gained / 2, lost / 2, 1 - setting.discordant]
    counts = np.random.default_rng(seed).multinomial(per_class, chances, size=(pairs, setting.classes))
    return counts[..., 0], counts[..., 1]


def promoted(gained: Counts, lost: Counts) -> dict[str, Flags]:
    """Return rule -> whether it promotes, for each pair."""
    rules = GateSection()
    assert rules.class_alpha is not None
    gain = (gained - lost).sum(axis=1)
    is_better = (paired.mcnemar(gained.sum(axis=1), lost.sum(axis=1)) < rules.alpha) & (gain > 0)
    is_guarded = (paired.class_worsening(gained, lost) < rules.class_alpha).any(axis=1)
    has_lower = (lost > gained).any(axis=1)
    decisions = (gain > 0, is_better & ~is_guarded, is_better, is_better & ~has_lower)
    return dict(zip(RULES, decisions, strict=True))


def main() -> None:
    """Print the share of pairs that each rule promotes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    width = max(len(setting.name) for setting in SETTINGS)
    print(f"promoted of {words.pairs} pairs".ljust(width), *(rule.rjust(len(rule) + 2) for rule in RULES))
    for setting in SETTINGS:
        shares = promoted(*draw(setting, words.pairs, words.seed))
        print(setting.name.ljust(width), *(f"{shares[rule].mean():.1%}".rjust(len(rule) + 2) for rule in RULES))


if __name__ == "__main__":
    main()
