"""Optimizers and learning-rate schedules by name."""

from tracked_cls.optim.optimizers import check, load_state, make_optimizer
from tracked_cls.optim.schedules import Schedule, schedule_warnings

__all__ = ["Schedule", "check", "load_state", "make_optimizer", "schedule_warnings"]
