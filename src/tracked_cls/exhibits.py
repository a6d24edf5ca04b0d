"""What a run says and shows of its network: before it trains, while it does, and what it has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tracked_cls import anatomy, freezing, models, optim, plots
from tracked_cls.assessment import write_csv
from tracked_cls.console import say
from tracked_cls.data.loaders import preview, some
from tracked_cls.job import Job
from tracked_cls.pretrained import Transfer
from tracked_cls.profiling import Profile
from tracked_cls.state import Plan, TrainState
from tracked_cls.tracking import Run
from tracked_cls.training import EpochResult

_SHOWN, _DRAWS = 8, 7  # training images in the picture of the augmentation, and epochs of each
_PROFILED_OPERATIONS = 40


def introduce(job: Job, state: TrainState, transfer: Transfer | None, *, resumed: bool) -> None:
    """Say and log what is about to be trained; a continued run has logged it already."""
    job.say(_headline(job, state))
    plan = Plan.of(job.cfg, len(job.train))
    for warning in optim.schedule_warnings(job.cfg.scheduler, plan.total_steps / plan.steps_per_epoch):
        job.say(f"warning: {warning}")
    for warning in _plan_warnings(job, plan):
        job.say(f"warning: {warning}")
    if state.frozen:
        until = f"for {job.cfg.freeze.epochs} epochs" if job.cfg.freeze.epochs else "to the end"
        job.say(f"frozen {until}: {freezing.summary(state.model, state.frozen)}")
    if resumed:
        if state.epoch < plan.num_epochs:
            job.say(f"continuing an interrupted run after epoch {state.epoch}, batch {state.batch}")
        return
    if transfer is not None:
        job.say(transfer.text())
        with TemporaryDirectory() as scratch:
            (Path(scratch) / "tables").mkdir()
            write_csv(Path(scratch) / "tables" / "weights.csv", *transfer.table())
            job.tracked.log_folder(Path(scratch))


def show(job: Job, state: TrainState) -> None:
    """Log size, speed and pictures of a trained network, and what it was trained on: after training, which they would delay."""
    with TemporaryDirectory() as scratch:
        for name in ("plots", "tables"):
            (Path(scratch) / name).mkdir()
        _show_network(job, state, Path(scratch))
        if job.cfg.tracking.pictures:
            _show_augmentation(job, Path(scratch))
            _show_learned(job, state, Path(scratch) / "plots")
        job.tracked.log_folder(Path(scratch))


def _plan_warnings(job: Job, plan: Plan) -> list[str]:
    """Return what the number of epochs leaves without effect."""
    training, freeze = job.cfg.training, job.cfg.freeze
    warnings = []
    if training.max_steps is not None and training.max_steps > plan.total_steps:
        warnings.append(f"training.max_steps={training.max_steps}: epochs={job.cfg.epochs} end after {plan.total_steps} steps")
    if freeze.epochs is not None and freeze.epochs >= plan.num_epochs:
        warnings.append(f"freeze.epochs={freeze.epochs}: the run ends in epoch {plan.num_epochs}, and nothing thaws")
    return warnings


def _headline(job: Job, state: TrainState) -> str:
    size, compute = job.shape.image_size, job.feed.compute
    form = "" if compute.half is None else f", {job.cfg.training.precision}"
    form += ", compiled" if job.cfg.training.compile else ""
    return (
        f"{job.cfg.model.name} ({models.count_parameters(state.model):,} parameters) on {job.feed.prepared.manifest.name}: "
        f"{len(job.train):,} train, {len(job.val):,} val images of {size}x{size}, "
        f"batches of {job.cfg.batch_size}, {_processes(job)}{compute.device}{form}, {_threads(compute.threads)}"
    )


def _processes(job: Job) -> str:
    return f"{job.ranks.world_size} processes, each with a share of every batch on " if job.ranks.are_several else ""


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _show_network(job: Job, state: TrainState, folder: Path) -> None:
    """Log a network's size and speed, and draw it."""
    found = replace(anatomy.describe(state.network, job.shape), name=job.cfg.model.name)
    job.tracked.log_metrics(found.metrics)
    header, *rows = found.table()
    write_csv(folder / "tables" / "network.csv", header, rows)
    if job.cfg.tracking.pictures:
        plots.network(found, folder / "plots" / "network.png")


def _show_augmentation(job: Job, folder: Path) -> None:
    """Draw what the network is trained on: images of the first epochs, each plain and in several draws."""
    plots.gallery(preview(some(job.train, _SHOWN), draws=_DRAWS, seed=job.cfg.seed), folder / "plots" / "augmented.png")


def _show_learned(job: Job, state: TrainState, folder: Path) -> None:
    """Draw the first filters of a trained network, and what some layers make of an image."""
    filters = anatomy.first_filters(state.network)
    if len(filters):
        plots.filters(filters, folder / "filters.png")
    one = some(job.val, 1)
    (batch,) = one.eval_batches(1)
    maps = anatomy.feature_maps(state.network, batch.images[:1])
    if maps:
        plots.feature_maps(preview(one, draws=0, seed=0)[0, 0], maps, folder / "feature_maps.png")


def log_profile(tracked: Run, profile: Profile | None) -> None:
    """Log where the time of the measured steps went."""
    if profile is None:
        say("training.profile: too few steps to measure; the first three are left out")
        return
    rows = [[name, calls, f"{seconds:.6f}"] for name, calls, seconds in profile.operations[:_PROFILED_OPERATIONS]]
    with TemporaryDirectory() as scratch:
        (Path(scratch) / "plots").mkdir()
        write_csv(Path(scratch) / "tables" / "profile.csv", ["operation", "calls", "seconds"], rows)
        plots.profile(profile.parts, profile.operations, profile.num_steps, Path(scratch) / "plots" / "profile.png")
        tracked.log_folder(Path(scratch))
    total = sum(profile.parts.values()) or 1.0
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in profile.parts.items())
    say(f"profile of {profile.num_steps} steps: {shares}; see plots/profile.png and tables/profile.csv of the run")


def epoch_line(num_epochs: int, result: EpochResult, improved: bool) -> str:
    """Return what one epoch reached, in one line."""
    width = len(str(num_epochs))
    return (
        f"epoch {result.epoch:{width}}/{num_epochs}  "
        f"train_loss {result.train_loss:.4f}  train_accuracy {result.train_accuracy:.4f}  "
        f"val_loss {result.val_loss:.4f}  val_accuracy {result.val_accuracy:.4f}  lr {result.lr:.2e}  "
        f"{result.seconds:.1f} s  {result.images_per_second:,.0f} images/s{'  best' if improved else ''}"
    )
