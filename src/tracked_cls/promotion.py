"""Which version of a registered model is champion: registration, the gate before the alias, and the way back.

The alias moves last, in one atomic call, after everything about the move was written down, so a process that is killed at any
step leaves the champion as it was, and the same command ends in the same state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tracked_cls import assessment, durable, failpoints, parity, registry
from tracked_cls.compute import make_compute
from tracked_cls.config import PromoteConfig
from tracked_cls.console import say
from tracked_cls.contest import Contest, Images, MismatchError
from tracked_cls.errors import UserError
from tracked_cls.gate import KEPT, PROMOTED, UNDECIDED, Verdict
from tracked_cls.redaction import redacted
from tracked_cls.registry import CHALLENGER, CHAMPION, Version
from tracked_cls.tracking import Run, Tracker

_ROLLED_BACK = "rolled back"
_COMPARED = ("promotion.p_value", "promotion.difference")  # tags that only a comparison sets
_LONGEST = 2000  # characters of a reason in a tag
_AGAIN = "decide with: mlflow run . -e promote --env-manager local"

Judge = Callable[[Version, Version], Verdict]


@dataclass(frozen=True)
class Promotion:
    """What became of a model: `version` is None where it was not registered."""

    verdict: str  # promoted | kept | undecided | not registered | waiting | rolled back
    reason: str
    version: Version | None = None


@dataclass(frozen=True)
class Decision:
    """What the command ``promote`` came to: `champion` is whose place it is now."""

    run_id: str
    url: str
    promotion: Promotion
    champion: str


# ---- after a training --------------------------------------------------------------------------------------------------


def register(
    tracker: Tracker, run: Run, name: str, model_uri: str, *, tags: Mapping[str, str], auto: str, contest: Contest | None
) -> Promotion:
    """Register a run's model, with its tags, and move ``champion`` to it by the gate.

    ``auto=first`` registers only while there is no champion; ``always`` makes the version ``challenger`` in any case, and
    champion if the gate says so. Without a `contest`, as of a model that had to wait for its store, nothing is compared.
    """
    client = tracker.client
    champion = registry.by_alias(client, name, CHAMPION)
    if auto == "first" and champion is not None and champion.tags.get("weights.digest") != tags["weights.digest"]:
        reason = f"{champion.uri} is champion already and promote.auto=first; promote.auto=always would compare with it"
        return Promotion("not registered", reason)
    require_sound(tracker, model_uri)
    failpoints.reach("release.before_version")
    version = registry.register(client, name, model_uri, run_id=tags["run.id"], tags=tags)
    failpoints.reach("release.after_version")
    if auto == "always":
        registry.set_alias(client, version, CHALLENGER)
    return _decide(tracker, run, version, _lenient(contest) if auto == "always" else _came_second)


def _came_second(_: Version, champion: Version) -> Verdict:
    """Judge a version that was to be the first, where another has become champion in the same moment."""
    return Verdict(UNDECIDED, f"{champion.uri} became champion meanwhile, and promote.auto=first compares with none; {_AGAIN}")


def require_sound(tracker: Tracker, model_uri: str) -> None:
    """Raise `UserError` unless a model's files are as they were logged, and answer, in a process of their own, as evaluated."""
    bundle = registry.files_of(tracker.client, model_uri)
    assessment.load_network(bundle)
    parity.check(bundle)


def _lenient(contest: Contest | None) -> Judge:
    """Return a judge for the end of a training, which no trouble with the champion or the data is to spoil."""

    def judge(challenger: Version, champion: Version) -> Verdict:
        if contest is None:
            return Verdict(
                UNDECIDED, f"it had to wait for the tracking store and was not compared with {champion.uri}; {_AGAIN}"
            )
        try:
            return contest.judge(challenger, champion)
        except MismatchError as error:
            return Verdict(KEPT, str(error))
        except (UserError, FileNotFoundError) as error:
            return Verdict(UNDECIDED, f"{error}; {_AGAIN}")

    return judge


# ---- the command -------------------------------------------------------------------------------------------------------


def run(cfg: PromoteConfig, tracker: Tracker) -> Decision:
    """Judge a registered version against the champion in a run of its own, or give the champion's place back."""
    if cfg.promote.rollback:
        return _roll_back(cfg, tracker)
    address = cfg.promote.model or f"models:/{cfg.data.model_name}@{CHALLENGER}"
    version = registry.version_at(tracker.client, address)
    if cfg.promote.model is None and version.tags.get("promotion.verdict") == _ROLLED_BACK:
        raise UserError(f"{version.uri} was rolled back; to have it judged again, name it: promote.model={version.uri}")
    images = Images(cfg.data, cfg.promote.split, cfg.promote.batch_size)
    judges = Contest(images, cfg.promote.rules, make_compute(cfg.device, cfg.threads), cfg.tracking, tracker)
    with tracker.begin("promote", f"promote {version.name} {version.number}") as tracked:
        tracked.log_config(cfg)
        tracked.set_tags(
            {"model": version.uri, "model.address": address, "weights.digest": version.tags.get("weights.digest", "")}
        )
        require_sound(tracker, version.uri)
        promotion = _decide(tracker, tracked, version, judges.judge)
        tracked.set_tags({"promotion.verdict": promotion.verdict, "promotion.reason": promotion.reason})
        tracked.describe(f"`{version.uri}`: **{promotion.verdict}**, {promotion.reason}")
        if judges.has_looked:
            tracked.log_dataset(judges.prepared, [cfg.promote.split])
    return _decision(tracker, tracked, promotion)


def _decision(tracker: Tracker, tracked: Run, promotion: Promotion) -> Decision:
    assert promotion.version is not None
    champion = registry.by_alias(tracker.client, promotion.version.name, CHAMPION)
    return Decision(tracked.run_id, tracked.url, promotion, champion.uri if champion else "none")


def lines(decision: Decision) -> list[str]:
    """Return what a person wants to know after a decision."""
    promotion = decision.promotion
    assert promotion.version is not None
    return [
        f"promote: {promotion.version.uri}: {promotion.verdict}, {promotion.reason}",
        f"  champion: {decision.champion}",
        f"  run:      {decision.url}",
    ]


# ---- the decision ------------------------------------------------------------------------------------------------------


def _decide(tracker: Tracker, run: Run, version: Version, judge: Judge) -> Promotion:
    """Judge a version against the champion, once more where that has changed meanwhile, and act on the verdict."""
    while True:
        champion = registry.by_alias(tracker.client, version.name, CHAMPION)
        if champion is not None and _are_same(version, champion):
            return _standing(version, champion, run)
        verdict = Verdict(PROMOTED, "the first version") if champion is None else judge(version, champion)
        with _alone(tracker, version.name):
            if _number(registry.by_alias(tracker.client, version.name, CHAMPION)) == _number(champion):
                return _conclude(tracker, run, version, champion, verdict)
        say(f"{version.name} has another champion than a moment ago: {version.uri} is compared with that one")


def _are_same(version: Version, champion: Version) -> bool:
    digest = version.tags.get("weights.digest")
    return version.number == champion.number or (digest is not None and digest == champion.tags.get("weights.digest"))


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number


def _standing(version: Version, champion: Version, run: Run) -> Promotion:
    """Return what stands on the champion's tags where this very run has made it so, and was killed before it could say so."""
    if version.number == champion.number and champion.tags.get("promotion.evidence") == run.run_id:
        return Promotion(PROMOTED, champion.tags["promotion.reason"], champion)
    return Promotion(KEPT, f"{champion.uri} with the same weights is champion already", champion)


def _conclude(tracker: Tracker, run: Run, version: Version, champion: Version | None, verdict: Verdict) -> Promotion:
    """Write a verdict down, in the run and on the version, and move the alias last."""
    reason = redacted(verdict.reason)[:_LONGEST]
    tags = {"promotion.verdict": verdict.verdict, "promotion.reason": reason, "promotion.evidence": run.run_id}
    if verdict.verdict == PROMOTED and champion is not None:
        tags["promotion.previous"] = str(champion.number)
    if verdict.evidence:
        tags |= {"promotion.p_value": f"{verdict.evidence['p_value']:.6g}",
                 "promotion.difference": f"{verdict.evidence['difference']['value']:.6g}"}  # fmt: skip
        run.log_metrics(_metrics(verdict.evidence))
        run.log_text(_as_json(version, champion, verdict), "evidence.json")
    run.set_tags({key: value for key, value in tags.items() if key != "promotion.evidence"})
    registry.tag_version(tracker.client, version, tags, instead_of=_COMPARED)
    if verdict.verdict == PROMOTED:
        _move(tracker, version)
    return Promotion(verdict.verdict, reason, version)


def _move(tracker: Tracker, version: Version) -> None:
    failpoints.reach("release.before_alias")
    registry.set_alias(tracker.client, version, CHAMPION)
    failpoints.reach("release.after_alias")


def _metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    gap = evidence["difference"]
    return {
        "promotion_p_value": evidence["p_value"],
        "promotion_difference": gap["value"],
        "promotion_difference_low": gap["low"],
        "promotion_difference_high": gap["high"],
        "challenger_accuracy": evidence["challenger"]["accuracy"],
        "champion_accuracy": evidence["champion"]["accuracy"],
    }


def _as_json(version: Version, champion: Version | None, verdict: Verdict) -> str:
    told = {"model": version.uri, "champion": champion.uri if champion else None}
    return json.dumps({"verdict": verdict.verdict, "reason": redacted(verdict.reason), **told, **verdict.evidence}, indent=2)


def _alone(tracker: Tracker, name: str) -> AbstractContextManager[None]:
    """Hold the alias of a model among the processes of this workspace.

    Others, whom no lock reaches, are met by reading the champion once more right before it is moved.
    """
    return durable.locked(tracker.journals.parent / f"{name}.alias.lock")


# ---- the way back ------------------------------------------------------------------------------------------------------


def _roll_back(cfg: PromoteConfig, tracker: Tracker) -> Decision:
    """Give the champion's place back to the version that it took it from, once that was found sound.

    One that was killed after the alias had moved is brought to its end, and goes back no further.
    """
    name = cfg.data.model_name
    champion = registry.by_alias(tracker.client, name, CHAMPION)
    if champion is None:
        raise UserError(f"promote.rollback: {name} has no champion: nothing to roll back")
    moved = _half_done(tracker, champion)
    loser, winner = (moved, champion) if moved else (champion, _previous(tracker, champion))
    title = f"roll back {name} {loser.number}"
    with tracker.begin("promote", title, continue_id=_unfinished(tracker, loser)) as tracked:
        tracked.log_config(cfg)
        promotion = Promotion(_ROLLED_BACK, f"{winner.uri} is champion again", loser)
        tracked.set_tags({"model": loser.uri, "promotion.verdict": promotion.verdict, "promotion.reason": promotion.reason})
        if not moved:
            _give_back(tracker, tracked, loser, winner, promotion)
    return _decision(tracker, tracked, promotion)


def _previous(tracker: Tracker, champion: Version) -> Version:
    number = champion.tags.get("promotion.previous")
    if number is None:
        raise UserError(f"promote.rollback: {champion.uri} took its place from no other version: nothing to roll back to")
    found = registry.by_number(tracker.client, champion.name, number)
    if found is None:
        raise UserError(f"promote.rollback: version {number} of {champion.name}, the champion before, was deleted")
    return found


def _give_back(tracker: Tracker, tracked: Run, loser: Version, winner: Version, promotion: Promotion) -> None:
    require_sound(tracker, winner.uri)
    with _alone(tracker, loser.name):
        if _number(registry.by_alias(tracker.client, loser.name, CHAMPION)) != loser.number:
            raise UserError(f"promote.rollback: {loser.name} has another champion than a moment ago; look, and start it again")
        tags = {"promotion.verdict": promotion.verdict, "promotion.reason": promotion.reason}
        registry.tag_version(tracker.client, loser, {**tags, "promotion.evidence": tracked.run_id})
        _move(tracker, winner)


def _half_done(tracker: Tracker, champion: Version) -> Version | None:
    """Return the version that `champion` has its place back from, where the process that did that was killed over it."""
    for version in registry.versions(tracker.client, champion.name):
        if version.tags.get("promotion.previous") == str(champion.number) and _unfinished(tracker, version):
            return version
    return None


def _unfinished(tracker: Tracker, version: Version) -> str | None:
    """Return the run that was to roll a version back and did not come to its end."""
    if version.tags.get("promotion.verdict") != _ROLLED_BACK:
        return None
    run_id = version.tags["promotion.evidence"]
    return None if tracker.status(run_id) in ("FINISHED", None) else run_id
