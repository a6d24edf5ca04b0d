"""Which version becomes champion: real models in a real registry, judged on the digits' test images."""

import itertools
import json
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from scipy.stats import binomtest

from tests.conftest import PARAMS
from tests.faults.models_in_store import png
from tracked_cls import (
    assessment,
    compute,
    contest,
    evaluation,
    failpoints,
    preparation,
    promotion,
    registry,
    tracking,
    weights,
)
from tracked_cls.config import DataConfig, GateSection, LoaderConfig, PromoteConfig, TrackingConfig, load
from tracked_cls.contest import Contest, Images
from tracked_cls.data.loaders import Feed, open_split
from tracked_cls.errors import UserError
from tracked_cls.serving.packaging import Bundle, log_model

NUMBERS = itertools.count()
NOISE = {"strong": 0.0, "level": 0.1, "weak": 0.2}  # of the weights, as a share of their spread


@pytest.fixture(scope="module")
def zoo(store, trained, tmp_path_factory):
    """The trained network and worsened copies of it, each logged to a run of its own; made when asked for."""
    mlflow.set_tracking_uri(store[1])
    client, folder, logged = MlflowClient(store[1]), tmp_path_factory.mktemp("zoo"), {}
    original, _ = registry.resolve(client, f"runs:/{trained.run_id}")

    def go(kind):
        if kind not in logged:
            bundle = _make(kind, original, folder / kind)
            run_id = client.create_run("0").info.run_id
            (folder / f"{kind}-scratch").mkdir()
            uri = log_model(bundle, run_id, scratch=folder / f"{kind}-scratch", example=png())
            digest = json.loads(bundle.meta.read_text())["weights_digest"]
            logged[kind] = SimpleNamespace(uri=uri, run_id=run_id, digest=digest, bundle=bundle)
        return logged[kind]

    return go


def _make(kind, original, folder):
    shutil.copytree(original.folder, folder)
    bundle = Bundle(folder)
    network, meta = assessment.load_network(original)
    name, _, number = kind.partition(" ")  # "level 2": the same once more
    draw = torch.Generator().manual_seed(int(number or 0))
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1:
                tensor.add_(torch.randn(tensor.shape, generator=draw) * tensor.std() * NOISE.get(name, 0.05))
        if name == "broken":
            next(iter(network.parameters())).fill_(float("nan"))
    meta = {**meta, "weights_digest": weights.digest(network)}
    if name == "renamed":
        meta["classes"] = [f"digit {label}" for label in meta["classes"]]
    if name == "small":
        meta["preprocess"]["image_size"] = meta["architecture"]["shape"]["image_size"] = 24
    weights.save(network, bundle.weights)
    bundle.meta.write_text(json.dumps(meta))
    return bundle


@pytest.fixture
def tracker(store, trained):
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as opened:
        yield opened


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """The models whose parity was checked; the copies have not been exported anew, so nothing is compared."""
    seen = []
    monkeypatch.setattr(promotion.parity, "check", lambda bundle: seen.append(bundle.folder) or 0.0)
    return seen


SCORES = {}  # of each network on the test images, which are always the same: forward passes are half of all work here
score_anew = evaluation.score


@pytest.fixture(autouse=True)
def scored_once(monkeypatch):
    def score(network, batches):
        digest = weights.digest(network)
        if digest not in SCORES:
            SCORES[digest] = score_anew(network, batches)
        return SCORES[digest]

    monkeypatch.setattr(contest.evaluation, "score", score)


@pytest.fixture
def toy(tracker, trained, zoo, store):
    """A registered model under a name of the test's own, and what is done with it."""
    return Toy(tracker, trained, zoo, f"toy{next(NUMBERS)}", store)


class Toy:
    def __init__(self, tracker, trained, zoo, label, store):
        self.tracker, self.trained, self.zoo, self.label, self.store = tracker, trained, zoo, label, store
        self.name, self.client = f"{label}-classifier", tracker.client

    def contest(self, split="test", tracker=None, prepared=None, **rules):
        images = Images(DataConfig(), split, 512, prepared or self.trained.prepared)
        tracking_cfg = TrackingConfig(uri=self.store[1])
        return Contest(images, GateSection(**rules), compute.cpu(), tracking_cfg, tracker or self.tracker)

    def register(self, kind, auto="always", tracker=None, judge=..., rules=None, **tags):
        """Do what the end of a training does."""
        logged, manifest = self.zoo(kind), self.trained.prepared.manifest
        tracker = tracker or self.tracker
        known = {
            "run.id": logged.run_id,
            "weights.digest": logged.digest,
            "data.digest": manifest.digest,
            "test.digest": contest.digest_of(manifest, "test"),
        }
        tags = {key: value for key, value in {**known, **tags}.items() if value is not None}
        judge = self.contest(tracker=tracker, **(rules or {})) if judge is ... else judge
        with tracker.opened(logged.run_id) as run:
            return promotion.register(tracker, run, self.name, logged.uri, tags=tags, auto=auto, contest=judge)

    def promote(self, *words, model=None, tracker=None):
        address = model or f"models:/{self.name}@challenger"
        return self._command("--model", address, *words, tracker=tracker)

    def roll_back(self, tracker=None):
        return self._command("--data.name", self.label, "--rollback", "true", tracker=tracker)

    def _command(self, *words, tracker=None):
        cfg = load(PromoteConfig, [*PARAMS, *self.store, "--threads", "1", *words])
        return promotion.run(cfg, tracker or self.tracker)

    def at(self, alias):
        found = registry.by_alias(self.client, self.name, alias)
        return None if found is None else found.number

    def tags(self, number):
        found = self.client.get_model_version(self.name, str(number)).tags
        return {key: value for key, value in found.items() if key.startswith("promotion.")}

    @contextmanager
    def damaged(self, kind):
        model = self.client.get_logged_model(self.zoo(kind).uri.removeprefix("models:/"))
        path = Path(urlsplit(model.artifact_location).path) / "artifacts" / "weights.safetensors"
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        yield
        path.write_bytes(sound)


def right(toy, kind):
    """Return which test images a model has right, by hand."""
    network, _ = assessment.load_network(toy.zoo(kind).bundle)
    split = open_split(Feed(toy.trained.prepared, compute.cpu(), LoaderConfig()), "test")
    scores = evaluation.score(network, split.eval_batches(100))
    return scores.logits.argmax(axis=1) == scores.labels


# ---- registration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", ["first", "always"])
def test_the_first_version_becomes_champion_once_it_is_known_to_be_sound(toy, checked, auto):
    done = toy.register("strong", auto=auto)

    assert (done.verdict, done.reason, done.version.number) == ("promoted", "the first version", 1)
    assert toy.at("champion") == 1
    assert toy.at("challenger") == (None if auto == "first" else 1)
    assert len(checked) == 1
    assert toy.tags(1) == {
        "promotion.verdict": "promoted",
        "promotion.reason": "the first version",
        "promotion.evidence": toy.zoo("strong").run_id,
    }


def test_a_model_that_answers_otherwise_when_packed_is_not_registered(toy, monkeypatch):
    def differs(_):
        raise UserError("the packed model differs from the evaluated one")

    monkeypatch.setattr(promotion.parity, "check", differs)
    with pytest.raises(UserError, match="differs"):
        toy.register("strong")
    assert registry.versions(toy.client, toy.name) == []


def test_first_registers_only_while_there_is_no_champion(toy):
    toy.register("weak")
    done = toy.register("strong", auto="first")
    assert (done.verdict, done.version) == ("not registered", None)
    assert "promote.auto=always would compare with it" in done.reason


PAIRS = {
    "better": ("weak", "strong", "promoted", 2, "significantly better: "),
    "worse": ("strong", "weak", "kept", 1, "significantly worse: "),
    "undecided": ("strong", "level", "undecided", 1, "no significant difference: "),
}


@pytest.mark.parametrize(("first", "second", "verdict", "champion", "reason"), PAIRS.values(), ids=PAIRS)
def test_a_later_version_becomes_champion_by_the_gate(toy, first, second, verdict, champion, reason):
    toy.register(first)

    done = toy.register(second)

    ours, theirs = right(toy, second), right(toy, first)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    tags = toy.tags(2)
    assert (done.verdict, done.version.number, toy.at("champion"), toy.at("challenger")) == (verdict, 2, champion, 2)
    assert done.reason == tags["promotion.reason"]
    assert done.reason.startswith(reason)
    assert f"right alone {gained} to {lost}" in done.reason
    assert tags["promotion.verdict"] == verdict
    assert tags["promotion.evidence"] == toy.zoo(second).run_id
    assert tags.get("promotion.previous") == ("1" if verdict == "promoted" else None)
    assert float(tags["promotion.p_value"]) == pytest.approx(binomtest(gained, gained + lost).pvalue, rel=1e-5)
    assert float(tags["promotion.difference"]) == pytest.approx(ours.mean() - theirs.mean(), rel=1e-5)


def test_the_same_weights_make_no_second_version_and_leave_the_champion_as_it_is(toy):
    toy.register("strong")
    before = toy.tags(1)
    for done in (toy.register("strong", **{"run.id": "another"}), toy.promote().promotion):
        assert (done.verdict, done.version.number) in (("kept", 1), ("promoted", 1))
    assert "the same weights is champion already" in done.reason
    assert toy.tags(1) == before
    assert len(registry.versions(toy.client, toy.name)) == 1


def test_without_images_to_compare_on_nothing_is_decided(toy):
    toy.register("weak")
    done = toy.register("strong", judge=None)
    assert (done.verdict, toy.at("champion"), toy.at("challenger")) == ("undecided", 1, 2)
    assert "decide with: mlflow run . -e promote" in done.reason
    assert toy.promote().promotion.verdict == "promoted"


def test_trouble_with_the_store_is_not_taken_for_a_verdict(toy, monkeypatch):
    def broken(*_):
        raise MlflowException("database is locked", error_code=INTERNAL_ERROR)

    toy.register("weak")
    with monkeypatch.context() as patch, pytest.raises(MlflowException, match="locked"):
        patch.setattr(registry, "files_of", broken)
        toy.register("strong")
    with monkeypatch.context() as patch, pytest.raises(MlflowException, match="locked"):
        patch.setattr(toy.client, "get_model_version_by_alias", broken)
        toy.register("strong")
    assert toy.at("champion") == 1


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_leaves_its_evidence_in_a_run(toy):
    toy.register("weak")
    toy.register("strong", judge=None)

    decision = toy.promote()

    run = toy.client.get_run(decision.run_id)
    evidence = json.loads(Path(toy.client.download_artifacts(decision.run_id, "evidence.json")).read_text())
    assert run.info.status == "FINISHED"
    assert (run.data.tags["kind"], run.data.tags["promotion.verdict"]) == ("promote", "promoted")
    assert run.data.tags["data.digest"] == toy.trained.prepared.manifest.digest
    assert run.data.tags["model"] == f"models:/{toy.name}/2"
    assert run.data.params["promote.alpha"] == "0.05"
    assert evidence["champion"]["model"] == f"models:/{toy.name}/1"
    assert evidence["images"] == toy.trained.prepared.manifest.num_of("test")
    assert evidence["data.digest"] == toy.trained.prepared.manifest.digest
    assert run.data.metrics["promotion_difference"] == evidence["difference"]["value"]
    assert evidence["difference"]["value"] == pytest.approx(right(toy, "strong").mean() - right(toy, "weak").mean())
    assert len(evidence["classes"]) == 10
    assert promotion.lines(decision)[1] == f"  champion: models:/{toy.name}/2"


def test_each_look_at_the_test_images_is_counted_in_the_runs_of_both_models(toy):
    toy.register("weak")
    toy.register("strong", judge=None)
    before = [_reads(toy, kind) for kind in ("weak", "strong")]
    toy.promote()
    assert [_reads(toy, kind) for kind in ("weak", "strong")] == [count + 1 for count in before]
    toy.client.set_tag(toy.zoo("weak").run_id, "test.reads", "7")
    toy.register("level")  # against the strong one
    assert _reads(toy, "weak") == 7


def _reads(toy, kind):
    return int(toy.client.get_run(toy.zoo(kind).run_id).data.tags.get("test.reads", 1))


def test_the_rules_of_the_configuration_decide(toy):
    toy.register("weak")
    assert toy.register("strong", rules={"min_gain": 0.9}).verdict == "kept"
    assert toy.promote("--min_gain", "0.9").promotion.reason.startswith("better by less than promote.min_gain=0.9")
    assert toy.promote("--max_latency_ratio", "1000", "--alpha", "0.01").promotion.verdict == "promoted"


@pytest.mark.parametrize(("other_data", "verdict"), [("refuse", "kept"), ("compare", "promoted")])
def test_a_champion_that_was_tested_on_other_images_is_kept_unless_the_rules_say_otherwise(toy, other_data, verdict):
    toy.register("weak", **{"test.digest": "another"})
    toy.register("strong", rules={"other_data": "compare", "min_gain": 0.9})
    assert "promotion.p_value" in toy.tags(2)
    done = toy.register("strong", rules={"other_data": other_data})
    assert done.verdict == verdict
    refusal = f"models:/{toy.name}/1 was tested on other images than 'digits' holds now in its test split: no comparison"
    assert (refusal in done.reason) == (verdict == "kept")
    assert ("promotion.p_value" in toy.tags(2)) == (verdict == "promoted"), "none is left of a comparison before"


@pytest.mark.parametrize(
    ("split", "tags", "expected"),
    [
        ("test", {"test.digest": "here", "data.digest": "here"}, True),
        ("test", {"test.digest": "here", "data.digest": "other"}, True),
        ("test", {"test.digest": "other", "data.digest": "here"}, False),
        ("test", {"data.digest": "here"}, True),
        ("test", {"data.digest": "other"}, False),
        ("test", {}, False),
        ("val", {"test.digest": "here", "data.digest": "other"}, False),
        ("val", {"test.digest": "here", "data.digest": "here"}, True),
    ],
    ids=[
        "same",
        "more to train on",
        "other images",
        "before digests",
        "before, other",
        "nothing known",
        "other val",
        "same val",
    ],
)
def test_what_a_model_was_tested_on_is_known_by_the_digest_of_those_images(toy, split, tags, expected):
    manifest = toy.trained.prepared.manifest
    here = {"test.digest": contest.digest_of(manifest, "test"), "data.digest": manifest.digest}
    version = registry.Version("x", 1, "r", {key: here[key] if value == "here" else value for key, value in tags.items()})
    assert toy.contest(split)._is_tested_here(version) == expected


def test_the_digest_of_a_split_names_its_images_and_labels_and_nothing_else(trained):
    manifest = trained.prepared.manifest
    indices = manifest.indices("test")
    order = np.random.default_rng(0).permutation(len(manifest))
    text = {"id": np.asarray(manifest.ids)[order].tolist()}
    shuffled = replace(manifest, labels=manifest.labels[order], splits=manifest.splits[order], read_column=text.__getitem__)
    labels, splits = manifest.labels.copy(), manifest.splits.copy()
    labels[indices[0]] += 1
    splits[indices[0]] = 0
    others = [
        replace(manifest, labels=labels),
        replace(manifest, splits=splits),
        replace(manifest, classes=manifest.classes[1:]),
    ]
    same = [manifest, shuffled, replace(manifest, digest="other")]
    digests = [contest.digest_of(one, "test") for one in (*same, *others)]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 4


def test_a_model_of_other_classes_is_kept_after_training_and_refused_by_the_command(toy):
    toy.register("renamed")
    done = toy.register("strong")
    assert (done.verdict, toy.at("champion")) == ("kept", 1)
    assert "was trained for other classes than 'digits' has" in done.reason
    with pytest.raises(UserError, match=f"models:/{toy.name}/1 was trained for other classes"):
        toy.promote()
    assert toy.at("champion") == 1


def test_models_of_other_sizes_see_the_same_images_each_at_its_own(toy, store):
    toy.register("weak")
    done = toy.register("small")
    small = preparation.open_or_prepare(DataConfig(image_size=24), TrackingConfig(uri=store[1]), toy.tracker)
    assert small.image_size == 24, "prepared for it, and not again"
    assert contest.digest_of(small.manifest, "test") == contest.digest_of(toy.trained.prepared.manifest, "test")
    assert (done.verdict, done.version.number) == ("promoted", 2)
    assert f"on the same {small.manifest.num_of('test')} images" in done.reason


def test_a_version_whose_files_were_changed_moves_nothing(toy):
    toy.register("weak")
    toy.register("strong", judge=None)
    for kind in ("weak", "strong"):
        with toy.damaged(kind), pytest.raises(UserError, match=r"weights\.safetensors has changed"):
            toy.promote()
    with toy.damaged("weak"):
        later = toy.register("level")
    assert (later.verdict, toy.at("champion")) == ("undecided", 1)
    assert "weights.safetensors has changed" in later.reason


def test_a_model_that_gives_no_numbers_moves_nothing(toy):
    toy.register("strong")
    done = toy.register("broken")
    assert (done.verdict, toy.at("champion")) == ("undecided", 1)
    with pytest.raises(UserError, match=f"models:/{toy.name}/2 gives no finite numbers for 3.. of 3.. images"):
        toy.promote()
    assert toy.at("champion") == 1


def test_an_empty_split_moves_nothing(toy, monkeypatch):
    toy.register("weak", **{"test.digest": None})
    toy.register("strong", judge=None, **{"test.digest": None})
    prepared = toy.trained.prepared
    empty = replace(prepared, manifest=replace(prepared.manifest, splits=np.zeros_like(prepared.manifest.splits)))
    monkeypatch.setattr(preparation, "open_or_prepare", lambda *_: empty)
    with pytest.raises(UserError, match="the test split of 'digits' has no images"):
        toy.promote()
    assert toy.at("champion") == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/{name}@challengr", "has no 'challengr'; it has @"),
        ("models:/{name}/9", "has no '9'; it has @"),
        ("models:/nobody-classifier@challenger", "there is no registered model 'nobody-classifier'"),
        ("runs:/{run}", "its model is not registered; train with promote.auto=always"),
        ("strong", "is no model address"),
    ],
    ids=["alias", "number", "name", "run", "nonsense"],
)
def test_what_is_not_there_is_one_line_and_makes_no_run(toy, address, message):
    toy.register("strong")
    before = len(toy.client.search_runs(["0"], "tags.kind = 'promote'"))
    with pytest.raises(UserError) as caught:
        toy.promote(model=address.format(name=toy.name, run=toy.zoo("level 6").run_id))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(toy.client.search_runs(["0"], "tags.kind = 'promote'")) == before


def test_a_challenger_may_be_named_by_its_run(toy):
    toy.register("weak")
    toy.register("strong 7", judge=None)
    assert toy.promote(model=f"runs:/{toy.zoo('strong 7').run_id}").promotion.verdict == "promoted"


def test_the_challenger_of_the_data_is_judged_where_none_is_named(store, trained, tracker):
    with pytest.raises(UserError, match="'digits-classifier' has no 'challenger'"):
        promotion.run(load(PromoteConfig, [*PARAMS, *store]), tracker)


# ---- the way back ----------------------------------------------------------------------------------------------------


def test_rollback_goes_back_champion_by_champion(toy):
    for kind in ("weak", "level", "strong"):
        toy.register(kind, rules={"alpha": 0.9})
    assert [toy.tags(number).get("promotion.previous") for number in (1, 2, 3)] == [None, "1", "2"]
    assert toy.at("champion") == 3

    first, second = toy.roll_back(), toy.roll_back()

    assert (first.champion, second.champion) == (f"models:/{toy.name}/2", f"models:/{toy.name}/1")
    assert [toy.tags(number)["promotion.verdict"] for number in (1, 2, 3)] == ["promoted", "rolled back", "rolled back"]
    assert toy.tags(3)["promotion.reason"] == f"models:/{toy.name}/2 is champion again"
    run = toy.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["kind"]) == ("FINISHED", "promote")
    assert run.data.tags["promotion.verdict"] == "rolled back"
    with pytest.raises(UserError, match=f"models:/{toy.name}/1 took its place from no other version"):
        toy.roll_back()
    assert toy.promote(model=f"models:/{toy.name}/3").promotion.verdict == "promoted", "and forward again"
    assert toy.tags(3)["promotion.previous"] == "1"


def test_rollback_asks_the_version_once_more_before_it_gives_it_the_place(toy, checked):
    for kind in ("weak", "strong"):
        toy.register(kind)
    checked.clear()
    toy.roll_back()
    assert len(checked) == 1


def test_a_version_that_was_rolled_back_is_judged_again_only_where_it_is_named(toy):
    for kind in ("weak", "strong"):
        toy.register(kind)
    toy.roll_back()
    with pytest.raises(UserError, match=f"models:/{toy.name}/2 was rolled back; to have it judged again, name it"):
        toy._command("--data.name", toy.label)
    assert toy.at("champion") == 1
    assert toy.promote(model=f"models:/{toy.name}/2").champion == f"models:/{toy.name}/2"


def test_rollback_without_a_champion_is_one_line(toy):
    with pytest.raises(UserError, match=f"{toy.name} has no champion: nothing to roll back"):
        toy.roll_back()


def test_rollback_never_goes_to_files_that_have_changed_or_are_gone(toy):
    toy.register("weak")
    toy.register("strong")
    with toy.damaged("weak"), pytest.raises(UserError, match=r"weights\.safetensors has changed"):
        toy.roll_back()
    toy.client.delete_model_version(toy.name, "1")
    with pytest.raises(UserError, match="version 1 of .*, the champion before, was deleted"):
        toy.roll_back()
    assert (toy.at("champion"), toy.tags(2)["promotion.verdict"]) == (2, "promoted")


# ---- kills and races -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours that matters runs after it."""


@pytest.mark.parametrize(
    ("way", "place"),
    [
        *(("training", place) for place in ("before_version", "after_version", "before_alias", "after_alias")),
        *(("command", "before_alias"), ("command", "after_alias"), ("rollback", "before_alias"), ("rollback", "after_alias")),
    ],
)
def test_killed_between_two_steps_the_same_command_ends_in_the_same_state(toy, monkeypatch, way, place):
    toy.register("weak")
    if way != "training":
        toy.register("strong", judge=... if way == "rollback" else None)
    act = {"training": lambda: toy.register("strong"), "command": toy.promote, "rollback": toy.roll_back}[way]

    def reach(name):
        if name == f"release.{place}":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(failpoints, "reach", reach)
        act()
    assert toy.at("champion") in (1, 2)
    done = act()

    verdict = done.verdict if way == "training" else done.promotion.verdict
    champion, previous = (1, "1") if way == "rollback" else (2, "1")
    assert (toy.at("champion"), toy.tags(2)["promotion.previous"]) == (champion, previous)
    assert toy.tags(2)["promotion.verdict"] == ("rolled back" if way == "rollback" else "promoted")
    assert [version.number for version in registry.versions(toy.client, toy.name)] == [1, 2]
    if (way, place) != ("command", "after_alias"):
        assert verdict == toy.tags(2)["promotion.verdict"]
    if way == "rollback":
        assert toy.client.get_run(done.run_id).info.status == "FINISHED"
        assert toy.tags(2)["promotion.evidence"] == done.run_id


def test_first_never_replaces_a_champion_that_came_in_the_same_moment(toy, monkeypatch):
    real, between = registry.register, []

    def register(*args, **options):
        if not between:
            between.append("weak")
            toy.register("weak")
        return real(*args, **options)

    monkeypatch.setattr(registry, "register", register)
    found = toy.register("strong", auto="first")
    assert (found.verdict, found.version.number) == ("undecided", 2)
    assert "became champion meanwhile" in found.reason
    assert toy.at("champion") == 1


@pytest.mark.parametrize(
    ("late", "early", "alpha", "champion", "verdict"),
    [("level", "strong", "0.05", "strong", "undecided"), ("strong", "level", "0.9", "strong", "promoted")],
    ids=["the early one is better", "the late one is better"],
)
def test_who_finds_another_champion_than_it_was_judged_against_is_judged_again(
    toy, monkeypatch, late, early, alpha, champion, verdict
):
    toy.register("weak")
    number = {kind: toy.register(kind, judge=None).version.number for kind in (late, early)}
    real, between = Contest.judge, []

    def judge(self, ours, theirs):
        found = real(self, ours, theirs)
        if not between:  # while the late one looks at its verdict, the early one comes first
            between.append(ours)
            between.append(toy.promote("--alpha", alpha, model=f"models:/{toy.name}/{number[early]}"))
        return found

    monkeypatch.setattr(Contest, "judge", judge)
    done = toy.promote("--alpha", alpha, model=f"models:/{toy.name}/{number[late]}").promotion

    assert (done.verdict, between[1].promotion.verdict) == (verdict, "promoted")
    assert toy.at("champion") == number[champion]
    assert toy.tags(number[early])["promotion.previous"] == "1"
    assert toy.tags(number[late]).get("promotion.previous") == (str(number[early]) if verdict == "promoted" else None)


def test_two_who_promote_at_once_leave_one_champion_and_a_whole_chain(toy, store, monkeypatch):
    toy.register("weak")
    for kind in ("strong", "level"):
        toy.register(kind, judge=None)
    both_have_judged, real = threading.Barrier(2, timeout=60), Contest.judge
    judged = threading.local()

    def judge(self, ours, theirs):
        found = real(self, ours, theirs)
        if not getattr(judged, "once", False):
            judged.once = True
            both_have_judged.wait()
        return found

    monkeypatch.setattr(Contest, "judge", judge)
    verdicts, trackers = {}, tracking.open_tracker(TrackingConfig(uri=store[1]))
    with trackers as second:

        def promote(number, tracker):
            verdicts[number] = toy.promote(model=f"models:/{toy.name}/{number}", tracker=tracker).promotion.verdict

        others = [threading.Thread(target=promote, args=pair) for pair in ((2, toy.tracker), (3, second))]
        for one in others:
            one.start()
        for one in others:
            one.join(120)

    champion = toy.at("champion")
    other = 5 - champion
    assert sorted(verdicts.values()) == ["promoted", "undecided"]
    assert (verdicts[champion], toy.tags(champion)["promotion.previous"]) == ("promoted", "1")
    assert (toy.tags(other)["promotion.verdict"], toy.tags(other).get("promotion.previous")) == ("undecided", None)
