"""Labels for images nobody labelled."""

from tracked_cls.prediction.labelling import Job, Predictions, Rejected, lines, run

__all__ = ["Job", "Predictions", "Rejected", "lines", "run"]
