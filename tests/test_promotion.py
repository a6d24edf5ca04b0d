"""What is registered, and which version becomes champion."""

import itertools

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from tracked_cls import promotion, registry, tracking
from tracked_cls.config import TrackingConfig

NUMBERS = itertools.count()


@pytest.fixture
def tracker(store, trained):
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as opened:
        yield opened


@pytest.fixture
def register(tracker, trained):
    """Register the session's model under a name of the test's own, with tags as if it were another model."""
    name = f"toy{next(NUMBERS)}-classifier"

    def go(weights, accuracy=0.9, data="d1", auto="always"):
        tags = {"run.id": trained.run_id, "weights.digest": weights, "data.digest": data, "test_accuracy": str(accuracy)}
        return promotion.register(tracker, name, trained.model_uri, tags=tags, compare=auto == "always")

    go.alias = lambda alias: registry.by_alias(tracker.client, name, alias)
    return go


@pytest.mark.parametrize("auto", ["first", "always"])
def test_the_first_version_becomes_champion(register, auto):
    done = register("a", auto=auto)
    assert (done.verdict, done.version.number) == ("promoted", 1)
    assert register.alias("champion").number == 1
    challenger = register.alias("challenger")
    assert challenger is None if auto == "first" else challenger.number == 1


def test_first_registers_only_while_there_is_no_champion(register):
    register("a")
    done = register("b", accuracy=0.99, auto="first")
    assert (done.verdict, done.version) == ("not registered", None)
    assert "promote.auto=always would compare with it" in done.reason


@pytest.mark.parametrize(
    ("accuracy", "data", "verdict", "champion", "reason"),
    [
        (0.95, "d1", "promoted", 2, "test_accuracy 0.9500 against 0.9000"),
        (0.90, "d1", "kept", 1, "test_accuracy 0.9000 against 0.9000"),
        (0.85, "d1", "kept", 1, "test_accuracy 0.8500 against 0.9000"),
        (0.99, "d2", "kept", 1, "was tested on other data (d1): no comparison"),
    ],
    ids=["better", "equal", "worse", "other data"],
)
def test_a_later_version_becomes_champion_by_the_rule(register, accuracy, data, verdict, champion, reason):
    register("a", accuracy=0.90)
    done = register("b", accuracy=accuracy, data=data)
    assert (done.verdict, done.version.number) == (verdict, 2)
    assert reason in done.reason
    assert register.alias("champion").number == champion
    assert register.alias("challenger").number == 2


def test_the_verdict_stands_on_the_version(register):
    register("a")
    register("b", accuracy=0.5)
    tags = register.alias("challenger").tags
    assert tags["promotion.verdict"] == "kept"
    assert "0.5000 against 0.9000" in tags["promotion.reason"]


def test_the_same_weights_make_no_second_version_and_leave_the_champion_as_it_is(register):
    register("a")
    again = register("a")
    assert (again.verdict, again.version.number) == ("kept", 1)
    assert register.alias("champion").tags["promotion.verdict"] == "promoted"
    assert register.alias("challenger").number == 1


def test_trouble_with_the_store_is_not_taken_for_a_missing_champion(tracker, trained, monkeypatch):
    def broken(*_):
        raise MlflowException("database is locked", error_code=INTERNAL_ERROR)

    monkeypatch.setattr(tracker.client, "get_model_version_by_alias", broken)
    tags = {"run.id": trained.run_id, "weights.digest": "z", "data.digest": "d1", "test_accuracy": "0.5"}
    with pytest.raises(MlflowException, match="locked"):
        promotion.register(tracker, "digits-classifier", trained.model_uri, tags=tags, compare=True)
