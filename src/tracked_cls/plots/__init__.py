"""Pictures, drawn off screen.

matplotlib is imported when the first picture is drawn: a training starts a second sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracked_cls.plots.networks import feature_maps, filters, network
    from tracked_cls.plots.profiles import profile
    from tracked_cls.plots.results import confusion, curves, gallery, sample
    from tracked_cls.plots.suspects import fold_curves, suspect_grid

__all__ = [
    "confusion",
    "curves",
    "feature_maps",
    "filters",
    "fold_curves",
    "gallery",
    "network",
    "profile",
    "sample",
    "suspect_grid",
]


def __getattr__(name: str) -> Any:
    """Import the modules of the pictures when the first one is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracked_cls.plots import networks, profiles, results, suspects

    return next(getattr(module, name) for module in (networks, profiles, results, suspects) if name in vars(module))
