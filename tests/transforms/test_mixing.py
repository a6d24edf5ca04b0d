"""MixUp and CutMix: torchvision's arithmetic, with a draw of its own for each image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from tracked_cls.errors import UserError
from tracked_cls.transforms import Mixing
from tracked_cls.transforms.mixing import CutMix, MixUp

RNG = np.random.default_rng(0)


def mixing(*specs):
    return Mixing.from_specs([spec if isinstance(spec, dict) else {spec: {}} for spec in specs])


def batch(count=16, classes=7, shape=(3, 8, 10)):
    images = torch.from_numpy(RNG.random((count, *shape), dtype=np.float32))
    targets = torch.nn.functional.one_hot(torch.arange(count) % classes, classes).float()
    return images, targets, RNG.integers(0, 2**64, count, dtype=np.uint64)


def probe(count):
    """Return images of 0 beside partners of 1, whose mixed pixels say what was kept."""
    ones = (torch.arange(count) % 2).float()
    images = ones[:, None, None, None].expand(count, 1, 32, 32)
    targets = torch.nn.functional.one_hot(ones.long(), 2).float()
    return images, targets, np.arange(count, dtype=np.uint64), ones.long()


def kept_shares(mix, count=4000):
    """Return the share of its own label that each image keeps, having checked that its pixels are kept alike."""
    images, targets, keys, own = probe(count)
    mixed, labels = mix(images, targets, keys, seed=0, epoch=0)
    share = labels[torch.arange(count), own]
    pixels = torch.where(own == 1, mixed.mean(dim=(1, 2, 3)), 1 - mixed.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(pixels, share, atol=1e-5, rtol=0)
    return share.numpy(), mixed


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_a_mixup_follows_beta(alpha):
    shares, mixed = kept_shares(mixing({"MixUp": {"alpha": alpha}}))
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.001
    assert (mixed.amax(dim=(1, 2, 3)) - mixed.amin(dim=(1, 2, 3)) < 1e-6).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_a_cutmix_follows_torchvisions(alpha):
    theirs = v2.CutMix(alpha=alpha, num_classes=2)
    torch.manual_seed(0)
    image = torch.zeros(2, 1, 32, 32)
    expected = [theirs.make_params([image])["lam_adjusted"] for _ in range(4000)]
    shares, mixed = kept_shares(mixing({"CutMix": {"alpha": alpha}}))
    assert stats.ks_2samp(shares, expected).pvalue > 0.001
    assert set(mixed.unique().tolist()) == {0.0, 1.0}


def test_mixup_is_torchvisions_arithmetic():
    images, targets, keys = batch()
    mixed, labels = mixing("MixUp")(images, targets, keys, seed=1, epoch=2)
    shares, own = labels.numpy(), torch.arange(16) % 7
    for i in range(16):
        lam = float(shares[i, own[i]])
        theirs = v2.MixUp(num_classes=7)
        expected = theirs.transform(images, {"labels": targets, "lam": lam, "batch_size": 16})
        expected_labels = theirs.transform(targets, {"labels": targets, "lam": lam, "batch_size": 16})
        torch.testing.assert_close(mixed[i], expected[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(labels[i], expected_labels[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 10), (32, 32), (7, 5)])
def test_cutmix_is_torchvisions_box(height, width):
    u = RNG.random((300, 3))
    pixels, shares = CutMix(alpha=1.0).kept(u, height, width)
    for row, kept, share in zip(u, pixels, shares, strict=True):
        x, y, side = int(row[1 + 1] * width), int(row[1] * height), 0.5 * math.sqrt(1 - row[0])  # Beta(1, 1) is uniform
        wide, tall = int(side * width), int(side * height)
        expected = np.ones((height, width))
        expected[max(y - tall, 0) : min(y + tall, height), max(x - wide, 0) : min(x + wide, width)] = 0
        np.testing.assert_array_equal(kept, expected)
        assert share == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 10), (6, 3, 8, 10)], ids=["images", "clips"])
@pytest.mark.parametrize("names", [["MixUp"], ["CutMix"], ["MixUp", "CutMix"]], ids="+".join)
def test_targets_sum_to_one_and_partners_are_the_previous_images(names, shape):
    images, targets, keys = batch(shape=shape)
    mixed, labels = mixing(*names)(images, targets, keys, seed=0, epoch=0)
    assert mixed.shape == images.shape
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(16))
    partner = targets.roll(1, 0)
    assert ((labels > 0) <= ((targets > 0) | (partner > 0))).all()
    low, high = torch.minimum(images, images.roll(1, 0)), torch.maximum(images, images.roll(1, 0))
    assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()


def test_all_frames_of_a_clip_are_cut_alike():
    images, targets, keys, _ = probe(16)
    clips = images[:, None].expand(16, 4, 1, 32, 32)
    mixed, _ = mixing("CutMix")(clips, targets, keys, seed=0, epoch=0)
    assert torch.equal(mixed[:, 0], mixed[:, 3])


def test_of_two_mixes_each_image_takes_one_with_equal_chance():
    _, mixed = kept_shares(mixing("MixUp", "CutMix"))
    added = int(((mixed > 0) & (mixed < 1)).any(dim=3).any(dim=2).sum())
    assert stats.binomtest(added, 4000, 0.5).pvalue > 0.001


def test_the_draw_of_an_image_does_not_depend_on_the_others():
    keys = RNG.integers(0, 2**64, 8, dtype=np.uint64)
    mix = mixing("MixUp", "CutMix")
    pixels, labels = mix._kept(keys, 8, 10, seed=0, epoch=3)
    chosen = [5, 1]
    some_pixels, some_labels = mix._kept(keys[chosen], 8, 10, seed=0, epoch=3)
    np.testing.assert_array_equal(some_pixels, pixels[chosen])
    np.testing.assert_array_equal(some_labels, labels[chosen])


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}], ids=["seed", "epoch"])
def test_seed_and_epoch_change_the_mix(other):
    images, targets, keys = batch()
    assert not torch.equal(mixing("MixUp")(images, targets, keys, seed=0, epoch=0)[0],
                           mixing("MixUp")(images, targets, keys, **other)[0])  # fmt: skip


def test_alpha_changes_the_mix():
    u = RNG.random((10, 3))
    assert not np.array_equal(MixUp(0.2).kept(u, 4, 4)[1], MixUp(2.0).kept(u, 4, 4)[1])
    assert not np.array_equal(CutMix(0.2).kept(u, 9, 9)[1], CutMix(2.0).kept(u, 9, 9)[1])


def test_no_mix_is_none():
    assert mixing() is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"MixUp": {"alpha": 0}}, "MixUp.alpha must be a number above 0, got 0"),
        ({"CutMix": {"alpha": -1.0}}, "CutMix.alpha must be a number above 0, got -1.0"),
        ({"CutMix": {"alpha": "x"}}, "CutMix.alpha must be a number above 0, got 'x'"),
        ({"MixUp": {"num_classes": 3}}, "transform MixUp takes no argument 'num_classes'; it takes alpha"),
        ({"Mixup": {}}, "unknown transform 'Mixup'; did you mean 'MixUp'?"),
    ],
)
def test_a_mistake_names_mix_and_value(spec, message):
    with pytest.raises(UserError, match=message):
        mixing(spec)
