"""Batches: every sample once per epoch, in an order of seed and epoch alone."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning_data import digits, make_feed, make_prepared, noise
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tracked_cls import randomness
from tracked_cls.data.loaders import ImageDataset, num_batches, open_split, preview, some
from tracked_cls.distributed import Ranks
from tracked_cls.errors import UserError

AUGMENTED = [{"RandomAffine": {"degrees": 20}}, {"RandomCrop": {"padding": 1}}]


def numbered(count):
    """A set whose labels are the places of its samples."""
    return noise(list(range(count)))


def train_split(prepared, transforms=None, limit=None, **loader):
    return open_split(make_feed(prepared, transforms, **loader), "train", limit=limit)


def epoch(split, batch_size=8, seed=0, epoch=0, start=0):
    return list(split.train_batches(batch_size=batch_size, seed=seed, epoch=epoch, start=start))


def order(batches):
    return torch.cat([batch.targets for batch in batches]).tolist()


SIZES = pytest.mark.parametrize(("size", "batch_size"), [(1, 8), (8, 8), (9, 8), (17, 8), (63, 8), (20, 64), (5, 2)])


@SIZES
def test_an_epoch_visits_every_sample_once(size, batch_size):
    assert sorted(order(epoch(train_split(numbered(size)), batch_size))) == list(range(size))


@SIZES
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_batches_differ_by_one_image_at_most_and_none_is_too_large(size, batch_size, kind):
    split = train_split(numbered(size))
    batches = epoch(split, batch_size) if kind == "train" else list(split.eval_batches(batch_size))
    sizes = [len(batch.targets) for batch in batches]
    assert len(sizes) == num_batches(size, batch_size)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3), "an odd number of images in batches of 2 leaves one batch of 3"


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_starting_later_continues_the_epoch_exactly(start):
    split = train_split(numbered(30), AUGMENTED)
    whole, rest = epoch(split), epoch(split, start=start)
    assert len(rest) == 4 - start
    for one, same in zip(whole[start:], rest, strict=True):
        assert torch.equal(one.images, same.images)
        assert torch.equal(one.targets, same.targets)


def test_the_order_depends_on_seed_and_epoch_only():
    split = train_split(numbered(40))
    first = order(epoch(split, seed=3, epoch=1))
    torch.manual_seed(99)
    np.random.seed(99)
    augmented = train_split(numbered(40), AUGMENTED)
    assert order(epoch(augmented, seed=3, epoch=1, batch_size=5)) == first
    assert order(epoch(split, seed=3, epoch=2)) != first
    assert order(epoch(split, seed=4, epoch=1)) != first


def test_an_image_is_augmented_the_same_whatever_the_batch_size():
    split = train_split(numbered(30), AUGMENTED)
    by_label = [
        {int(label): image for batch in epoch(split, size) for image, label in zip(batch.images, batch.targets, strict=True)}
        for size in (4, 30)
    ]  # fmt: skip
    assert all(torch.equal(by_label[0][label], by_label[1][label]) for label in range(30))


def test_images_and_labels_stay_together():
    pixels = np.repeat(np.arange(50, dtype=np.uint8), 16).reshape(50, 4, 4, 1)
    prepared = make_prepared(pixels, list(range(50)), ["train", "val"] * 25)
    for batch in epoch(train_split(prepared)):
        grey = batch.images[:, 0, 0, 0] * 0.25 + 0.3
        assert torch.equal((grey * 255).round().long(), batch.targets)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_normalisation_is_that_of_the_preprocessing(channels, kind):
    prepared = noise(list(range(20)), channels)
    split = train_split(prepared)
    for batch in epoch(split) if kind == "train" else split.eval_batches(6):
        expected = prepared.preprocess.normalise(prepared.pixels[batch.targets.numpy()])
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-6, rtol=0)


def test_eval_batches_keep_the_order_of_the_manifest():
    prepared = noise([0, 1, 2, 3, 4, 5, 6], splits=["val", "train", "val", "test", "val", "val", "train"])
    split = open_split(make_feed(prepared), "val")
    assert order(split.eval_batches(2)) == [0, 2, 4, 5]


def test_the_pixels_of_the_cache_are_not_altered():
    prepared = digits()
    before = prepared.pixels.copy()
    epoch(train_split(prepared, AUGMENTED))
    np.testing.assert_array_equal(prepared.pixels, before)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(3, [1, 1, 1]), (4, [2, 1, 1]), (10, [5, 3, 2]), (50, [25, 15, 10]), (100, [50, 30, 20]), (None, [50, 30, 20])],
)
def test_limit_keeps_the_shares_of_the_classes(limit, expected):
    prepared = noise([0] * 50 + [1] * 30 + [2] * 20)
    split = train_split(prepared, limit=limit)
    counts = np.bincount(prepared.manifest.labels[split.indices], minlength=3)
    assert len(split) == sum(expected)
    assert np.abs(counts - expected).max() <= 1
    assert len(set(split.indices.tolist())) == len(split)


def test_limit_is_deterministic_and_a_larger_one_keeps_what_a_smaller_one_had():
    prepared = noise([0, 1, 2] * 30)
    small, again, large = (train_split(prepared, limit=limit).indices for limit in (12, 12, 40))
    np.testing.assert_array_equal(small, again)
    np.testing.assert_array_equal(small, np.sort(small))
    assert set(small) <= set(large)


def test_limit_does_not_take_the_first_images_only():
    indices = train_split(noise([0] * 500), limit=50).indices
    assert indices.max() > 250


def test_a_limit_below_the_number_of_classes_is_the_users_mistake():
    with pytest.raises(UserError, match=r"limit must be at least the number of classes \(3\), got 2"):
        train_split(noise([0, 1, 2] * 5), limit=2)


def test_an_empty_split_is_the_users_mistake():
    with pytest.raises(UserError, match="the val split of 'tiny' has no images"):
        open_split(make_feed(noise([0, 1])), "val")


def test_a_sample_is_random_without_repetition():
    split = train_split(numbered(60))
    chosen = split.sample(20, seed=1, epoch=2)
    assert len(chosen) == len(set(chosen.indices.tolist())) == 20
    np.testing.assert_array_equal(chosen.indices, split.sample(20, seed=1, epoch=2).indices)
    assert not np.array_equal(chosen.indices, split.sample(20, seed=1, epoch=3).indices)
    assert len(split.sample(100, seed=1, epoch=2)) == 60


@pytest.mark.parametrize(("size", "batch_size"), [(3, 2), (5, 2), (21, 2), (257, 256), (7, 3), (2, 64)])
def test_no_training_batch_holds_a_lone_image(size, batch_size):
    smallest = min(len(part) for part in np.array_split(np.arange(size), num_batches(size, batch_size)))
    assert smallest >= 2


# ---- samplers ----------------------------------------------------------------------------------------------------------


def weighted(weights, labels=None):
    prepared = noise(labels or [0, 1] * (len(weights) // 2))
    return replace(prepared, manifest=replace(prepared.manifest, weights=np.asarray(weights, np.float32)))


def visits(split, epochs=40):
    """Return how often each position was visited over some epochs."""
    counts = np.zeros(len(split.prepared.manifest), int)
    for number in range(epochs):
        np.add.at(counts, split.order(batch_size=8, seed=0, epoch=number).visits(0, len(split)).indices, 1)
    return counts


def test_balanced_sampling_draws_all_classes_equally_often():
    split = train_split(noise([0] * 90 + [1] * 9 + [2]), sampler="balanced")
    by_class = np.bincount(split.prepared.manifest.labels, weights=visits(split), minlength=3)
    np.testing.assert_allclose(by_class / by_class.sum(), 1 / 3, atol=0.03)
    assert all(split.order(batch_size=8, seed=0, epoch=number).size == 100 for number in range(3))


def test_weighted_sampling_follows_the_weights_of_the_data():
    weights = [0, 1, 2, 5] * 20
    counts = visits(train_split(weighted(weights), sampler="weights")).reshape(20, 4).sum(axis=0)
    np.testing.assert_allclose(counts / counts.sum(), [0, 1 / 8, 2 / 8, 5 / 8], atol=0.03)


def test_weights_that_are_all_zero_are_the_users_mistake():
    with pytest.raises(UserError, match="all weights of the training images are 0"):
        epoch(train_split(weighted([0, 0, 0, 0]), sampler="weights"))


def test_an_image_drawn_twice_is_augmented_twice():
    split = train_split(weighted([1, 0, 0, 0]), AUGMENTED, sampler="weights")
    (batch,) = epoch(split)
    assert batch.targets.tolist() == [0, 0, 0, 0]
    assert len({image.numpy().tobytes() for image in batch.images}) == 4


def test_without_shuffle_the_order_is_that_of_the_manifest():
    split = train_split(numbered(20), shuffle=False)
    assert order(epoch(split, epoch=0)) == order(epoch(split, epoch=5)) == list(range(20))


def test_weights_of_a_batch_have_a_mean_of_one_over_the_split():
    split = train_split(weighted([1, 3] * 10))
    weights = torch.cat([batch.weights for batch in epoch(split)])
    labels = torch.tensor(order(epoch(split)))
    assert torch.equal(weights, torch.where(labels == 0, 0.5, 1.5))


# ---- image by image, in workers -----------------------------------------------------------------------------------------

BY_SAMPLE = [{"ColorJitter": {"brightness": 0.6}}, {"RandomRotation": {"degrees": 30}}]


@pytest.mark.parametrize(
    "transforms", [AUGMENTED, BY_SAMPLE, [*BY_SAMPLE, "MixUp"], []], ids=["batch", "sample", "mixed", "none"]
)
def test_workers_change_nothing(transforms):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    results = [epoch(train_split(digits(), transforms, workers=workers), epoch=2) for workers in (0, 1, 2)]
    for one, other, third in zip(*results, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.images, third.images)
        assert torch.equal(one.targets, third.targets)
    assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone: dropout draws from it"


def test_workers_live_on_from_epoch_to_epoch_and_end_when_told():
    split = train_split(digits(), BY_SAMPLE, workers=1)
    epoch(split)
    (worker,) = split.feed._pool.processes
    epoch(split, epoch=1)
    list(split.eval_batches(8))
    assert split.feed._pool.processes == [worker]
    split.feed.close()
    worker.join(timeout=20)
    assert not worker.is_alive()


def test_an_epoch_left_in_the_middle_does_not_spoil_the_next():
    split = train_split(digits(), BY_SAMPLE, workers=1)
    abandoned = split.train_batches(batch_size=8, seed=0, epoch=0, start=0)
    next(abandoned)
    again, expected = epoch(split, epoch=1), epoch(train_split(digits(), BY_SAMPLE), epoch=1)
    assert all(torch.equal(one.images, other.images) for one, other in zip(again, expected, strict=True))


@pytest.fixture
def _impatient(monkeypatch):
    """Let PyTorch look after a silent worker at once, not after five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def kill_a_worker(split, number=0):
    worker = split.feed._pool.processes[number]
    os.kill(worker.pid, signal.SIGKILL)
    return worker


@pytest.mark.usefixtures("_impatient")
def test_an_epoch_goes_on_with_new_workers_and_the_same_images_when_one_was_killed(capsys):
    split = train_split(digits(), BY_SAMPLE, workers=2)
    batches = split.train_batches(batch_size=8, seed=0, epoch=0, start=0)
    found = [next(batches)]
    worker = kill_a_worker(split, 1)
    found += batches
    expected = epoch(train_split(digits(), BY_SAMPLE))
    assert [batch.targets.tolist() for batch in found] == [batch.targets.tolist() for batch in expected]
    assert all(torch.equal(one.images, other.images) for one, other in zip(found, expected, strict=True))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(
        rf"warning: a loading process was killed by SIGKILL \(pid {worker.pid}\), at the samples \w+, .* and 3 more", line
    )
    assert worker not in split.feed._pool.processes


@pytest.mark.usefixtures("_impatient")
def test_workers_that_are_lost_again_and_again_are_the_users_to_help(monkeypatch, capsys):
    monkeypatch.setattr(ImageDataset, "batch", lambda self, request: os.kill(os.getpid(), signal.SIGKILL))  # as a decoder may
    split = train_split(digits(), BY_SAMPLE, workers=1)
    ids = [split.prepared.manifest.ids[index] for index in split.order(batch_size=64, seed=0, epoch=0).batch(0).indices[:5]]
    with pytest.raises(UserError, match=f"SIGKILL .* at the samples {', '.join(ids)} and 30 more or later, as 3 before it"):
        epoch(split, batch_size=64)
    assert capsys.readouterr().out.count("new ones take over") == 3


def test_an_error_of_a_transform_is_no_loss_of_a_worker(monkeypatch, capsys):
    monkeypatch.setattr(ImageDataset, "batch", broken)
    with pytest.raises(RuntimeError, match="of the user's own"):
        epoch(train_split(digits(), BY_SAMPLE, workers=1))
    assert capsys.readouterr().out == ""


def test_a_low_limit_of_open_files_is_raised_as_far_as_it_may_be():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = os.open("/", os.O_RDONLY)
    os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 8, before[1]))
    try:
        found = epoch(train_split(digits(), BY_SAMPLE, workers=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(order(found)) == sorted(order(epoch(train_split(digits(), BY_SAMPLE))))


def broken(dataset, request):
    raise RuntimeError("of the user's own")


def test_the_death_of_a_worker_does_not_cut_a_step_in_two():
    """PyTorch would raise it from a signal handler, wherever the main thread stands."""
    split = train_split(digits(), BY_SAMPLE, workers=1)
    batches = split.train_batches(batch_size=8, seed=0, epoch=0, start=0)
    next(batches)
    worker = kill_a_worker(split)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it ended, and nobody has looked
    for _ in range(10):
        time.sleep(0.001)  # signals are handled between such lines
    assert worker.exitcode == -signal.SIGKILL


def test_both_speeds_leave_evaluation_alone():
    plain, by_sample = (train_split(digits(), transforms) for transforms in ([], BY_SAMPLE))
    for one, other in zip(plain.eval_batches(16), by_sample.eval_batches(16), strict=True):
        assert torch.equal(one.images, other.images)


def test_evaluation_by_a_list_of_ones_own_sees_what_it_says():
    split = train_split(digits(), {"eval": [{"RandomInvert": {"p": 1.0}}]})
    for plain, own in zip(train_split(digits()).eval_batches(16), split.eval_batches(16), strict=True):
        as_pixels = (plain.images * 0.25 + 0.3) * 255
        torch.testing.assert_close((own.images * 0.25 + 0.3) * 255, 255 - as_pixels, atol=1e-3, rtol=0)
    training = epoch(split)
    assert all(torch.equal(one.images, other.images) for one, other in zip(training, epoch(train_split(digits())), strict=True))


def test_five_crops_of_evaluation_are_five_views():
    split = train_split(digits(zoom=2), {"eval": [{"FiveCrop": {"size": 16}}]})
    batch = next(split.eval_batches(10))
    assert batch.views == 5
    assert len(batch.images) == 5 * len(batch.targets)


@pytest.mark.parametrize(("tta", "count"), [("flip", 2), ("five_crop", 5), ("ten_crop", 10)])
def test_views_stand_next_to_each_other(tta, count):
    prepared = digits()
    feed = replace(make_feed(prepared), tta=tta, image_size=7 if "crop" in tta else 8)
    batch = next(open_split(feed, "train").eval_batches(100))
    assert batch.views == count
    first = batch.images[count : 2 * count]
    if tta == "flip":
        assert torch.equal(first[0], first[1].flip(-1))
    else:
        expected = prepared.preprocess.normalise(prepared.pixels[1:2])[0]
        np.testing.assert_allclose(first[0], expected[:, :7, :7], atol=1e-6)
        np.testing.assert_allclose(first[3], expected[:, 1:, 1:], atol=1e-6)


def test_mixed_targets_are_shares_that_sum_to_one():
    split = train_split(digits(), [{"MixUp": {"alpha": 1.0}}])
    for batch in epoch(split):
        assert batch.targets.shape == (len(batch.images), 10)
        torch.testing.assert_close(batch.targets.sum(dim=1), torch.ones(len(batch.images)))


def test_a_preview_shows_plain_images_and_then_draws():
    prepared = digits()
    split = open_split(make_feed(prepared, AUGMENTED), "train")
    pictures = preview(some(split, 10), draws=3, seed=0)
    assert pictures.shape == (10, 4, 8, 8, 1)
    chosen = some(split, 10).indices
    np.testing.assert_array_equal(pictures[:, 0], prepared.pixels[chosen])
    assert len(np.unique(prepared.manifest.labels[chosen])) == 10
    assert any((pictures[:, 1] != pictures[:, column]).any() for column in (2, 3))


def test_a_dataset_sent_to_another_process_opens_its_files_anew(tmp_path):
    from tracked_cls.assembly import build
    from tracked_cls.config import DataConfig
    from tracked_cls.data.sources import scan

    cfg = DataConfig(image_size=8)
    dataset = ImageDataset(build(cfg, tmp_path, scan(cfg, None)))
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent)[7].image, dataset[7].image)


# ---- several processes -----------------------------------------------------------------------------------------------


def shares(split, world_size, **options):
    """Return the batches of each process, without the processes."""
    ranks = [Ranks(rank, world_size) for rank in range(world_size)]
    return [list(split.train_batches(batch_size=16, seed=3, epoch=1, start=0, ranks=each, **options)) for each in ranks]


def test_an_epoch_is_what_the_permutation_of_its_seed_says():
    split = train_split(numbered(100))

    expected = np.array_split(randomness.permutation(3, 1, 100), num_batches(100, 16))

    assert [batch.targets.tolist() for batch in epoch(split, 16, seed=3, epoch=1)] == [part.tolist() for part in expected]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "transforms", [None, AUGMENTED, [*AUGMENTED, {"MixUp": {"alpha": 0.4}}]], ids=["plain", "own", "mixed"]
)
def test_the_shares_of_several_processes_are_the_batch_of_one(world_size, transforms):
    split = train_split(numbered(50), transforms)
    whole = epoch(split, 16, seed=3, epoch=1)

    for batch, *parts in zip(whole, *shares(split, world_size), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
        assert torch.equal(torch.cat([part.weights for part in parts]), batch.weights)
        assert {part.step_images for part in parts} == {len(batch.images)}
        assert max(map(len, (part.images for part in parts))) - min(map(len, (part.images for part in parts))) <= 1


def test_a_split_is_shared_without_a_sample_lost_or_doubled():
    split = train_split(numbered(11))

    parts = [split.shared(Ranks(rank, 4)).indices.tolist() for rank in range(4)]

    assert [index for part in parts for index in part] == split.indices.tolist()
    assert sorted(map(len, parts)) == [2, 3, 3, 3]
