"""The search for better options: a study of trials, finals among the best, and a winner that is registered."""

from tracked_cls.tuning.campaign import run
from tracked_cls.tuning.results import lines

__all__ = ["lines", "run"]
