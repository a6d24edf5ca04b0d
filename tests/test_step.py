"""One step of the optimizer: what accumulation, clipping, mixed precision and lack of memory do to it, and what they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from learning_data import CPU, digits, one_thread, shape_of, train_and_val  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls.config import TrainConfig
from tracked_cls.data.loaders import Feed, open_split
from tracked_cls.errors import UserError
from tracked_cls.state import TrainState
from tracked_cls.step import Diverged, Stepper, class_counts
from tracked_cls.training import EpochResult, fit

LINEAR = {"name": "sequential", "args": {"layers": ["Flatten", "Linear"]}}


@pytest.fixture(scope="module")
def small():
    return digits()


def config(**options):
    given = {
        "epochs": 2,
        "batch_size": 16,
        "model": {"name": "small_cnn"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "training": {"bn_images": None},
    }
    return TrainConfig.model_validate(given | options)


def make(cfg, prepared, compute=CPU):
    """Return a state, its stepper and the batches of the first epoch."""
    feed = Feed.create(prepared, compute, cfg.transforms, cfg.loader)
    train = open_split(feed, "train")
    state = TrainState.create(cfg, shape_of(prepared), train_images=len(train), compute=compute)
    state.model.train()
    stepper = Stepper(cfg, state, train)
    stepper.start()
    return state, stepper, train


def first_batch(cfg, train):
    size = cfg.batch_size * cfg.training.accumulate
    return next(train.train_batches(batch_size=size, seed=cfg.seed, epoch=0, start=0))


def after_one_step(cfg, prepared, compute=CPU):
    """Return the weights before and after one step."""
    state, stepper, train = make(cfg, prepared, compute)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    stepper.step(first_batch(cfg, train))
    return before, [parameter.detach().clone() for parameter in state.model.parameters()]


# ---- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 4), (8, 8), (32, 2), (2, 32)])
def test_accumulated_parts_make_the_step_of_the_whole_batch(small, batch_size, accumulate):
    whole = config(batch_size=64, model=LINEAR)  # without BatchNorm, whose statistics are those of a part
    parted = config(batch_size=batch_size, model=LINEAR, training={"bn_images": None, "accumulate": accumulate})
    for expected, own in zip(after_one_step(whole, small)[1], after_one_step(parted, small)[1], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_an_epoch_of_accumulated_steps_has_the_numbers_of_whole_ones(small):
    results = []
    for training in ({"bn_images": None}, {"bn_images": None, "accumulate": 3}):
        cfg = config(batch_size=24 // training.get("accumulate", 1), model=LINEAR, training=training)
        train, val = train_and_val(small, cfg)
        state = TrainState.create(cfg, shape_of(small), train_images=len(train), compute=CPU)
        results.append([step for step in fit(state, cfg, train=train, val=val) if isinstance(step, EpochResult)])
    for one, other in zip(*results, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)


def test_the_loss_of_a_step_is_the_mean_over_its_images(small):
    cfg = config(
        batch_size=3, model=LINEAR, training={"bn_images": None, "accumulate": 4}, optimizer={"name": "sgd", "lr": 1e-9}
    )
    state, stepper, train = make(cfg, small)
    batch = first_batch(cfg, train)
    stepper.step(batch)
    expected = nn.functional.cross_entropy(state.model(batch.images), batch.targets).item()
    assert len(batch.images) in (11, 12)
    assert state.sums.mean_loss == pytest.approx(expected, rel=1e-5)
    assert state.sums.count == len(batch.images)


# ---- clipping --------------------------------------------------------------------------------------------------------


def moved(cfg, prepared, compute=CPU):
    before, after = after_one_step(cfg, prepared, compute)
    return torch.cat([(b - a).flatten() for b, a in zip(before, after, strict=True)])


def test_clipping_by_norm_bounds_the_whole_gradient(small):
    plain = moved(config(), small) / 0.1
    clipped = moved(config(training={"bn_images": None, "clip_norm": 0.01}), small) / 0.1
    assert plain.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped, plain * (0.01 / plain.norm()), rtol=1e-2, atol=1e-6)  # same direction


def test_clipping_by_value_bounds_each_entry(small):
    plain = moved(config(), small) / 0.1
    clipped = moved(config(training={"bn_images": None, "clip_value": 0.001}), small) / 0.1
    torch.testing.assert_close(clipped, plain.clamp(-0.001, 0.001), rtol=1e-2, atol=2e-6)


def test_gradients_are_clipped_after_the_scale_of_the_loss_is_taken_out(small):
    compute = replace(CPU, half=torch.float16)
    cfg = config(training={"bn_images": None, "clip_norm": 0.01, "precision": "fp16"})
    state, stepper, train = make(cfg, small, compute)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])
    stepper.step(first_batch(cfg, train))
    after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    assert ((before - after) / 0.1).norm().item() == pytest.approx(0.01, rel=1e-2)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_computes_in_it_and_learns(small, name, half):
    compute = replace(CPU, half=half)
    cfg = config(epochs=6, optimizer={"name": "adamw", "lr": 0.01}, training={"precision": name})
    feed = Feed.create(small, compute, cfg.transforms, cfg.loader)
    train, val = open_split(feed, "train"), open_split(feed, "val")
    state = TrainState.create(cfg, shape_of(small), train_images=len(train), compute=compute)
    seen = set()
    state.model.features[0].register_forward_hook(lambda module, args, out: seen.add((state.model.training, out.dtype)))
    results = [step for step in fit(state, cfg, train=train, val=val) if isinstance(step, EpochResult)]
    assert results[-1].train_accuracy > 0.8
    assert seen == {(True, half), (False, torch.float32)}  # validation stays exact
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


def test_a_compiled_network_takes_the_same_step(small, monkeypatch):
    """The graph is captured as it always is, and run by PyTorch: machine code for it would take a minute and a compiler."""
    compiled = []

    def capture(network, _compile=torch.compile):
        compiled.append(network)
        return _compile(network, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", capture)
    _, expected = after_one_step(config(), small)
    assert compiled == []
    _, found = after_one_step(config(training={"bn_images": None, "compile": True}), small)
    assert len(compiled) == 1
    for own, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(own, plain)


def test_only_half_floats_have_a_scaler(small):
    assert not make(config(), small)[0].scaler.is_enabled()
    assert not make(config(), small, replace(CPU, half=torch.bfloat16))[0].scaler.is_enabled()
    assert make(config(), small, replace(CPU, half=torch.float16))[0].scaler.is_enabled()


# ---- out of memory ---------------------------------------------------------------------------------------------------


class Greedy(nn.Module):
    """A network that has memory for so many images."""

    def __init__(self, network, most):
        super().__init__()
        self.network, self.most, self.sizes = network, most, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.network(images)


def test_out_of_memory_halves_what_is_computed_and_not_the_step(small, capsys):
    cfg = config(batch_size=32, model=LINEAR)
    _, expected = after_one_step(cfg, small)
    state, stepper, train = make(cfg, small)
    greedy = Greedy(state.model, most=10)
    stepper._forward = greedy
    batch = first_batch(cfg, train)
    stepper.step(batch)
    assert greedy.sizes[0] == len(batch.images)
    assert state.parts == 4
    assert max(greedy.sizes[-4:]) <= 10
    for own, other in zip(state.model.parameters(), expected, strict=True):
        torch.testing.assert_close(own.detach(), other, rtol=1e-4, atol=1e-6)
    assert "out of memory: from here on a step of" in capsys.readouterr().out
    assert state.sums.count == len(batch.images)  # counted once
    assert state.state_dict()["position"]["parts"] == 4  # a continued run does not try the large batch again


def test_too_little_memory_for_two_images_is_told(small):
    cfg = config(model=LINEAR)
    state, stepper, train = make(cfg, small)
    stepper._forward = Greedy(state.model, most=1)
    with pytest.raises(UserError, match="memory does not suffice for . images at a time"):
        stepper.step(first_batch(cfg, train))


def test_other_errors_are_not_taken_for_lack_of_memory(small):
    cfg = config(model=LINEAR)
    _, stepper, train = make(cfg, small)

    def broken(images):
        raise RuntimeError("shapes do not match")

    stepper._forward = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        stepper.step(first_batch(cfg, train))


# ---- losses that are not finite --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_rate_and_samples_and_changes_nothing(small):
    cfg = config(model=LINEAR)
    state, stepper, train = make(cfg, small)
    batches = train.train_batches(batch_size=16, seed=cfg.seed, epoch=0, start=0)
    stepper.step(next(batches))
    bad = next(batches)
    bad.images[3] = math.nan
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    with pytest.raises(Diverged) as caught:
        stepper.step(bad)
    ids = [train.prepared.manifest.ids[i] for i in train.order(batch_size=16, seed=cfg.seed, epoch=0).batch(1).indices]
    assert list(caught.value.sample_ids) == ids
    assert caught.value.status == "FAILED"
    reason = caught.value.reason
    assert reason.startswith(f"train_loss became nan in batch 2 of epoch 1 at lr 0.1 on the samples {', '.join(ids[:5])} and ")
    assert "training.on_nan=rollback" in reason
    for own, old in zip(state.model.parameters(), before, strict=True):
        assert torch.equal(own, old)
    assert state.batch == 1


def test_images_of_each_class_are_counted(small):
    train, _ = train_and_val(small)
    counts = class_counts(train)
    assert sum(counts) == len(train) == 70
    assert counts == [int((small.manifest.labels[:70] == label).sum()) for label in range(10)]


def test_the_moving_average_is_what_is_validated_and_kept(small):
    cfg = config(training={"ema": 0.99}, model=LINEAR, epochs=2)
    train, val = train_and_val(small, cfg)
    state = TrainState.create(cfg, shape_of(small), train_images=len(train), compute=CPU)
    results = [step for step in fit(state, cfg, train=train, val=val) if isinstance(step, EpochResult)]
    images, labels, *_ = next(val.eval_batches(64))
    with torch.inference_mode():
        kept, moving = state.network.eval()(images), state.model.eval()(images)
    assert not torch.equal(kept, moving)
    assert results[-1].val_loss == pytest.approx(nn.functional.cross_entropy(kept, labels).item(), rel=1e-4)
