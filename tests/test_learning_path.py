"""How a network learns, end to end: each option of the loop in a tracked run on the digits."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import do, fast
from tracked_cls import checkpoint, experiment, pipeline, registry, tracking, training
from tracked_cls.config import MainConfig, TrainConfig, load
from tracked_cls.errors import StopRun, UserError
from tracked_cls.step import Stepper

SMALL = {"threads": 1, "limit": 100, "epochs": 2, "batch_size": 32, "promote__auto": "never"}


def train(store, **options):
    return do(experiment.run, TrainConfig, [*fast(**{**SMALL, **options}), *store])


def artifacts(client, run_id, folder):
    return {item.path.rpartition("/")[2] for item in client.list_artifacts(run_id, folder)}


def values(client, run_id, key):
    return [metric.value for metric in sorted(client.get_metric_history(run_id, key), key=lambda metric: metric.step)]


def weights_of(client, outcome):
    return load_file(registry.resolve(client, f"runs:/{outcome.run_id}")[0].weights)


def rows(client, run_id, path, tmp_path):
    with Path(client.download_artifacts(run_id, path, str(tmp_path))).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# ---- debug modes -----------------------------------------------------------------------------------------------------


def test_a_fast_run_takes_one_step_through_everything(store, client):
    outcome = train(store, fast_dev_run="true", epochs=7, limit="off", promote__auto="always")
    assert len(values(client, outcome.run_id, "train_loss")) == 1
    assert outcome.promotion.reason == "fast_dev_run: the model of a debug run is not registered"
    assert outcome.model_uri.startswith("models:/")
    assert sum(int(row["support"]) for row in outcome.test.per_class) == 32


def test_overfitting_learns_the_same_batches_by_heart(store, client):
    outcome = train(store, overfit_batches=1, epochs=40, optimizer__lr=0.01, limit="off")
    assert values(client, outcome.run_id, "train_accuracy")[-1] == 1.0
    assert outcome.val_accuracy == 1.0  # validated on what it was trained on
    assert outcome.promotion.reason == "overfit_batches: the model of a debug run is not registered"


def test_a_profile_is_a_picture_and_a_table(store, client, capsys):
    outcome = train(store, training__profile="true", batch_size=8)
    assert "profile.png" in artifacts(client, outcome.run_id, "plots")
    assert "profile.csv" in artifacts(client, outcome.run_id, "tables")
    assert "profile of 10 steps: data " in capsys.readouterr().out


def test_main_says_at_once_that_it_needs_a_model_that_is_kept(store):
    words = [*fast(**SMALL), *store, "--transforms.eval", "[RandomInvert]"]
    with pytest.raises(UserError, match=r"transforms.eval: a model that needs RandomInvert is not kept.*use train"):
        do(pipeline.run, MainConfig, words)


# ---- weights to begin with -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["run", "version", "file"])
def test_training_starts_from_weights_of(store, trained, client, tmp_path, address):
    bundle, _ = registry.resolve(client, f"runs:/{trained.run_id}")
    name = {
        "run": f"runs:/{trained.run_id}",
        "version": "models:/digits-classifier@champion",
        "file": str(tmp_path / "own.safetensors"),
    }[address]
    save_file(load_file(bundle.weights), tmp_path / "own.safetensors")
    outcome = train(store, model__weights=name, epochs=1, optimizer__lr=1e-8, training__bn_images="off")
    assert outcome.val_accuracy > 0.9  # nothing was learned here
    table = rows(client, outcome.run_id, "tables/weights.csv", tmp_path)
    assert {row[table[0].index("status")] for row in table[1:]} == {"loaded"}


def test_without_weights_nothing_is_known(store):
    assert train(store, epochs=1, optimizer__lr=1e-8).val_accuracy < 0.5


def test_a_frozen_part_stays_bit_equal_and_the_head_learns(store, trained, client):
    before = load_file(registry.resolve(client, f"runs:/{trained.run_id}")[0].weights)
    outcome = train(store, model__weights=f"runs:/{trained.run_id}", freeze__all_but_head="true")
    after = weights_of(client, outcome)
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"head.1.weight", "head.1.bias"}


def test_what_was_frozen_for_an_epoch_learns_after_it(store, client):
    options = {"freeze__layers": "[features.0]", "epochs": 4, "limit": 300}
    frozen, thawed = train(store, **options), train(store, **options, freeze__epochs=1)
    assert thawed.best_epoch > 1
    name = "features.0.weight"
    assert not torch.equal(weights_of(client, frozen)[name], weights_of(client, thawed)[name])


def test_a_teacher_is_learned_from(store, trained, client):
    plain = train(store, seed=3)
    taught = train(store, seed=3, loss__teacher=f"runs:/{trained.run_id}", loss__temperature=4, loss__alpha=0.9)
    assert values(client, plain.run_id, "train_loss") != values(client, taught.run_id, "train_loss")
    # most of what a teacher says of an image comes without its label
    assert taught.val_accuracy > 0.3


def test_a_teacher_of_other_classes_is_refused(store, trained, tmp_path, client):
    from PIL import Image

    for name in ("cat", "dog"):
        for index in range(12):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 10 * index + (name == "dog")).save(tmp_path / "in" / name / f"{index}.png")
    with pytest.raises(UserError, match="loss.teacher was trained for other classes"):
        train(store, data__source="folder", data__root=str(tmp_path / "in"), limit="off", data__store=str(tmp_path / "data"),
              loss__teacher=f"runs:/{trained.run_id}")  # fmt: skip


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_training_that_gets_no_better_stops_and_says_its_best_epoch(store, client, capsys):
    outcome = train(store, epochs=9, training__patience=2, training__min_delta=0.95)
    scores = values(client, outcome.run_id, "val_accuracy")
    assert len(scores) == 3  # the first counts as better than none, and no other can be by 0.95
    said = capsys.readouterr().out
    best = scores.index(max(scores)) + 1
    assert f"stopped early: no better val_accuracy in 2 epochs; the best is {max(scores):.4f} of epoch {best}" in said
    line = re.search(r"^epoch 3/9  (.*)$", said, flags=re.MULTILINE).group(1)
    named = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "s", "images/s")
    assert all(re.search(rf"(?<![\w/]){name}(?!\w)", line) for name in named), line


def test_training_ends_after_so_many_steps(store, client):
    outcome = train(store, epochs=50, training__max_steps=6)  # 4 steps an epoch
    assert len(values(client, outcome.run_id, "train_loss")) == 2


def test_the_moving_average_is_what_is_logged(store, client):
    plain, moving = train(store), train(store, training__ema=0.9)
    assert values(client, plain.run_id, "train_loss") == values(client, moving.run_id, "train_loss")
    assert values(client, plain.run_id, "val_loss") != values(client, moving.run_id, "val_loss")
    assert plain.test.metrics["loss"] != moving.test.metrics["loss"]


def test_the_average_of_the_best_epochs_is_kept_where_it_validates_no_worse(store, client, capsys):
    outcome = train(store, epochs=5, training__average_best=3, limit=400)
    run = client.get_run(outcome.run_id)
    averaged, best = run.data.metrics["val_accuracy_averaged"], max(values(client, outcome.run_id, "val_accuracy"))
    kept = "the average of epochs " if averaged > best else ("the average", "epoch ")
    assert run.data.tags["weights"].startswith(kept)
    said = capsys.readouterr().out
    assert f"has val_accuracy {averaged:.4f}, epoch {outcome.best_epoch} {best:.4f}: {run.data.tags['weights']} is kept" in said
    assert f"testing the weights of {run.data.tags['weights']}" in said
    assert outcome.val_accuracy == run.data.metrics["val_accuracy_best"]


def test_an_end_that_was_interrupted_finds_what_it_needs(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(tracking.Run, "describe", lambda self, text: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(store, seed=21, epochs=3, training__average_best=2)
    assert train(store, seed=21, epochs=3, training__average_best=2).test.metrics["accuracy"] > 0


def test_a_run_whose_short_epochs_were_not_all_saved_goes_on_to_the_same_weights(store, client, monkeypatch):
    options = {"seed": 22, "epochs": 5}
    whole = train(store, **options, checkpoint__max_cost=1)
    write, written = checkpoint.write, []

    def crash(self, metrics, step=0, _log=tracking.Run.log_metrics):
        _log(self, metrics, step=step)
        if step == 4:
            raise ZeroDivisionError

    def count(content, attempt):
        written.append(content["position"]["epoch"])
        write(content, attempt)

    monkeypatch.setattr(checkpoint, "write", count)
    rare = {**options, "checkpoint__max_cost": 1e-9}
    with monkeypatch.context() as patched:
        patched.setattr(tracking.Run, "log_metrics", crash)
        with pytest.raises(ZeroDivisionError):
            train(store, **rare)
    assert written == [1]
    again = train(store, **rare)

    assert written == [1, 2, *({whole.best_epoch} - {1, 2})]  # the first end of an epoch of each start, and the best
    assert (again.weights_digest, again.best_epoch) == (whole.weights_digest, whole.best_epoch)
    assert values(client, again.run_id, "val_loss") == values(client, whole.run_id, "val_loss")


def test_the_recorded_configuration_of_a_debug_run_can_be_loaded(store, client, tmp_path):
    outcome = train(store, fast_dev_run="true", epochs=4, scheduler="cosine", scheduler__warmup_epochs=2, limit="off")
    path = client.download_artifacts(outcome.run_id, "config.yaml", str(tmp_path))
    assert load(TrainConfig, ["--params", path]).fast_dev_run


@pytest.mark.parametrize(
    ("options", "multiplies", "gains", "precise", "taken"),
    [
        ({}, True, True, True, "bf16"),
        ({}, False, True, True, "float32"),
        ({}, True, False, True, "float32"),
        ({}, True, True, False, "float32"),
        ({"performance": "exact"}, True, True, True, "float32"),
        ({"training__precision": "float32"}, True, True, True, "float32"),
    ],
    ids=["bf16", "another cpu", "no gain", "imprecise", "exact", "asked for"],
)
def test_the_fastest_sound_precision_is_taken_and_recorded_by_its_name(
    store, client, monkeypatch, capsys, options, multiplies, gains, precise, taken
):
    monkeypatch.setattr("tracked_cls.job.multiplies_bf16", lambda device: multiplies)
    monkeypatch.setattr("tracked_cls.job.gains_from_bf16", lambda network: gains)
    monkeypatch.setattr("tracked_cls.job.is_precise", lambda network, images, compute: precise)
    outcome = train(store, **options, epochs=1, training__max_steps=1)
    assert client.get_run(outcome.run_id).data.params["training.precision"] == taken
    said = capsys.readouterr().out
    assert (", bf16," in said) is (taken == "bf16")
    assert "gives other logits" not in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2 * 100),
        ({"limit": 70}, 2 * 70),
        ({"training__max_steps": 2, "batch_size": 32, "training__accumulate": 2}, 128),
        ({"performance": "exact"}, None),
        ({"fast_dev_run": "true"}, None),
    ],
    ids=["epochs", "limit", "steps", "exact", "a try"],
)
def test_whether_compiling_pays_is_asked_with_the_images_it_is_shown_and_recorded(
    store, client, monkeypatch, options, expected
):
    asked = []
    monkeypatch.setattr("tracked_cls.job.gains_from_compiling", lambda network, count, device: bool(asked.append(count)))
    outcome = train(store, **{"epochs": 2, "training__compile": "auto", **options})
    assert asked == ([] if expected is None else [expected])
    assert client.get_run(outcome.run_id).data.params["training.compile"] == "false"


def test_a_network_that_is_worth_it_is_compiled_and_the_run_says_so(store, client, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr("tracked_cls.job.gains_from_compiling", lambda network, count, device: True)
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(network) or network)
    outcome = train(store, training__compile="auto", epochs=1)
    assert len(compiled) == 1
    assert ", compiled, 1 thread" in capsys.readouterr().out
    assert client.get_run(outcome.run_id).data.params["training.compile"] == "true"


def test_precision_that_fails_its_check_is_recorded_as_what_is_used(store, client, monkeypatch, capsys):
    monkeypatch.setattr("tracked_cls.job.is_precise", lambda network, images, compute: False)
    outcome = train(store, training__precision="fp16", epochs=1)
    assert client.get_run(outcome.run_id).data.params["training.precision"] == "float32"
    assert "gives other logits than float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"training__max_steps": 1000, "epochs": 1}, "training.max_steps=1000: epochs=1 end after 4 steps"),
        (
            {"training__max_steps": 3, "freeze__layers": "[features.0]", "freeze__epochs": 1},
            "freeze.epochs=1: the run ends in epoch 1",
        ),
        ({"training__profile": "true", "training__max_steps": 2}, "too few steps to measure"),
        ({"training__average_best": 2, "training__max_steps": 2}, "there is one epoch only"),
    ],
    ids=["steps", "freeze", "profile", "average"],
)
def test_what_has_no_effect_in_so_short_a_run_is_told(store, capsys, options, warning):
    train(store, **options)
    assert warning in capsys.readouterr().out


def test_weights_that_are_all_alike_are_told(store):
    with pytest.raises(UserError, match="loss.sample_weights has no effect: all training images have the same weight"):
        train(store, loss__sample_weights="true")


@pytest.mark.parametrize("form", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # float16 is slow on a CPU
def test_mixed_precision_trains_a_model_that_is_logged(store, client, form):
    outcome = train(store, training__precision=form, epochs=4, limit=400)
    assert outcome.test.metrics["accuracy"] > 0.5
    assert client.get_run(outcome.run_id).data.metrics["parity_max_difference"] < 1e-4


def test_the_batch_size_is_chosen_and_recorded(store, client):
    outcome = train(store, batch_size="auto", limit="off", epochs=1)
    assert client.get_run(outcome.run_id).data.params["batch_size"] == "64"  # of 1,400 images, 20 steps or more


# ---- losses that are not finite --------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(monkeypatch):
    """Make the loss of the third step of each pass not finite, until the rate is low enough."""
    taken = Stepper.step

    def step(self, batch):
        if self._state.epoch == 1 and self._state.batch == 2 and self._state.schedule.scale > 0.3:
            batch.images[0] = float("nan")
        taken(self, batch)

    monkeypatch.setattr(training.Stepper, "step", step)


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_samples(store, client, spoilt, tmp_path):
    with pytest.raises(StopRun, match="train_loss became nan in batch 3 of epoch 2 at lr .* on the samples ") as caught:
        train(store, seed=11)
    (run,) = [run for run in client.search_runs(["0"]) if run.data.tags.get("stopped") == caught.value.reason]
    assert run.info.status == "FAILED"
    table = rows(client, run.info.run_id, "tables/diverged.csv", tmp_path)
    assert table[0] == ["id", "path"]
    assert len(table) == 1 + 25


def test_a_roll_back_goes_on_from_the_last_checkpoint_at_a_lower_rate(store, client, spoilt, capsys):
    outcome = train(store, seed=12, training__on_nan="rollback")
    assert client.get_run(outcome.run_id).info.status == "FINISHED"
    assert len(values(client, outcome.run_id, "train_loss")) == 2
    said = capsys.readouterr().out
    assert "back to epoch 1, batch 0, with 0.5 of the scheduled learning rate" in said
    assert "with 0.25 of the scheduled learning rate" in said


def test_roll_backs_end_somewhere(store, monkeypatch):
    taken = Stepper.step

    def step(self, batch):
        batch.images[0] = float("nan")
        taken(self, batch)

    monkeypatch.setattr(training.Stepper, "step", step)
    with pytest.raises(StopRun, match="train_loss became nan in batch 1 of epoch 1"):
        train(store, seed=13, training__on_nan="rollback")


# ---- what a run shows ------------------------------------------------------------------------------------------------


def test_the_network_is_described_in_the_run(client, trained):
    run = client.get_run(trained.run_id)
    assert run.data.metrics["num_parameters"] == 72_666
    assert run.data.metrics["flops"] > 1e6
    assert run.data.metrics["latency_ms"] > 0
    assert {"network.png", "filters.png", "feature_maps.png", "augmented.png"} <= artifacts(client, trained.run_id, "plots")
    assert "network.csv" in artifacts(client, trained.run_id, "tables")
