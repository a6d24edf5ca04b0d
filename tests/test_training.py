"""The loop and its state: what a stop and a resume must not change, and what ends a run."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from learning_data import CPU, digits, noise, one_thread, shape_of, train_and_val  # noqa: F401 - applies by being here

from tracked_cls import weights
from tracked_cls.config import TrainConfig
from tracked_cls.errors import StopRun
from tracked_cls.state import TrainState
from tracked_cls.training import EpochResult, Progress, fit

AUGMENTED = {"train": [{"RandomAffine": {"degrees": 15, "translate": [0.1, 0.1]}}, {"RandomErasing": {}}]}
PIECES = ("model", "optimizer", "schedule", "sums", "position", "rng")
ALL_PIECES = (*PIECES, "average", "scaler")


@pytest.fixture(scope="module")
def small():
    return digits()


def config(**options):
    """Return 3 epochs of 5 batches with everything random switched on."""
    given = {
        "epochs": 3,
        "batch_size": 16,
        "model": {"name": "small_cnn", "dropout": 0.3},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "transforms": AUGMENTED,
        "loss": {"smoothing": 0.1},
    }
    return TrainConfig.model_validate(given | options)


def create(cfg, prepared, compute=CPU):
    train, _ = train_and_val(prepared)
    return TrainState.create(cfg, shape_of(prepared), train_images=len(train), compute=compute)


def steps_of(state, cfg, prepared, compute=CPU):
    train, val = train_and_val(prepared, cfg, compute)
    for step in fit(state, cfg, train=train, val=val):
        if isinstance(step, EpochResult):
            state.record_score(step.val_accuracy, step.val_loss, 0.0)
        yield step


def train_on(state, cfg, prepared, compute=CPU):
    """Train to the end; return the epochs' results without their clocks."""
    steps = list(steps_of(state, cfg, prepared, compute))
    return [replace(step, seconds=0, images_per_second=0) for step in steps if isinstance(step, EpochResult)]


def train_until(state, cfg, prepared, epoch, batch, compute=CPU):
    """Train up to the end of a batch (from 1) of an epoch (from 1); batch 0 is the epoch's own end."""
    wanted = (Progress, epoch, batch) if batch else (EpochResult, epoch, None)
    for step in steps_of(state, cfg, prepared, compute):
        if (type(step), step.epoch, getattr(step, "batch", None)) == wanted:
            return
    raise AssertionError("never reached")


def same(one, other):
    """Whether two nested states hold the same values, bit by bit."""
    if torch.is_tensor(one):
        return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def saved(state, path):
    """Return a state as it comes back from the disk."""
    torch.save(state.state_dict(), path)
    return torch.load(path, map_location="cpu", weights_only=True)


def resumed(cfg, prepared, state_dict):
    """Return the final state and the remaining results of a fresh process that continues from `state_dict`."""
    torch.manual_seed(12345)
    state = create(cfg, prepared)
    torch.rand(7)
    state.load_state_dict(state_dict)
    return state, train_on(state, cfg, prepared)


# ---- resume ----------------------------------------------------------------------------------------------------------

STOPS = [(1, 1), (1, 0), (2, 3), (2, 5), (3, 4), (3, 5)]


@pytest.fixture(scope="module")
def uninterrupted(small):
    cfg = config()
    state = create(cfg, small)
    results = train_on(state, cfg, small)
    return state.state_dict(), results


@pytest.mark.parametrize(
    ("epoch", "batch"), STOPS, ids=[f"epoch {e} batch {b}" if b else f"end of epoch {e}" for e, b in STOPS]
)
def test_a_stopped_training_goes_on_bit_for_bit(small, uninterrupted, tmp_path, epoch, batch):
    cfg = config()
    state = create(cfg, small)
    train_until(state, cfg, small, epoch, batch)
    state, results = resumed(cfg, small, saved(state, tmp_path / "state.pt"))
    whole, whole_results = uninterrupted
    assert results == whole_results[-len(results) :]
    assert len(results) == (3 - epoch if not batch else 4 - epoch)
    for piece in PIECES:
        assert same(state.state_dict()[piece], whole[piece]), piece


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"optimizer": {"name": "sgd"}, "scheduler": {"name": "cosine", "warmup_epochs": 1.4}}, id="sgd cosine warm-up"
        ),
        pytest.param({"optimizer": "adam", "scheduler": {"name": "step", "step_epochs": 1}}, id="adam step"),
        pytest.param({"scheduler": {"name": "plateau", "patience": 0, "gamma": 0.5}}, id="adamw plateau"),
        pytest.param({"scheduler": "constant", "training": {"bn_images": None}}, id="adamw constant running averages"),
        pytest.param({"model": "mobilenetv3_small", "epochs": 2}, id="mobilenetv3_small"),
        pytest.param({"performance": "exact"}, id="plain optimizer"),
        pytest.param({"training": {"ema": 0.9}}, id="moving average"),
        pytest.param({"batch_size": 4, "training": {"accumulate": 3, "clip_norm": 0.1}}, id="accumulation and clipping"),
        pytest.param({"training": {"precision": "fp16"}}, id="float16 with its scaler"),
        pytest.param({"training": {"max_steps": 8}}, id="a number of steps"),
        pytest.param({"freeze": {"layers": ["features.0"], "epochs": 1}}, id="thawed after an epoch"),
        pytest.param({"threads": 2}, id="two threads", marks=pytest.mark.slow),  # slow beside other work
    ],
)
def test_every_choice_goes_on_bit_for_bit(request, tmp_path, options):
    prepared = digits(num_train=40, num_val=20, zoom=2 if options.get("model") else 1)
    options = {
        name: {"name": value} if isinstance(value, str) and name != "performance" else value for name, value in options.items()
    }
    cfg = config(**options)
    half = torch.float16 if cfg.training.precision == "fp16" else None
    compute = replace(CPU, fused=cfg.performance == "auto", half=half)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(cfg.threads or 1)
    whole = create(cfg, prepared, compute)
    whole_results = train_on(whole, cfg, prepared, compute)
    state = create(cfg, prepared, compute)
    train_until(state, cfg, prepared, 2, 1, compute)
    state_dict = saved(state, tmp_path / "state.pt")
    fresh = create(cfg, prepared, compute)
    fresh.load_state_dict(state_dict)
    assert train_on(fresh, cfg, prepared, compute) == whole_results[1:]
    for piece in ALL_PIECES:
        assert same(fresh.state_dict()[piece], whole.state_dict()[piece]), piece


def test_every_number_of_the_state_is_saved(small):
    state, fresh = create(config(), small), create(config(), small)
    parts = ("model", "optimizer", "schedule", "scaler", "sums", "average", "frozen")
    plain = [field.name for field in fields(TrainState) if field.name not in parts]
    for place, name in enumerate(plain):
        setattr(state, name, 100 + place)
    fresh.load_state_dict(state.state_dict())
    assert [getattr(fresh, name) for name in plain] == [100 + place for place in range(len(plain))]


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_of_the_state_is_needed(small, tmp_path, piece):
    cfg = config(scheduler={"name": "cosine"})  # onecycle would refuse to go on at the wrong place
    whole = create(cfg, small)
    whole_results = train_on(whole, cfg, small)
    state = create(cfg, small)
    train_until(state, cfg, small, 2, 3)
    lame = saved(state, tmp_path / "state.pt")
    lame[piece] = create(cfg, small).state_dict()[piece]
    end, results = resumed(cfg, small, lame)
    assert results != whole_results[1:]
    if piece != "sums":  # what was seen before the stop counts in the results alone
        assert weights.digest(end.model) != weights.digest(whole.model)


def test_the_comparison_sees_a_single_bit(uninterrupted):
    whole, _ = uninterrupted
    for piece in ("model", "optimizer"):
        other = copy.deepcopy(whole)
        tensors = other["model"] if piece == "model" else other["optimizer"]["state"][0]
        name = "features.0.weight" if piece == "model" else "exp_avg"
        value = tensors[name].view(-1)
        value[5] = torch.nextafter(value[5], torch.tensor(9.0))
        assert not same(whole[piece], other[piece])
        assert same(whole[piece], copy.deepcopy(whole[piece]))


def test_loaded_optimizer_state_has_the_strides_of_its_parameters(small):
    # fused CPU optimizers read raw memory: a state in other strides would belong to other weights
    cfg = config()
    state = create(cfg, small)
    train_until(state, cfg, small, 1, 2)
    state_dict = copy.deepcopy(state.state_dict())
    for values in state_dict["optimizer"]["state"].values():
        values.update({name: value.contiguous() for name, value in values.items()})
    fresh = create(cfg, small)
    assert not fresh.model.features[3].weight.is_contiguous()
    fresh.load_state_dict(state_dict)
    for parameter, values in fresh.optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()
        assert torch.equal(values["exp_avg"], state.optimizer.state[dict(zip(
            fresh.model.parameters(), state.model.parameters(), strict=True))[parameter]]["exp_avg"])  # fmt: skip


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_every_batch_and_every_epoch_is_yielded(small):
    cfg = config(epochs=2)
    steps = list(steps_of(create(cfg, small), cfg, small))
    expected = [(epoch, batch) for epoch in (1, 2) for batch in (1, 2, 3, 4, 5, None)]
    assert [(step.epoch, getattr(step, "batch", None)) for step in steps] == expected
    assert {step.num_batches for step in steps if isinstance(step, Progress)} == {5}


def test_a_finished_training_has_nothing_left_to_do(small, uninterrupted):
    state = create(config(), small)
    state.load_state_dict(uninterrupted[0])
    assert train_on(state, config(), small) == []


def test_training_learns(small):
    cfg = config(epochs=8, transforms={}, model={"name": "small_cnn"})
    results = train_on(create(cfg, small), cfg, small)
    assert results[-1].train_accuracy > 0.9
    assert results[-1].val_accuracy > 0.6  # of 10 classes
    assert results[-1].val_loss < results[0].val_loss


def test_the_seed_decides_everything(small, uninterrupted):
    torch.manual_seed(7)
    again, other = config(), config(seed=1)
    assert train_on(create(again, small), again, small) == uninterrupted[1]
    assert train_on(create(other, small), other, small) != uninterrupted[1]


def test_results_are_those_of_a_loop_written_out():
    prepared = digits(num_train=40, num_val=21)
    cfg = config(
        epochs=1, transforms={}, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.5}, scheduler={"name": "constant"},
        model={"name": "small_cnn"}, training={"bn_images": None}, batch_size=13,
    )  # fmt: skip
    (result,) = train_on(create(cfg, prepared), cfg, prepared)

    model = create(cfg, prepared).model.train()
    train, val = train_and_val(prepared)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    sgd = torch.optim.SGD([{"params": decayed, "weight_decay": 5e-4}, {"params": others}], lr=0.1, momentum=0.5, nesterov=True)
    loss_sum = hits = 0.0
    for images, labels, *_ in train.train_batches(batch_size=13, seed=0, epoch=0, start=0):
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss_sum += loss.item() * len(labels)
        hits += (logits.argmax(1) == labels).sum().item()
    images, labels, *_ = next(val.eval_batches(21))
    logits = model.eval()(images)
    assert result.train_loss == pytest.approx(loss_sum / 40, rel=1e-5)
    assert result.train_accuracy == hits / 40
    assert result.val_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-3)
    assert result.val_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=0.05)
    assert result.lr == 0.1
    assert result.epoch == 1


def test_the_rate_of_an_epoch_is_that_of_its_last_batch(small):
    cfg = config(scheduler={"name": "step", "step_epochs": 1, "gamma": 0.1})
    assert [result.lr for result in train_on(create(cfg, small), cfg, small)] == pytest.approx([0.01, 0.001, 0.0001])


def test_clocks_are_positive_and_metrics_carry_the_names_of_mlflow(small):
    cfg = config(epochs=1)
    result = next(step for step in steps_of(create(cfg, small), cfg, small) if isinstance(step, EpochResult))
    assert result.seconds > 0
    assert result.images_per_second == pytest.approx(70 / result.seconds)
    assert set(result.metrics) == {
        "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds", "images_per_second"
    }  # fmt: skip


def test_images_per_second_count_what_was_trained_since_the_resume(small):
    cfg = config(epochs=1)
    state, fresh = create(cfg, small), create(cfg, small)
    train_until(state, cfg, small, 1, 3)
    fresh.load_state_dict(state.state_dict())
    result = next(step for step in steps_of(fresh, cfg, small) if isinstance(step, EpochResult))
    assert result.images_per_second * result.seconds == pytest.approx(28)  # the last two of five batches of 14


@pytest.mark.parametrize("size", [257, 258])
def test_no_lone_image_reaches_batchnorm(size):
    # at 8 pixels resnet18 ends in 1x1 maps, of which BatchNorm needs two images
    prepared = noise([0, 1] * (size // 2) + [0] * (size % 2) + [0, 1], splits=["train"] * size + ["val"] * 2)
    cfg = config(epochs=1, batch_size=128, model={"name": "resnet18"}, transforms={})
    (result,) = train_on(create(cfg, prepared), cfg, prepared)
    assert math.isfinite(result.val_loss)


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_as_failed(small, bad):
    cfg = config(scheduler={"name": "constant"})
    state = create(cfg, small)
    train_until(state, cfg, small, 1, 0)
    with torch.no_grad():
        state.model.head[1].bias[0] = bad
    with pytest.raises(StopRun) as caught:
        train_on(state, cfg, small)
    assert caught.value.status == "FAILED"
    assert caught.value.reason.startswith("train_loss became nan in batch 1 of epoch 2 at lr 0.01 on the samples ")


def test_a_rate_far_too_high_stops_the_run_as_failed(small):
    cfg = config(epochs=30, optimizer={"name": "sgd", "lr": 100, "weight_decay": 10}, scheduler={"name": "constant"})
    with pytest.raises(
        StopRun, match=r"train_loss became (nan|inf) in batch \d of epoch \d+ at lr 100 on the samples .*; lower optimizer.lr"
    ):
        train_on(create(cfg, small), cfg, small)


@pytest.mark.parametrize(
    ("scores", "losses", "improved", "best"),
    [
        pytest.param([0.5, 0.6, 0.7], [1, 1, 1], [True, True, True], (3, 0.7, 1), id="ever better"),
        pytest.param([0.5, 0.5, 0.4], [1, 1, 0], [True, False, False], (1, 0.5, 1), id="equal is not better"),
        pytest.param([0.5, 0.5, 0.5], [1, 0.9, 0.95], [True, True, False], (2, 0.5, 0.9), id="among equals the lower loss"),
        pytest.param([0.5, 0.6], [1, 2], [True, True], (2, 0.6, 2), id="the score goes before the loss"),
        pytest.param([0.0, math.nan], [1, math.nan], [True, False], (1, 0.0, 1), id="zero counts and nan does not"),
        pytest.param([0.5, 0.5], [1, math.nan], [True, False], (1, 0.5, 1), id="nan loss among equals"),
    ],
)
def test_the_best_epoch_is_recorded(small, scores, losses, improved, best):
    state = create(config(), small)
    found = []
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True), 1):
        state.epoch = epoch
        found.append(state.record_score(score, loss, 0.0))
    assert found == improved
    assert (state.best_epoch, state.best_score, state.best_loss) == best


@pytest.mark.parametrize(
    ("min_delta", "scores", "stale"),
    [
        pytest.param(0.0, [0.5, 0.6, 0.7], [0, 0, 0], id="ever better"),
        pytest.param(0.0, [0.5, 0.5, 0.4, 0.6, 0.6], [0, 1, 2, 0, 1], id="equal is stale"),
        pytest.param(0.25, [0.5, 0.75, 0.8125, 0.8125], [0, 1, 0, 1], id="more than min_delta"),
        pytest.param(0.25, [0.25, 0.375, 0.5, 0.625], [0, 1, 2, 0], id="small steps add up"),
        pytest.param(0.0, [math.nan, 0.1], [1, 0], id="nan is stale"),
    ],
)
def test_stale_epochs_count_from_the_last_clear_improvement(small, min_delta, scores, stale):
    state = create(config(), small)
    found = []
    for score in scores:
        state.record_score(score, 1.0, min_delta)  # a lower loss among equals does not count
        found.append(state.stale_epochs)
    assert found == stale


def test_creating_a_state_is_a_function_of_the_seed(small):
    digest = weights.digest(create(config(), small).model)
    torch.rand(5)
    assert weights.digest(create(config(), small).model) == digest != weights.digest(create(config(seed=1), small).model)


@pytest.mark.parametrize(
    ("scores", "upper"),
    [
        ([], -math.inf),
        ([0.5], 0.5),
        ([0.1, 0.9], 0.9),
        ([0.9, 0.1, 0.7], 0.8),
        ([0.2, 0.9, 0.9, 0.6, 0.2, 0.4], 0.8),
    ],
    ids=["none", "one", "two", "three", "six"],
)
def test_the_upper_score_is_the_mean_of_the_better_half(small, scores, upper):
    state = create(config(), small)
    for epoch, score in enumerate(scores, 1):
        state.epoch = epoch
        state.record_score(score, 1.0, 0.0)
    assert state.upper_score == pytest.approx(upper)
