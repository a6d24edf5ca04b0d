"""What was stored is what comes back, once: models, versions and aliases through kills, races and flipped bits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks import bit_flips
from tests.faults import models_in_store
from tracked_cls import registry, tracking
from tracked_cls.config import TrackingConfig
from tracked_cls.errors import UserError
from tracked_cls.serving import packaging


@pytest.fixture(scope="module")
def client(store):
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as opened:
        return opened.client


@pytest.fixture(scope="module")
def experiment(client, tmp_path_factory):
    """An experiment of this module's own in the session's store."""
    return client.create_experiment("integrity", artifact_location=tmp_path_factory.mktemp("artifacts").as_uri())


@pytest.fixture
def log(client, experiment, tmp_path, store):
    """Log a tiny model; `log.models(run)` lists what a run has logged, `log.files(address)` is where its files are."""
    mlflow.set_tracking_uri(store[1])

    def go(digest="d1", run_id=None):
        return models_in_store.log(client, experiment, tmp_path, digest, run_id)

    go.models = lambda run_id: client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    go.files = lambda uri: Path(urlsplit(client.get_logged_model(uri.removeprefix("models:/")).artifact_location).path)
    return go


@pytest.fixture
def name(request):
    return f"{request.node.name[:60].replace('[', '-').rstrip(']')}-classifier".replace(" ", "-")


def register(client, name, logged, digest="d1"):
    uri, run_id = logged
    return registry.register(client, name, uri, run_id=run_id, tags={"weights.digest": digest})


def numbers(client, name):
    return sorted(int(version.version) for version in client.search_model_versions(f"name='{name}'"))


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_model_is_read_from_the_store_of_its_client_whatever_the_process_used_last(log, client, name, tmp_path):
    logged = log()
    version = register(client, name, logged)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    try:
        for address in (logged[0], version.uri, f"runs:/{logged[1]}"):
            bundle, _ = registry.resolve(client, address)
            assert bundle.meta.exists()
    finally:
        mlflow.set_tracking_uri(client.tracking_uri)
    assert not (tmp_path / "elsewhere.db").exists()


# ---- logged once -----------------------------------------------------------------------------------------------------


def test_logging_the_same_weights_again_gives_the_same_model(log):
    uri, run_id = log()
    assert log(run_id=run_id) == (uri, run_id)
    assert [model.status for model in log.models(run_id)] == ["READY"]


def test_other_weights_of_a_run_are_another_model(log, client):
    uri, run_id = log()
    other, _ = log("d2", run_id)
    assert other != uri
    assert registry.resolve(client, f"runs:/{run_id}")[1] == other, "the newest counts"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("call", ["log_outputs", "set_logged_model_tags", "log_model_artifacts", "finalize_logged_model"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_model_half_logged_when_its_process_died_is_logged_whole(log, client, monkeypatch, call, moment):
    run_id = client.create_run(client.get_experiment_by_name("integrity").experiment_id).info.run_id
    real = getattr(MlflowClient, call)

    def dying(*args, **kwargs):
        if moment == "after":
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, call, dying)
        log(run_id=run_id)
    uri, _ = log(run_id=run_id)
    assert [(model.status, model.model_uri) for model in log.models(run_id)] == [("READY", uri)]
    assert registry.resolve(client, f"runs:/{run_id}")[1] == uri
    was_whole = (call, moment) == ("finalize_logged_model", "after")
    outputs = client.get_run(run_id).outputs.model_outputs
    assert len(outputs) == (1 if was_whole or (call, moment) == ("log_outputs", "before") else 2)


def test_a_model_that_was_not_logged_to_its_end_is_refused(log, client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", lambda *_: None)
        uri, run_id = log()
    with pytest.raises(UserError, match="not logged to its end"):
        registry.resolve(client, uri)
    with pytest.raises(UserError, match="the run logged no model"):
        registry.resolve(client, f"runs:/{run_id}")


def test_the_logged_model_shows_params_and_the_metrics_without_epoch(log, client, experiment):
    run_id = client.create_run(experiment).info.run_id
    client.log_param(run_id, "model", "small_cnn")
    client.log_metric(run_id, "test_accuracy", 0.5)
    client.log_metric(run_id, "val_loss", 0.7, step=1)
    uri, _ = log(run_id=run_id)
    (model,) = log.models(run_id)
    assert model.params == {"model": "small_cnn"}
    assert [(metric.key, metric.value) for metric in model.metrics] == [("test_accuracy", 0.5)]
    assert json.loads(model.tags[packaging.FILES]) == packaging.file_digests(log.files(uri))


# ---- one version per weights -----------------------------------------------------------------------------------------


def test_a_version_carries_the_digest_of_every_file(log, client, name):
    logged = log()
    version = register(client, name, logged)
    promised = json.loads(client.get_model_version(name, "1").tags[packaging.FILES])
    assert promised == packaging.file_digests(log.files(logged[0]))
    assert {"MLmodel", "artifacts/model.onnx", "artifacts/weights.safetensors", "artifacts/meta.json"} <= set(promised)
    assert version.tags["weights.digest"] == "d1"


def test_two_who_register_the_same_weights_at_once_get_one_version(log, client, store, name, monkeypatch):
    logged = log()
    both_have_looked = threading.Barrier(2, timeout=30)
    real, looked = registry._holding, threading.local()

    def look(*args):
        found = real(*args)
        if not getattr(looked, "once", False):
            looked.once = True
            both_have_looked.wait()
        return found

    monkeypatch.setattr(registry, "_holding", look)
    got = []
    workers = [
        threading.Thread(target=lambda: got.append(register(MlflowClient(store[1]), name, logged).number)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert got == [1, 1]
    assert numbers(client, name) == [1]


def test_a_registered_model_made_meanwhile_is_used(log, client, name, monkeypatch):
    logged, real = log(), MlflowClient.get_registered_model

    def too_late(self, wanted):
        try:
            return real(self, wanted)
        except MlflowException:
            client.create_registered_model(wanted)
            raise

    monkeypatch.setattr(MlflowClient, "get_registered_model", too_late)
    assert register(client, name, logged).number == 1


REGISTER = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import mlflow
from tracked_cls import registry
mlflow.set_tracking_uri({store!r})
client = mlflow.MlflowClient()
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    tags = {{"weights.digest": str(number)}}
    print(registry.register(client, {name!r}, {uri!r}, run_id={run_id!r}, tags=tags).number, flush=True)
"""


@pytest.mark.slow
def test_processes_that_register_ten_models_at_once_make_ten_versions(log, client, store, name):
    uri, run_id = log()
    code = REGISTER.format(path=sys.path, store=store[1], name=name, uri=uri, run_id=run_id)
    pipe = subprocess.PIPE
    workers = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert said[0] == said[1]
    assert sorted(map(int, said[0])) == numbers(client, name)
    assert len(numbers(client, name)) == 10


def test_a_second_version_left_by_a_killed_process_goes_and_the_champion_stays(log, client, name):
    uri, run_id = logged = log()
    first = register(client, name, logged)
    registry.set_alias(client, first, "champion")
    client.create_model_version(name, source=uri, run_id=run_id, tags=dict(first.tags), model_id=uri.removeprefix("models:/"))
    assert numbers(client, name) == [1, 2]
    assert register(client, name, logged).number == 1
    assert numbers(client, name) == [1]
    assert registry.by_alias(client, name, "champion").number == 1


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "a/b", "a:b", "o'brien", "a\nb", "a\0b", "", "x" * 129, "é"])
def test_a_name_that_is_no_name_is_refused_in_one_line(client, bad):
    with pytest.raises(UserError, match="cannot name a registered model") as caught:
        registry.register(client, bad, "models:/m-1", run_id="r", tags={"weights.digest": "d"})
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        *("models:/../x/1", "models:/x/../1", "models:/x@../y", "models:/x@a\n", "models:/x\0/1", "runs:/../x", "runs:/a/b"),
        *("/etc/passwd", "file:///etc/passwd", f"models:/{'x' * 999}/1", "models:/x/1/artifacts", "http://ann:pw@host/x"),
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(client, address):
    with pytest.raises(UserError, match="is no model address") as caught:
        registry.resolve(client, address)
    assert "\n" not in str(caught.value)
    assert "pw@" not in str(caught.value)


# ---- flipped bits ----------------------------------------------------------------------------------------------------


KINDS = (
    *("checkpoint", "its digest", "pixel cache", "shards of encoded files", "manifest and description", "COMPLETE"),
    "registered model",
)


@pytest.fixture(scope="module")
def kinds(client, tmp_path_factory):
    return {kind.name: kind for kind in bit_flips.kinds(tmp_path_factory.mktemp("flips"), client)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_seen_and_a_damaged_checkpoint_gives_way_to_the_one_before(kinds, kind):
    found = bit_flips.flip_all(kinds[kind], flips=20, seed=1)
    assert (found.seen, found.flips) == (20, 20)
    assert found.named == 20 or kind == "COMPLETE", "a flip in the list of digests is said of the file whose digest it hit"


def test_flips_are_tried_on_every_kind(kinds):
    assert tuple(kinds) == KINDS


def test_one_flipped_bit_in_any_file_of_a_model_is_refused_by_name(log, client, name):
    logged = log()
    registry.set_alias(client, register(client, name, logged), "champion")
    folder = log.files(logged[0])
    files = [path for path in packaging.file_digests(folder) if (folder / path).stat().st_size]
    assert len(files) > 10
    for number, file in enumerate(files):
        address = [logged[0], f"models:/{name}/1", f"models:/{name}@champion", f"runs:/{logged[1]}"][number % 4]
        bit = (number * 7919) % ((folder / file).stat().st_size * 8)
        flip(folder / file, bit)
        with pytest.raises(UserError, match=f"{file} has changed since the model was logged"):
            registry.resolve(client, address)
        flip(folder / file, bit)
        assert registry.resolve(client, address)[0].folder == folder / "artifacts"


@pytest.mark.parametrize("what", ["is missing", "does not belong to it"])
def test_a_file_that_went_or_came_is_refused_by_name(log, client, what):
    uri, _ = log()
    file = log.files(uri) / ("MLmodel" if what == "is missing" else "code/numpy.py")
    if what == "is missing":
        file.unlink()
    else:
        file.write_text("import os")
    with pytest.raises(UserError, match=f"{file.name} {what} since the model was logged"):
        registry.resolve(client, uri)


def test_a_model_that_was_used_where_it_is_stored_is_still_what_was_logged(log, client):
    uri, _ = log()
    (package,) = (log.files(uri) / "code").glob("tc_*")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "errors.cpython-312.pyc").write_bytes(b"compiled")
    (log.files(uri) / "registered_model_meta").write_text("model_name: x")
    assert registry.resolve(client, uri)[1] == uri


def test_an_alias_never_moves_to_a_version_that_has_changed(log, client, name):
    good, bad = log("d1"), log("d2")
    registry.set_alias(client, register(client, name, good), "champion")
    version = register(client, name, bad, "d2")
    flip(log.files(bad[0]) / "artifacts" / "weights.safetensors", 12_345)
    with pytest.raises(UserError, match=r"weights\.safetensors has changed"):
        registry.set_alias(client, version, "champion")
    assert registry.by_alias(client, name, "champion").number == 1
    assert registry.resolve(client, f"models:/{name}@champion")[1] == f"models:/{name}/1"
