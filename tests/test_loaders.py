"""Batches: every sample once per epoch, in an order of seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_data import CPU, digits, make_prepared, noise

from tracked_cls.data.loaders import num_batches, open_split
from tracked_cls.errors import UserError
from tracked_cls.transforms import Augmentation

PLAIN = Augmentation()
AUGMENTED = Augmentation.from_specs([{"RandomAffine": {"degrees": 20}}, {"RandomCrop": {"padding": 1}}])


def numbered(count):
    """A set whose labels are the places of its samples."""
    return noise(list(range(count)))


def train_split(prepared, **options):
    return open_split(prepared, "train", compute=CPU, **options)


def epoch(split, batch_size=8, seed=0, epoch=0, start=0, augmentation=PLAIN):
    return list(split.train_batches(batch_size=batch_size, seed=seed, epoch=epoch, start=start, augmentation=augmentation))


def order(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


SIZES = pytest.mark.parametrize(("size", "batch_size"), [(1, 8), (8, 8), (9, 8), (17, 8), (63, 8), (20, 64), (5, 2)])


@SIZES
def test_an_epoch_visits_every_sample_once(size, batch_size):
    assert sorted(order(epoch(train_split(numbered(size)), batch_size))) == list(range(size))


@SIZES
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_batches_differ_by_one_image_at_most_and_none_is_too_large(size, batch_size, kind):
    split = train_split(numbered(size))
    batches = epoch(split, batch_size) if kind == "train" else list(split.eval_batches(batch_size))
    sizes = [len(labels) for _, labels in batches]
    assert len(sizes) == num_batches(size, batch_size)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3), "an odd number of images in batches of 2 leaves one batch of 3"


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_starting_later_continues_the_epoch_exactly(start):
    split = train_split(numbered(30))
    whole, rest = epoch(split, augmentation=AUGMENTED), epoch(split, start=start, augmentation=AUGMENTED)
    assert len(rest) == 4 - start
    for (images, labels), (same_images, same_labels) in zip(whole[start:], rest, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_the_order_depends_on_seed_and_epoch_only():
    split = train_split(numbered(40))
    first = order(epoch(split, seed=3, epoch=1))
    torch.manual_seed(99)
    np.random.seed(99)
    assert order(epoch(split, seed=3, epoch=1, batch_size=5, augmentation=AUGMENTED)) == first
    assert order(epoch(split, seed=3, epoch=2)) != first
    assert order(epoch(split, seed=4, epoch=1)) != first


def test_an_image_is_augmented_the_same_whatever_the_batch_size():
    split = train_split(numbered(30))
    by_label = [
        {int(label): image for images, labels in epoch(split, size, augmentation=AUGMENTED)
         for image, label in zip(images, labels, strict=True)}
        for size in (4, 30)
    ]  # fmt: skip
    assert all(torch.equal(by_label[0][label], by_label[1][label]) for label in range(30))


def test_images_and_labels_stay_together():
    pixels = np.repeat(np.arange(50, dtype=np.uint8), 16).reshape(50, 4, 4, 1)
    prepared = make_prepared(pixels, list(range(50)), ["train", "val"] * 25)
    for images, labels in epoch(train_split(prepared)):
        grey = images[:, 0, 0, 0] * 0.25 + 0.3
        assert torch.equal((grey * 255).round().long(), labels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_normalisation_is_that_of_the_preprocessing(channels, kind):
    prepared = noise(list(range(20)), channels)
    split = train_split(prepared)
    for images, labels in epoch(split) if kind == "train" else split.eval_batches(6):
        expected = prepared.preprocess.normalise(prepared.pixels[labels.numpy()])
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(images.numpy(), expected, atol=1e-6, rtol=0)


def test_eval_batches_keep_the_order_of_the_manifest():
    prepared = noise([0, 1, 2, 3, 4, 5, 6], splits=["val", "train", "val", "test", "val", "val", "train"])
    split = open_split(prepared, "val", compute=CPU)
    assert order(split.eval_batches(2)) == [0, 2, 4, 5]


def test_the_pixels_of_the_cache_are_not_altered():
    prepared = digits()
    before = prepared.pixels.copy()
    epoch(train_split(prepared), augmentation=AUGMENTED)
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
        open_split(noise([0, 1]), "val", compute=CPU)


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
