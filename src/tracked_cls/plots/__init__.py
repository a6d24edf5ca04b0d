"""Pictures, drawn off screen."""

from tracked_cls.plots.network import feature_maps, filters, network
from tracked_cls.plots.profile import profile
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
