"""What a training run works with, resolved and held open before it starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracked_cls import checkpoint, models, optim, preparation, signals, transforms
from tracked_cls.beginning import Beginning, open_beginning
from tracked_cls.checkpoint import Attempt
from tracked_cls.compute import (
    Compute,
    fitting_batch_size,
    gains_from_bf16,
    gains_from_compiling,
    is_precise,
    make_compute,
    multiplies_bf16,
)
from tracked_cls.config import CheckpointConfig, TrainConfig, TransformsConfig, workspace
from tracked_cls.console import say
from tracked_cls.data.cache import COMPLETE, Prepared, open_partial
from tracked_cls.data.loaders import Feed, Split, num_batches, open_split, some
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.distributed import ALONE, Ranks, is_restart
from tracked_cls.errors import ProcessLost, UserError
from tracked_cls.models import Shape
from tracked_cls.provenance import num_cores
from tracked_cls.serving.packaging import Bundle
from tracked_cls.state import images_per_step
from tracked_cls.tracking import Run, Tracker
from tracked_cls.transforms.inference import normalisation

_CHECKED = 64  # images of the self-check of mixed precision


@dataclass(frozen=True, eq=False)
class Given:
    """What a search hands to each of its trainings: open data, an open run, and a folder for the local state.

    The folder is the search's own: the training neither marks it as ended nor deletes what is in it. Where the training was
    measured before, it must come to weights of the same digest, `expected`.
    """

    prepared: Prepared
    run: Run
    store: Path
    expected: str | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """What is computed. The options are resolved: no ``auto`` is left that decides the result."""

    cfg: TrainConfig
    feed: Feed
    beginning: Beginning
    shape: Shape
    train: Split
    val: Split
    ranks: Ranks


@dataclass(frozen=True, eq=False)
class Job(Task):
    """What is computed, tracked and saved: a run."""

    tracked: Run
    attempt: Attempt
    kind: str
    quiet: bool

    @property
    def policy(self) -> CheckpointConfig:
        """Which checkpoints are made and stay: with those that an average in the end is made of, or that are rolled back to."""
        options: dict[str, object] = {"keep_best": max(self.cfg.checkpoint.keep_best, self.cfg.training.average_best or 1)}
        if self.cfg.training.on_nan == "rollback":
            options["max_cost"] = 1.0  # how far back must not depend on the clock
        return self.cfg.checkpoint.model_copy(update=options)

    def say(self, line: str) -> None:
        """Print one line; the trainings of a search are many, and the search speaks for them."""
        if not self.quiet:
            say(line)


@contextmanager
def begun(
    cfg: TrainConfig, tracker: Tracker, kind: str, name: str | None, given: Given | None = None, ranks: Ranks = ALONE
) -> Iterator[Job]:
    """Check, prepare what is missing, and hold the run and its local state open; tell the other processes what to compute."""
    check(cfg)
    compute = _compute(cfg, ranks)
    beginning = open_beginning(cfg, tracker)
    if given is None:
        found = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker, transforms=cfg.transforms)
    else:
        found = given.prepared
    prepared = _normalised(found, cfg.transforms, beginning)
    cfg, compute = _precise(cfg, prepared, compute, beginning)
    cfg = _resolved(cfg, prepared, compute)
    store = given.store if given else workspace(cfg.tracking) / cfg.checkpoint.store
    with (
        ExitStack() as ending,
        closing(Feed.create(prepared, compute, cfg.transforms, cfg.loader)) as feed,
        checkpoint.open_attempt(
            store, key(cfg, kind, prepared, beginning), resume=cfg.resume == "auto" or is_restart()
        ) as attempt,
    ):
        title = name or f"{cfg.model.name} on {prepared.manifest.name}"
        train, val = _splits(cfg, feed)
        _require_enough(cfg, train, ranks)
        _require_gpus(cfg, compute, ranks)
        if ranks.are_several:
            with ranks.watched():
                _give_order(ranks, _Order(cfg, prepared.folder, prepared.preprocess, beginning.teacher), prepared)
        opened = nullcontext(given.run) if given else tracker.begin(kind, title, continue_id=attempt.run_id)
        with opened as tracked:
            attempt.adopt(tracked.run_id)
            yield Job(cfg, feed, beginning, shape_of(prepared), train, val, ranks, tracked, attempt, kind, given is not None)
            ending.enter_context(signals.deferred())  # the run and its local state end together
        if given is None:
            attempt.end("FINISHED")


@dataclass(frozen=True)
class _Order:
    """What the first process tells the others: all that it found out and resolved."""

    cfg: TrainConfig
    folder: Path
    preprocess: Preprocess
    teacher: Bundle | None


def _give_order(ranks: Ranks, order: _Order, prepared: Prepared) -> None:
    """Tell the other processes what to compute, and wait until they have the same data."""
    ranks.note("order")
    ranks.told(order)
    ranks.meet("data")
    digests = ranks.gathered(prepared.manifest.digest)
    others = {digest: digests.index(digest) for digest in digests if digest != digests[0]}
    if others:
        differing = ", ".join(f"{digest} in process {rank}" for digest, rank in others.items())
        raise UserError(
            f"data: the processes have prepared different images: digest {digests[0]} in process 0, {differing}; copy "
            "the folder of data.store to every machine, or let them share it"
        )


@contextmanager
def followed(cfg: TrainConfig, ranks: Ranks) -> Iterator[Task]:
    """Take the order of the first process, with this machine's own folders, and hold the data open."""
    ranks.wait_for("order")
    order: _Order | None = ranks.told(None)
    assert order is not None
    own = {name: getattr(cfg, name) for name in ("data", "device", "tracking")}
    compute = _compute(order.cfg, ranks)
    prepared = replace(_on_this_machine(cfg, order, ranks), preprocess=order.preprocess)
    ranks.meet("data")
    if len(set(ranks.gathered(prepared.manifest.digest))) > 1:
        raise ProcessLost("the first process says what the data of the others are")
    cfg = order.cfg.model_copy(update=own)
    with closing(Feed.create(prepared, compute.in_precision(cfg.training.precision), cfg.transforms, cfg.loader)) as feed:
        yield Task(cfg, feed, Beginning(teacher=order.teacher), shape_of(prepared), *_splits(cfg, feed), ranks)


def _on_this_machine(cfg: TrainConfig, order: _Order, ranks: Ranks) -> Prepared:
    """Return the prepared set that the first process has, where this machine sees it, else prepare it here, once."""
    ready = f"data of machine {ranks.machine}"
    try:
        if (order.folder / COMPLETE).is_file():
            return preparation.folded(open_partial(order.folder), cfg.data)  # checked by the first process a moment ago
        if ranks.local_rank > 0:
            ranks.wait_for(ready)
        return preparation.open_or_build(cfg.data, cfg.tracking, cfg.transforms)
    finally:
        ranks.note(ready)


def check(cfg: TrainConfig) -> None:
    """Raise `UserError` for what no data could make right: names, arguments, transforms tried on the likeliest shape."""
    models.check_name(cfg.model.name)
    optim.check(cfg.optimizer)
    shape = (cfg.data.channels or 3, cfg.data.image_size or 224)
    transforms.check(
        cfg.transforms, shape, whole_photos=cfg.data.cache == "files", frames=cfg.data.frames, search=(Path.cwd(),)
    )


def _normalised(prepared: Prepared, cfg: TransformsConfig, beginning: Beginning) -> Prepared:
    """Return a prepared set with the mean and std that its configuration asks for in place of the data's own."""
    own = prepared.preprocess
    mean, std = normalisation(cfg, (own.mean, own.std), beginning.normalisation)
    return replace(prepared, preprocess=replace(own, mean=mean, std=std))


def shape_of(prepared: Prepared) -> Shape:
    """Return what a network for these data takes and gives."""
    geometry = prepared.preprocess.geometry
    return Shape(len(prepared.manifest.classes), geometry.channels, geometry.image_size, prepared.preprocess.frames)


def _compute(cfg: TrainConfig, ranks: Ranks) -> Compute:
    """Return where and how this process computes: with its share of the threads and a GPU of its own."""
    threads = ranks.threads_of(cfg.threads or num_cores())
    return make_compute(ranks.device_of(cfg.device), threads, cfg.performance, channels_last=cfg.training.channels_last)


def _resolved(cfg: TrainConfig, prepared: Prepared, compute: Compute) -> TrainConfig:
    """Return the configuration with threads (of the whole machine), batch size, compilation and debug modes as plain values."""
    batch_size = cfg.batch_size or _fitting(cfg, prepared, compute)
    options: dict[str, object] = {"threads": cfg.threads or num_cores(), "batch_size": batch_size}
    training: dict[str, object] = {}
    if cfg.fast_dev_run:
        options["limit"] = max(batch_size, len(prepared.manifest.classes))
        training["max_steps"] = 1
    if cfg.overfit_batches is not None:
        options["transforms"] = cfg.transforms.model_copy(update={"train": []})
    if cfg.training.compile is None:
        training["compile"] = cfg.performance == "auto" and _is_worth_compiling(cfg, prepared, compute, batch_size)
    return cfg.model_copy(update=options | {"training": cfg.training.model_copy(update=training)})


def _is_worth_compiling(cfg: TrainConfig, prepared: Prepared, compute: Compute, batch_size: int) -> bool:
    if cfg.fast_dev_run or cfg.overfit_batches is not None:
        return False
    count, steps = prepared.manifest.num_of("train"), cfg.training.max_steps
    shown = cfg.epochs * min(count, cfg.limit or count)
    most = shown if steps is None else steps * batch_size * cfg.training.accumulate
    network = models.make_model(cfg.model, shape_of(prepared))
    return gains_from_compiling(network, min(shown, most), compute.device)


def _fitting(cfg: TrainConfig, prepared: Prepared, compute: Compute) -> int:
    shape = shape_of(prepared)
    network = compute.place(models.make_model(cfg.model, shape))
    count = prepared.manifest.num_of("train")
    per_part = min(count, cfg.limit or count) // cfg.training.accumulate
    size = fitting_batch_size(network, shape.blank, compute, train_images=per_part)
    say(f"batch_size=auto: {size}")
    return size


def _splits(cfg: TrainConfig, feed: Feed) -> tuple[Split, Split]:
    """Return what is trained and what is validated on."""
    train, val = (open_split(feed, name, limit=cfg.limit) for name in ("train", "val"))
    if cfg.loss.sample_weights and np.ptp(train.prepared.manifest.weights[train.indices]) == 0:
        raise UserError("loss.sample_weights has no effect: all training images have the same weight; "
                        "name the column with data.columns.weight")  # fmt: skip
    if cfg.overfit_batches is not None:
        assert cfg.batch_size is not None
        train = some(train, cfg.overfit_batches * cfg.batch_size * cfg.training.accumulate)
        val = train
    return train, val


def _require_enough(cfg: TrainConfig, train: Split, ranks: Ranks) -> None:
    """Raise `UserError` where a process would get a lone image of a step, which BatchNorm cannot train on."""
    least = len(train) // num_batches(len(train), images_per_step(cfg))
    if least < 2 * ranks.world_size and ranks.are_several:
        raise UserError(
            f"batch_size={cfg.batch_size}: steps of {least} images give {ranks.world_size} processes fewer than 2 each; "
            f"raise batch_size to {2 * ranks.world_size} or more, or take fewer processes"
        )


def _require_gpus(cfg: TrainConfig, compute: Compute, ranks: Ranks) -> None:
    """Raise `UserError` where PyTorch's BatchNorm over all processes cannot work: it knows GPUs only."""
    if not cfg.training.sync_batchnorm:
        return
    if not ranks.are_several:
        say("warning: training.sync_batchnorm has no effect with one process")
    elif compute.device.type != "cuda":
        raise UserError("training.sync_batchnorm=true needs GPUs: PyTorch has it for no other device; leave it false")


def _precise(cfg: TrainConfig, prepared: Prepared, compute: Compute, beginning: Beginning) -> tuple[TrainConfig, Compute]:
    """Return the precision that training takes, by name: what is asked for or, where nothing is, what is fastest.

    A mixed one has to pass its self-check, on the network as training begins with it; else it is float32.
    """
    asked = cfg.training.precision
    plain = asked == "float32" or cfg.performance == "exact"
    if plain or (asked == "auto" and not multiplies_bf16(compute.device)):
        return _in_precision("float32", cfg, compute)
    torch.manual_seed(cfg.seed)
    network = compute.place(models.make_model(cfg.model, shape_of(prepared)))
    if asked == "auto" and not gains_from_bf16(network):
        return _in_precision("float32", cfg, compute)
    beginning.give(network)
    mixed = _in_precision("bf16" if asked == "auto" else asked, cfg, compute)
    sample = some(open_split(Feed(prepared, compute), "train"), _CHECKED)
    (batch,) = sample.eval_batches(len(sample))
    if is_precise(network, batch.images, mixed[1]):
        return mixed
    if asked != "auto":
        say(f"warning: training.precision={asked} gives other logits than float32 in this network; float32 is used")
    return _in_precision("float32", cfg, compute)


def _in_precision(name: str, cfg: TrainConfig, compute: Compute) -> tuple[TrainConfig, Compute]:
    training = cfg.training.model_copy(update={"precision": name})
    return cfg.model_copy(update={"training": training}), compute.in_precision(name)


def recipe(cfg: TrainConfig) -> dict[str, Any]:
    """Return the options that decide a result, without those of the data."""
    excluded = {"data", "tracking", "checkpoint", "promote", "device", "resume", "folds", "from_run", "nproc", "distributed"}
    options = cfg.model_dump(mode="json", exclude=excluded)
    for key in ("eval_batch_size", "profile"):
        options["training"].pop(key)
    for key in ("workers", "prefetch", "pin_memory"):
        options["loader"].pop(key)
    return options


def key(cfg: TrainConfig, kind: str, prepared: Prepared, beginning: Beginning) -> str:
    """Return the name of the local state: the kind, and a digest of everything that decides the result."""
    data = {"name": cfg.data.label, "digest": prepared.manifest.digest, "whole_photos": prepared.pixels is None}
    decisive = recipe(cfg) | {"data": data, "beginning": beginning.digest}
    return f"{kind}-{hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]}"
