"""Whole batches: torchvision's arithmetic for the same draw, and its distribution over many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from tracked_cls.transforms import BatchPipeline, SamplePipeline
from tracked_cls.transforms.batch import NotInBatches, RandomAffine, RandomCrop
from tracked_cls.transforms.warps import affine, crop

RNG = np.random.default_rng(0)
MIDDLE = 0.5  # the draw that leaves angle, shift and shear at 0
pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=1, channels=1, height=12, width=12):
    return torch.from_numpy(RNG.random((count, channels, height, width), dtype=np.float32))


def keys_of(count):
    return np.arange(count, dtype=np.uint64)


def specs_of(*specs):
    return [spec if isinstance(spec, dict) else {spec: {}} for spec in specs]


def pipeline(*specs, size=None):
    return BatchPipeline.from_specs(specs_of(*specs), size)


# ---- the same draw gives torchvision's image -------------------------------------------------------------------------

AFFINE = list(itertools.product((0, 33.3, -120), ((0, 0), (4, -3)), (1.0, 0.7, 1.6), ((0, 0), (17, -9))))


@pytest.mark.parametrize("fill", [0.0, None, [0.2, 0.9, 0.5]], ids=str)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 17), (19, 8)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_affine_is_torchvisions_for_the_same_draw(height, width, fill, interpolation):
    batch = images(len(AFFINE), 3, height, width)
    angle, translate, scale, shear = (np.array(values, np.float64) for values in zip(*AFFINE, strict=True))
    ours = affine(batch, angle, translate, scale, shear, interpolation=interpolation, fill=fill)
    for image, got, (angle, translate, scale, shear) in zip(batch, ours, AFFINE, strict=True):
        wanted = reference.affine(
            image, float(angle), list(translate), scale, list(shear), InterpolationMode(interpolation), fill
        )  # fmt: skip
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize(("height", "width"), [(6, 7), (9, 5)])
def test_crop_is_torchvisions_at_every_offset(mode, height, width):
    left, top, right, bottom = 1, 2, 3, 4
    (image,) = images(1, 3, height, width)
    padded = reference.pad(image, [left, top, right, bottom], fill=0.3, padding_mode=mode)
    for size in ((height, width), (4, 3)):
        down, across = height + top + bottom - size[0] + 1, width + left + right - size[1] + 1
        offsets = np.array(list(itertools.product(range(down), range(across))))
        ours = crop(image.expand(len(offsets), -1, -1, -1), offsets - (top, left), size, mode, 0.3)
        for got, (row, column) in zip(ours, offsets.tolist(), strict=True):
            assert torch.equal(got, reference.crop(padded, row, column, *size))


def test_crop_fills_each_channel():
    cut = RandomCrop(padding=[2, 0], fill=[0.1, 0.2, 0.3])(images(1, 3), np.array([[0.5, 0.0]]))
    torch.testing.assert_close(cut[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("options", "offset", "window"),
    [
        ({"padding": 2}, (0.0, 0.999), (slice(0, 12), slice(4, 16))),
        ({"size": 5}, (0.999, 0.0), (slice(9, 14), slice(2, 7))),
        ({"size": [5, 7]}, (0.0, 0.0), (slice(2, 7), slice(2, 9))),
        ({"size": 14, "pad_if_needed": True}, (0.0, 0.999), (slice(0, 14), slice(2, 16))),
    ],
)
def test_crop_reaches_both_ends(options, offset, window):
    batch = images(1, 2)
    padded = torch.nn.functional.pad(batch, [2] * 4)
    assert torch.equal(RandomCrop(**options)(batch, np.array([offset])), padded[..., window[0], window[1]])


def test_affine_without_movement_gives_the_image_back():
    everything = RandomAffine(degrees=90, translate=(0.5, 0.5), scale=(0.5, 1.5), shear=(-45, 45, -45, 45))
    batch = images(3, 3)
    torch.testing.assert_close(everything(batch, np.full((3, 6), MIDDLE)), batch, atol=1e-5, rtol=0)


def test_a_crop_keeps_a_batch_in_the_order_of_channels_last():
    batch = images(2, 3).to(memory_format=torch.channels_last)
    assert pipeline({"RandomCrop": {"padding": 2}})(batch, keys_of(2), seed=0, epoch=0).is_contiguous(
        memory_format=torch.channels_last
    )


# ---- over many draws it has torchvision's distribution ---------------------------------------------------------------


def blob():
    """Return uint8 [1,24,24] with one bright corner square, whose place tells how it was moved."""
    image = torch.zeros(1, 24, 24, dtype=torch.uint8)
    image[:, 9:13, 12:18] = 200
    return image


def moments(batch):
    """Return mass, centre of mass (row, column) and spread of each image of floats [B,1,H,W]."""
    mass = batch.sum(dim=(1, 2, 3)).clamp_min(1e-6)
    rows, columns = torch.arange(batch.shape[2])[:, None], torch.arange(batch.shape[3])
    row, column = (batch * rows).sum(dim=(1, 2, 3)) / mass, (batch * columns).sum(dim=(1, 2, 3)) / mass
    skew = (batch * rows * columns).sum(dim=(1, 2, 3)) / mass - row * column
    return torch.stack([mass, row, column, skew], dim=1).numpy()


DISTRIBUTIONS = {
    "affine": {"RandomAffine": {"degrees": [10, 60], "translate": [0.1, 0.2], "scale": [0.7, 1.2], "shear": 15}},
    "affine sheared both ways": {"RandomAffine": {"degrees": 0, "shear": [5, 20, -30, -10]}},
    "rotation": {"RandomRotation": {"degrees": [10, 80]}},
    "crop": {"RandomCrop": {"padding": [2, 4]}},
    "crop of fewer": {"RandomCrop": {"padding": [0, 3, 1, 2], "padding_mode": "edge"}},
    "horizontal flip": {"RandomHorizontalFlip": {"p": 0.3}},
    "vertical flip": {"RandomVerticalFlip": {}},
}
COUNT = 4000


def both_speeds(spec, image):
    """Return floats [N,C,H,W] drawn at batch and at sample speed; rounding to bytes is the only difference."""
    ours = pipeline(spec)(image.float().expand(COUNT, -1, -1, -1) / 255, keys_of(COUNT), seed=0, epoch=0)
    apply = SamplePipeline.untried(specs_of(spec), (image.shape[0], image.shape[1]))
    theirs = torch.stack([apply(image, seed) for seed in range(COUNT)])
    return (ours * 255).round() / 255, theirs.float() / (255 if theirs.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("spec", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_both_speeds_move_images_alike(spec):
    ours, theirs = both_speeds(spec, blob())
    for here, there in zip(moments(ours).T, moments(theirs).T, strict=True):
        # blunt enough for the last bit of a sum, which is no difference between two distributions
        assert stats.ks_2samp(here.round(3), there.round(3)).pvalue > 0.001


@pytest.mark.parametrize(
    "options", [{}, {"p": 0.8, "scale": [0.3, 0.9], "ratio": [0.2, 5.0], "value": 0.5}], ids=["default", "often too large"]
)
def test_both_speeds_erase_alike(options):
    image = torch.full((1, 14, 14), 255, dtype=torch.uint8)
    ours, theirs = (out[:, 0] < 1 for out in both_speeds({"RandomErasing": options}, image))
    for statistic in (lambda b: b.sum(dim=(1, 2)), lambda b: b.any(dim=2).sum(dim=1), lambda b: b[:, 0].sum(dim=1),
                      lambda b: b[:, :, -1].sum(dim=1)):  # fmt: skip
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 0.001
    assert stats.fisher_exact([[int(e.any(dim=2).any(dim=1).sum()), COUNT] for e in (ours, theirs)]).pvalue > 0.001


@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip"])
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_flip_mirrors_a_share_p(name, p):
    batch = torch.arange(4.0).reshape(1, 1, 2, 2).expand(COUNT, 1, 2, 2)
    flipped = pipeline({name: {"p": p}})(batch, keys_of(COUNT), seed=0, epoch=0)
    hits = int((flipped[:, 0, 0, 0] != 0).sum())
    assert stats.binomtest(hits, COUNT, p).pvalue > 0.001 if 0 < p < 1 else hits == p * COUNT
    axis = -1 if name == "RandomHorizontalFlip" else -2
    assert set(map(tuple, flipped.flatten(1).tolist())) <= {
        tuple(b.flatten().tolist()) for b in (batch[0], batch[0].flip(axis))
    }


# ---- colours in arguments --------------------------------------------------------------------------------------------

NORMALIZE = {"Normalize": {"mean": [0.4], "std": [0.2]}}


@pytest.mark.parametrize(
    ("specs", "colour"),
    [
        ([{"RandomCrop": {"padding": 9, "fill": 51}}], 0.2),
        (["ToTensor", {"RandomCrop": {"padding": 9, "fill": 0.3}}], 0.3),
        ([{"ToDtype": {"dtype": "float32", "scale": True}}, {"RandomAffine": {"degrees": [45, 45], "fill": 0.3}}], 0.3),
        ([{"RandomAffine": {"degrees": [45, 45], "fill": 51}}], 0.2),
        ([{"RandomRotation": {"degrees": [45, 45], "fill": [51]}}], 0.2),
        ([NORMALIZE, {"RandomCrop": {"padding": 9, "fill": 1.0}}], 0.6),
        ([{"RandomErasing": {"p": 1.0, "value": 0.7, "scale": [0.8, 0.9], "ratio": [1.0, 1.0]}}], 0.7),
        ([NORMALIZE, {"RandomErasing": {"p": 1.0, "value": -1.0, "scale": [0.8, 0.9], "ratio": [1.0, 1.0]}}], 0.2),
    ],
)
def test_a_colour_is_in_bytes_first_then_in_floats_then_normalised(specs, colour):
    out = pipeline(*specs)(torch.ones(20, 3, 12, 12), keys_of(20), seed=0, epoch=0)
    assert (out - colour).abs().amin(dim=(1, 2, 3)).max() < 1e-5


def test_normalize_commutes_with_what_follows_it():
    after = [NORMALIZE, {"RandomCrop": {"padding": 3, "fill": -1.0}}, "RandomVerticalFlip", {"RandomErasing": {"value": 2.0}}]
    batch, keys = images(6, 3), keys_of(6)
    ours = (pipeline(*after)(batch, keys, seed=0, epoch=0) - 0.4) / 0.2
    theirs = pipeline("ToTensor", *after[1:])((batch - 0.4) / 0.2, keys, seed=0, epoch=0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_channels_of_a_clip_are_filled_by_frame():
    clips = torch.zeros(8, 4, 3, 12, 12)
    out = pipeline({"RandomCrop": {"padding": 12, "fill": [51, 102, 153]}})(clips, keys_of(8), seed=0, epoch=0)
    filled = out.amax(dim=(-1, -2))
    torch.testing.assert_close(filled[0, 3], torch.tensor([0.2, 0.4, 0.6]))


# ---- what every list promises ----------------------------------------------------------------------------------------

STRONG = {"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10}}
ALL = (STRONG, {"RandomRotation": {"degrees": 9}}, {"RandomCrop": {"padding": 2}}, "RandomHorizontalFlip", "RandomVerticalFlip",
       {"RandomErasing": {"p": 0.9}})  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_transformed_the_same_whatever_batch_it_is_in(channels):
    augment = pipeline(*ALL)
    batch, keys = images(20, channels, 28, 28), RNG.integers(0, 2**64, 20, dtype=np.uint64)
    together = augment(batch, keys, seed=1, epoch=2)
    for chosen in ([3], [19, 0, 7], list(range(20))[::-1]):
        assert torch.equal(augment(batch[chosen], keys[chosen], seed=1, epoch=2), together[chosen])


def test_all_frames_of_a_clip_share_one_draw():
    batch, keys = images(5, 3), keys_of(5)
    clips = batch[:, None].expand(-1, 4, -1, -1, -1)
    out = pipeline(*ALL)(clips, keys, seed=0, epoch=0)
    assert out.shape == clips.shape
    for frame in range(4):
        torch.testing.assert_close(out[:, frame], pipeline(*ALL)(batch, keys, seed=0, epoch=0))


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_each_image_gets_a_draw_of_its_own(spec):
    out = pipeline(spec)(images().expand(16, 1, 12, 12), keys_of(16), seed=0, epoch=0)
    assert out.shape == (16, 1, 12, 12)
    assert len({image.numpy().tobytes() for image in out}) > 1


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}], ids=["seed", "epoch"])
def test_seed_and_epoch_change_the_draw(other):
    batch, keys = images(8), keys_of(8)
    assert not torch.equal(pipeline(STRONG)(batch, keys, seed=0, epoch=0), pipeline(STRONG)(batch, keys, **other))


def test_the_same_transform_twice_draws_twice():
    batch = images(64)
    out = pipeline("RandomHorizontalFlip", "RandomHorizontalFlip")(batch, keys_of(64), seed=0, epoch=0)
    assert not torch.equal(out, batch)  # one draw for both would undo itself


@pytest.mark.parametrize("specs", [[], ["Identity", "ToImage", "ToTensor", "ToPureTensor"]], ids=["empty", "conversions"])
def test_what_does_nothing_leaves_the_images_alone(specs):
    batch = images(2)
    assert pipeline(*specs)(batch, keys_of(2), seed=0, epoch=0) is batch


def test_a_compose_is_its_list():
    batch, keys = images(8), keys_of(8)
    nested = pipeline({"Compose": {"transforms": specs_of(STRONG, "RandomErasing")}})
    assert torch.equal(nested(batch, keys, seed=0, epoch=0), pipeline(STRONG, "RandomErasing")(batch, keys, seed=0, epoch=0))


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("RandomAffine", {"degrees": 10}, {"degrees": 30}),
        ("RandomAffine", {"degrees": 10}, {"degrees": [0, 10]}),
        ("RandomAffine", {"degrees": 0}, {"translate": [0.3, 0.0]}),
        ("RandomAffine", {"degrees": 0}, {"translate": [0.0, 0.3]}),
        ("RandomAffine", {"degrees": 0}, {"scale": [0.5, 1.0]}),
        ("RandomAffine", {"degrees": 0}, {"shear": 30}),
        ("RandomAffine", {"degrees": 0, "shear": 30}, {"shear": [-30, 30, -30, 30]}),
        ("RandomAffine", {"degrees": 30}, {"interpolation": "nearest"}),
        ("RandomAffine", {"degrees": 30}, {"fill": 99}),
        ("RandomRotation", {"degrees": 10}, {"degrees": 30}),
        ("RandomRotation", {"degrees": 10}, {"interpolation": "nearest"}),
        ("RandomRotation", {"degrees": 10}, {"fill": 99}),
        ("RandomCrop", {}, {"padding": 1}),
        ("RandomCrop", {}, {"size": 9}),
        ("RandomCrop", {"size": 14, "padding": 1}, {"padding": None, "pad_if_needed": True}),
        ("RandomCrop", {"padding": 3}, {"fill": 99}),
        ("RandomCrop", {"padding": 3}, {"padding_mode": "edge"}),
        ("RandomErasing", {}, {"p": 1.0}),
        ("RandomErasing", {}, {"scale": [0.3, 0.33]}),
        ("RandomErasing", {}, {"ratio": [3.0, 3.3]}),
        ("RandomErasing", {}, {"value": 0.4}),
        ("RandomHorizontalFlip", {}, {"p": 1.0}),
        ("RandomVerticalFlip", {}, {"p": 1.0}),
    ],
)
def test_every_argument_changes_the_output(name, base, changed):
    batch, keys = images(8), keys_of(8)
    plain, other = (pipeline({name: args})(batch, keys, seed=0, epoch=0) for args in (base, {**base, **changed}))
    assert plain.shape != other.shape or not torch.equal(plain, other)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"ColorJitter": {}}, "ColorJitter"),
        ({"RandomAffine": {"degrees": 1, "center": [1, 1]}}, "RandomAffine.center"),
        ({"RandomAffine": {"degrees": 1, "interpolation": "bicubic"}}, "RandomAffine.interpolation"),
        ({"RandomRotation": {"degrees": 1, "expand": True}}, "RandomRotation.expand"),
        ({"RandomErasing": {"value": "random"}}, "RandomErasing.value=random"),
        ({"RandomCrop": {"size": 9}}, r"RandomCrop.size other than the input's \(12\)"),
        ({"RandomCrop": {"padding": -1}}, "RandomCrop.padding below 0"),
        ({"ToDtype": {"dtype": "float32"}}, "ToDtype {'dtype': 'float32'}"),
        ({"RandomApply": {"transforms": []}}, "RandomApply"),
        ({"my.module:Own": {}}, "my.module:Own"),
        ({"Compose": {"transforms": [NORMALIZE, STRONG]}}, "RandomAffine after Normalize"),
    ],
)
def test_what_has_no_form_for_batches_is_named(spec, what):
    with pytest.raises(NotInBatches, match=what):
        pipeline(spec, size=12)


@pytest.mark.parametrize("spec", [{"RandomAffine": {"degrees": 1, "center": None}}, {"RandomErasing": {"inplace": True}},
    {"RandomRotation": {"degrees": 1, "expand": False}}, {"RandomCrop": {"size": [12, 12]}}], ids=str)  # fmt: skip
def test_an_argument_that_asks_for_nothing_is_no_hindrance(spec):
    assert len(pipeline(spec, size=12).transforms) == 1
