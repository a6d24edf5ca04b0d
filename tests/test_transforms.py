"""Augmentation: against torchvision where it has the same, and against what each promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as reference

from tracked_cls.config.sections import AUGMENTATIONS
from tracked_cls.errors import UserError
from tracked_cls.transforms import (
    TRANSFORMS,
    Augmentation,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)

RNG = np.random.default_rng(0)
MIDDLE = 0.5  # the draw that leaves angle, shift and shear at 0


def images(count=1, channels=1, height=12, width=12):
    return torch.from_numpy(RNG.random((count, channels, height, width), dtype=np.float32))


def u(*row, count=1):
    return np.tile(np.array(row, np.float64), (count, 1))


def augmentation(*specs):
    return Augmentation.from_specs([spec if isinstance(spec, dict) else {spec: {}} for spec in specs])


# ---- RandomAffine ----------------------------------------------------------------------------------------------------

AFFINE = [  # our draw and torchvision's parameters: angle, translation in pixels, scale, shear
    pytest.param({"degrees": 30}, (1.0, 0.5, 0.5, 0.5, 0.5), (30, (0, 0), 1.0, 0), id="rotate"),
    pytest.param({"degrees": 30}, (0.1, 0.5, 0.5, 0.5, 0.5), (-24, (0, 0), 1.0, 0), id="rotate back"),
    pytest.param({"translate": (0.25, 0.5)}, (0.5, 1.0, 0.25, 0.5, 0.5), (0, (4, -3), 1.0, 0), id="translate"),
    pytest.param({"scale": (0.5, 1.5)}, (0.5, 0.5, 0.5, 0.0, 0.5), (0, (0, 0), 0.5, 0), id="shrink"),
    pytest.param({"scale": (0.5, 1.5)}, (0.5, 0.5, 0.5, 0.9, 0.5), (0, (0, 0), 1.4, 0), id="grow"),
    pytest.param({"shear": 20}, (0.5, 0.5, 0.5, 0.5, 0.0), (0, (0, 0), 1.0, 20), id="shear"),
    pytest.param(
        {"degrees": 40, "translate": (0.25, 0.5), "scale": (0.8, 1.2), "shear": 10},
        (0.75, 1.0, 0.25, 0.25, 0.0),
        (20, (4, -3), 0.9, 10),
        id="all at once",
    ),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("options", "draw", "expected"), AFFINE)
def test_affine_agrees_with_torchvision(options, draw, expected, channels):
    batch = images(2, channels, height=12, width=16)
    angle, translate, scale, shear = expected
    wanted = reference.affine(
        batch, angle=angle, translate=list(translate), scale=scale, shear=[shear, 0.0],
        interpolation=reference.InterpolationMode.BILINEAR,
    )  # fmt: skip
    torch.testing.assert_close(RandomAffine(**options)(batch, u(*draw, count=2)), wanted, atol=1e-4, rtol=0)


def test_affine_without_movement_gives_the_image_back():
    batch = images(3, 3)
    everything = RandomAffine(degrees=90, translate=(0.5, 0.5), scale=(0.5, 1.5), shear=45)
    torch.testing.assert_close(everything(batch, u(*[MIDDLE] * 5, count=3)), batch, atol=1e-5, rtol=0)


def test_affine_by_whole_pixels_moves_exactly_and_fills_with_zeros():
    batch = images()
    moved = RandomAffine(translate=(0.25, 0.25))(batch, u(0.5, 1.0, 0.5, 0.5, 0.5))
    torch.testing.assert_close(moved[..., 3:], batch[..., :-3], atol=1e-5, rtol=0)
    assert moved[..., :3].abs().max() < 1e-5


def test_affine_turns_by_no_more_than_degrees():
    # a quarter turn of a square image is exact: both ends of the range are reached
    batch = images()
    turn = RandomAffine(degrees=90)
    torch.testing.assert_close(turn(batch, u(1.0, *[MIDDLE] * 4)), batch.rot90(-1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn(batch, u(0.0, *[MIDDLE] * 4)), batch.rot90(1, (2, 3)), atol=1e-5, rtol=0)


# ---- RandomCrop ------------------------------------------------------------------------------------------------------


def test_crop_is_a_window_of_the_padded_image_at_every_offset():
    batch = images(1, 2, 6, 7)
    padded = torch.nn.functional.pad(batch, [2] * 4)
    for top in range(5):
        for left in range(5):
            cut = RandomCrop(padding=2)(batch, u((top + 0.5) / 5, (left + 0.5) / 5))
            assert torch.equal(cut, padded[..., top : top + 6, left : left + 7])


def test_crop_offsets_are_uniform():
    count, padding = 5000, 2
    batch = torch.zeros(count, 1, 5, 5)
    batch[:, :, 2, 2] = 1
    cut = augmentation({"RandomCrop": {"padding": padding}})(batch, np.arange(count, dtype=np.uint64), seed=0, epoch=0)
    places = np.bincount(cut.flatten(1).argmax(dim=1).numpy(), minlength=25)
    assert stats.chisquare(places).pvalue > 0.001


# ---- flips -----------------------------------------------------------------------------------------------------------

FLIPS = pytest.mark.parametrize(
    ("flip", "axis"), [(RandomHorizontalFlip, 3), (RandomVerticalFlip, 2)], ids=["horizontal", "vertical"]
)


@FLIPS
def test_flip_mirrors_exactly_the_chosen_images(flip, axis):
    batch = images(2, 3)
    flipped = flip(p=0.3)(batch, np.array([[0.29], [0.3]]))
    assert torch.equal(flipped[0], batch[0].flip(axis - 1))
    assert torch.equal(flipped[1], batch[1])


@FLIPS
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_flip_mirrors_a_share_p(flip, axis, p):
    count = 4000
    batch = torch.arange(4.0).reshape(1, 1, 2, 2).expand(count, 1, 2, 2)
    flipped = augmentation({flip.__name__: {"p": p}})(batch, np.arange(count, dtype=np.uint64), seed=0, epoch=0)
    hits = int((flipped[:, 0, 0, 0] != 0).sum())
    assert stats.binomtest(hits, count, p).pvalue > 0.001 if 0 < p < 1 else hits == p * count


# ---- RandomErasing ---------------------------------------------------------------------------------------------------


def erased_boxes(count=3000, size=40, **options):
    """Return height and width of what was blanked in each image, having checked that it is a filled rectangle."""
    blank = augmentation({"RandomErasing": options})(
        torch.ones(count, 1, size, size), np.arange(count, dtype=np.uint64), seed=0, epoch=0
    )[:, 0] == 0  # fmt: skip
    heights, widths = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.flatten(1).sum(1), heights * widths)
    return heights.numpy(), widths.numpy()


def test_erasing_keeps_area_and_aspect_within_scale_and_ratio():
    heights, widths = erased_boxes(p=1.0, scale=(0.05, 0.2), ratio=(0.5, 2.0))
    for side in (heights, widths):
        assert side.min() >= 5  # sqrt(0.05 * 1600 * 0.5) = 6.3, rounded
        assert side.max() <= 25  # sqrt(0.2 * 1600 * 2) = 25.3, rounded
    # rounding moves each side by half a pixel at most
    assert ((heights + 0.5) * (widths + 0.5) >= 0.05 * 1600).all()
    assert ((heights - 0.5) * (widths - 0.5) <= 0.2 * 1600).all()
    assert ((heights + 0.5) / (widths - 0.5) >= 0.5).all()
    assert ((heights - 0.5) / (widths + 0.5) <= 2.0).all()
    assert np.mean(heights * widths) / 1600 == pytest.approx(0.125, abs=0.005)  # uniform in the area
    assert np.mean(np.log(heights / widths)) == pytest.approx(0, abs=0.03)  # uniform in the log of the aspect


def test_erasing_blanks_a_share_p():
    heights, _ = erased_boxes(p=0.3)
    assert stats.binomtest(int((heights > 0).sum()), len(heights), 0.3).pvalue > 0.001


def test_erasing_reaches_every_pixel():
    blank = augmentation({"RandomErasing": {"p": 1.0}})(
        torch.ones(2000, 1, 12, 12), np.arange(2000, dtype=np.uint64), seed=0, epoch=0
    )  # fmt: skip
    assert (blank == 0).any(dim=0).all()


# ---- all of them -----------------------------------------------------------------------------------------------------

ALL = ("RandomAffine", "RandomCrop", "RandomErasing", "RandomHorizontalFlip", "RandomVerticalFlip")
STRONG = {"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10}}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_augmented_the_same_whatever_batch_it_is_in(channels):
    augment = augmentation(STRONG, "RandomCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomErasing")
    batch, keys = images(20, channels), RNG.integers(0, 2**64, 20, dtype=np.uint64)
    together = augment(batch, keys, seed=1, epoch=2)
    for chosen in ([3], [19, 0, 7], list(range(20))[::-1]):
        assert torch.equal(augment(batch[chosen], keys[chosen], seed=1, epoch=2), together[chosen])


@pytest.mark.parametrize("name", ALL)
def test_each_image_gets_a_draw_of_its_own(name):
    batch = images().expand(16, 1, 12, 12)
    spec = STRONG if name == "RandomAffine" else {name: {}}
    out = augmentation(spec)(batch, np.arange(16, dtype=np.uint64), seed=0, epoch=0)
    assert out.shape == batch.shape
    assert len({image.numpy().tobytes() for image in out}) > 1


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}], ids=["seed", "epoch"])
def test_seed_and_epoch_change_the_draw(other):
    batch, keys = images(8), np.arange(8, dtype=np.uint64)
    augment = augmentation(STRONG)
    assert not torch.equal(augment(batch, keys, seed=0, epoch=0), augment(batch, keys, **other))


def test_the_same_transform_twice_draws_twice():
    batch = images(64)
    twice = augmentation({"RandomHorizontalFlip": {}}, {"RandomHorizontalFlip": {}})
    out = twice(batch, np.arange(64, dtype=np.uint64), seed=0, epoch=0)
    assert not torch.equal(out, batch)  # one draw for both would undo itself


def test_no_transforms_leave_the_images_alone():
    batch = images(2)
    assert augmentation()(batch, np.arange(2, dtype=np.uint64), seed=0, epoch=0) is batch


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("RandomAffine", "degrees", 30),
        ("RandomAffine", "translate", [0.3, 0.0]),
        ("RandomAffine", "translate", [0.0, 0.3]),
        ("RandomAffine", "scale", [0.5, 1.0]),
        ("RandomAffine", "scale", [1.0, 1.5]),
        ("RandomAffine", "shear", 30),
        ("RandomCrop", "padding", 1),
        ("RandomErasing", "p", 1.0),
        ("RandomErasing", "scale", [0.3, 0.33]),
        ("RandomErasing", "scale", [0.02, 0.03]),
        ("RandomErasing", "ratio", [3.0, 3.3]),
        ("RandomErasing", "ratio", [0.3, 0.35]),
        ("RandomHorizontalFlip", "p", 1.0),
        ("RandomVerticalFlip", "p", 1.0),
    ],
)
def test_every_argument_changes_the_output(name, argument, value):
    batch, keys = images(8), np.arange(8, dtype=np.uint64)
    plain, changed = augmentation(name), augmentation({name: {argument: value}})
    assert not torch.equal(plain(batch, keys, seed=0, epoch=0), changed(batch, keys, seed=0, epoch=0))


def test_the_names_of_the_configuration_are_the_transforms():
    assert tuple(AUGMENTATIONS) == tuple(TRANSFORMS)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("RandomAfine", {}, "unknown transform 'RandomAfine'; did you mean 'RandomAffine'?"),
        ("RandomCrop", {"pad": 2}, "transform RandomCrop takes no argument 'pad'; it takes padding"),
        ("RandomHorizontalFlip", {"axis": 1}, "takes no argument 'axis'; it takes p"),
        ("RandomAffine", {"degrees": 181}, r"RandomAffine.degrees must be in \[0, 180\], got 181"),
        ("RandomAffine", {"degrees": "ten"}, "RandomAffine: {'degrees': 'ten'} has a value of the wrong type"),
        ("RandomAffine", {"translate": 0.1}, "RandomAffine: {'translate': 0.1} has a value of the wrong type"),
        (
            "RandomAffine",
            {"translate": [0.1, 1.1]},
            r"RandomAffine.translate must be two numbers in \[0, 1\], got \[0.1, 1.1\]",
        ),
        ("RandomAffine", {"translate": [0.1]}, r"RandomAffine.translate .* got \[0.1\]"),
        (
            "RandomAffine",
            {"scale": [1.2, 0.8]},
            r"RandomAffine.scale must be two positive numbers, low first, got \[1.2, 0.8\]",
        ),
        ("RandomAffine", {"scale": [0, 1]}, r"RandomAffine.scale .* got \[0, 1\]"),
        ("RandomAffine", {"shear": 90}, r"RandomAffine.shear must be in \[0, 90\), got 90"),
        ("RandomCrop", {"padding": 0}, r"RandomCrop.padding must be .* in \[1, 512\], got 0"),
        ("RandomCrop", {"padding": 2.5}, "RandomCrop.padding must be a whole number .* got 2.5"),
        ("RandomHorizontalFlip", {"p": 1.5}, r"RandomHorizontalFlip.p must be in \[0, 1\], got 1.5"),
        ("RandomVerticalFlip", {"p": -0.1}, r"RandomVerticalFlip.p must be in \[0, 1\], got -0.1"),
        ("RandomErasing", {"p": float("nan")}, r"RandomErasing.p must be in \[0, 1\], got nan"),
        ("RandomErasing", {"scale": [0.5, 0.2]}, r"RandomErasing.scale must be two shares .* got \[0.5, 0.2\]"),
        ("RandomErasing", {"ratio": [0, 2]}, r"RandomErasing.ratio must be two positive numbers, low first, got \[0, 2\]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_mistake_names_key_rule_and_value(name, args, message):
    with pytest.raises(UserError, match=message):
        Augmentation.from_specs([{name: args}])
