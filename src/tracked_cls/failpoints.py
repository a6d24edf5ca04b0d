"""Named places at which this very process can be told to kill itself, so that a test hits them exactly.

``TRACKED_CLS_FAILPOINT=checkpoint.before_rename:3`` in the environment: SIGKILL as the place is reached the third time. Every
process that inherits the variable counts for itself. Without it, `reach` compares a string with None.
"""

from __future__ import annotations

import os
import signal

from tracked_cls.errors import UserError, did_you_mean

VARIABLE = "TRACKED_CLS_FAILPOINT"
POINTS = (
    *("checkpoint.before_write", "checkpoint.before_sidecar", "checkpoint.before_rename", "checkpoint.before_sweep"),
    "checkpoint.mid_delete",
    *("prepare.mid_intake", "prepare.before_manifest", "prepare.before_complete", "prepare.after_complete"),
    *("prepare.after_publish", "prepare.before_current"),
    *("train.after_metrics", "train.before_save", "train.after_loop", "train.before_test"),
    *("release.before_export", "release.before_log_model", "release.mid_log_model", "release.after_log_model"),
    *("release.before_version", "release.after_version", "release.before_alias", "release.after_alias", "release.before_end"),
    *("predict.mid_rows", "predict.before_rename", "predict.after_rename"),
    *("evaluate.before_metrics", "evaluate.before_end"),
    *("folds.before_keep", "folds.between", "folds.before_conclude"),
    *("tune.after_claim", "tune.before_tell", "tune.before_release", "tune.before_conclude"),
    *("run.before_end", "run.after_end", "delivery.before_mark", "store.before_rename"),
)

_armed: str | None = None
_left = 0


def arm(text: str | None) -> None:
    """Choose the place to die at, ``name`` or ``name:n`` for the n-th time it is reached; None disarms.

    Raises `UserError` for a name that there is not, which would test nothing.
    """
    global _armed, _left
    name, _, count = (text or "").partition(":")
    if text and name not in POINTS:
        raise UserError(f"{VARIABLE}: there is no {name!r}{did_you_mean(name, POINTS)}; known: {', '.join(POINTS)}")
    if count and not (count.isdecimal() and int(count)):
        raise UserError(f"{VARIABLE}: {text!r} ends in no count; write {name}:2 for the second time it is reached")
    _armed, _left = (name, int(count or 1)) if text else (None, 0)


def reach(name: str) -> None:
    """Die here, as by ``kill -9``, where the environment says so."""
    global _left
    if name != _armed:
        return
    _left -= 1
    if not _left:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE))
