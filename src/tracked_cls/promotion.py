"""Registration of a trained model, and the rule by which a version becomes champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracked_cls import failpoints, registry
from tracked_cls.registry import CHALLENGER, CHAMPION, Version
from tracked_cls.tracking import Tracker

_SCORE = "test_accuracy"


@dataclass(frozen=True)
class Promotion:
    """What became of a model: `version` is None where it was not registered."""

    verdict: str  # promoted | kept | not registered | waiting
    reason: str
    version: Version | None = None


def register(tracker: Tracker, name: str, model_uri: str, *, tags: Mapping[str, str], compare: bool) -> Promotion:
    """Register a model, with its tags, and move ``champion`` to it by the rule.

    The rule: the first version becomes champion; a later one, registered only where `compare`, if its test accuracy on the
    same data is higher. Where `compare`, the version is ``challenger`` in any case.
    """
    client = tracker.client
    champion = registry.by_alias(client, name, CHAMPION)
    if not compare and champion is not None and champion.tags.get("weights.digest") != tags["weights.digest"]:
        reason = f"{champion.uri} is champion already and promote.auto=first; promote.auto=always would compare with it"
        return Promotion("not registered", reason)
    failpoints.reach("release.before_version")
    version = registry.register(client, name, model_uri, run_id=tags["run.id"], tags=tags)
    failpoints.reach("release.after_version")
    if compare:
        registry.set_alias(client, version, CHALLENGER)
    if champion is not None and version.number == champion.number:  # its tags tell how it became champion: they stay
        return Promotion("kept", f"{version.uri} with the same weights is champion already", version)
    verdict, reason = _judge(tags, champion)
    if verdict == "promoted":
        failpoints.reach("release.before_alias")
        registry.set_alias(client, version, CHAMPION)
        failpoints.reach("release.after_alias")
    registry.tag_version(client, version, {"promotion.verdict": verdict, "promotion.reason": reason})
    return Promotion(verdict, reason, version)


def _judge(tags: Mapping[str, str], champion: Version | None) -> tuple[str, str]:
    if champion is None:
        return "promoted", "the first version"
    if champion.tags.get("data.digest") != tags["data.digest"]:
        return "kept", f"{champion.uri} was tested on other data ({champion.tags.get('data.digest')}): no comparison"
    ours, theirs = float(tags[_SCORE]), float(champion.tags[_SCORE])
    comparison = f"{_SCORE} {ours:.4f} against {theirs:.4f} of {champion.uri}"
    return ("promoted" if ours > theirs else "kept"), comparison
