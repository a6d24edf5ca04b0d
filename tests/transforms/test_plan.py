"""Which speed a list gets, and what is checked before data are touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracked_cls.config import TransformsConfig
from tracked_cls.errors import UserError
from tracked_cls.transforms import check, plan_training, trimmed

SHAPE = (3, 16)
NORMALIZE = {"Normalize": {"mean": [0.5], "std": [0.5]}}
CROP = {"RandomCrop": {"padding": 2}}
pytestmark = pytest.mark.usefixtures("one_thread")


def config(*train, **options):
    return TransformsConfig.model_validate({"train": list(train), **options})


def per_sample(cfg, **options):
    return plan_training(cfg, SHAPE, **{"whole_photos": False, **options}).images.per_sample


@pytest.mark.parametrize(
    ("train", "slow"),
    [
        ([], False),
        ([CROP, "RandomHorizontalFlip", "ToTensor", NORMALIZE, "RandomErasing"], False),
        ([CROP, "MixUp", "CutMix"], False),
        ([{"RandomRotation": {"degrees": 5, "expand": True}}], True),
        ([{"RandomAffine": {"degrees": 5, "center": [0, 0]}}], True),
        ([CROP, {"ColorJitter": {"hue": 0.1}}], True),
        ([{"RandomErasing": {"value": "random"}}], True),
        ([{"RandomCrop": {"size": 12}}], True),
    ],
)
def test_auto_takes_batches_where_every_transform_can(train, slow):
    assert per_sample(config(*train)) is slow
    assert per_sample(config(*train, speed="sample")) is True


def test_whole_photos_come_image_by_image():
    assert per_sample(config(CROP), whole_photos=True) is True


@pytest.mark.parametrize(
    ("train", "whole", "what"),
    [
        ([CROP, {"ColorJitter": {"hue": 0.1}}], False, "ColorJitter"),
        ([{"RandomAffine": {"degrees": 5, "center": [0, 0]}}], False, "RandomAffine.center"),
        ([CROP], True, "data.cache=files"),
    ],
)
def test_batch_speed_names_what_it_cannot_do(train, whole, what):
    with pytest.raises(UserError, match=f"transforms.speed=batch: {what} is only possible image by image"):
        plan_training(config(*train, speed="batch"), SHAPE, whole_photos=whole)


def test_both_speeds_give_the_same_kind_of_image():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    for speed in ("batch", "sample"):
        plan = plan_training(config(CROP, "ToTensor", NORMALIZE, speed=speed), SHAPE, whole_photos=False)
        assert plan.images.normalises is False  # left to the loader, with the values of the list
        if speed == "batch":
            keys = np.zeros(1, np.uint64)
            assert plan.images((image / 255)[None], keys, seed=0, epoch=0).shape == (1, 3, 16, 16)
        else:
            assert plan.images(image, 3).shape == (3, 16, 16)
            assert plan.images(image, 3).dtype == torch.uint8


def test_whole_photos_are_fitted_before_they_become_float():
    fit = lambda image: torch.ones(3, 16, 16, dtype=torch.uint8)  # noqa: E731
    plan = plan_training(config("RandomHorizontalFlip", "ToTensor", NORMALIZE), SHAPE, whole_photos=True, fit=fit)
    assert plan.images(torch.zeros(3, 40, 50, dtype=torch.uint8), 0).sum() == 3 * 256


def test_mixes_are_kept_apart():
    plan = plan_training(config(CROP, {"MixUp": {"alpha": 0.3}}), SHAPE, whole_photos=False)
    assert plan.mixing.mixes[0].alpha == 0.3
    assert plan_training(config(CROP), SHAPE, whole_photos=False).mixing is None


def test_trimmed_leaves_out_what_the_loader_does():
    specs = config("ToTensor", CROP, {"Compose": {"transforms": ["RandomInvert", "ToTensor"]}}, NORMALIZE).train
    assert [name for spec in trimmed(specs) for name in spec] == ["ToTensor", "RandomCrop", "RandomInvert"]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"train": [{"RandomCrop": {"pading": 2}}]}, "transforms.train: transform RandomCrop takes no argument 'pading'"),
        ({"train": [{"MixUp": {"alpha": 0}}]}, "transforms.train: MixUp.alpha must be a number above 0"),
        ({"train": ["ToTensor", {"Pad": {"padding": 1}}]}, "transforms.train: the transforms leave a float image of 18 x 18"),
        ({"train": [{"ColorJitter": {"hue": 0.1}}], "speed": "batch"}, "transforms.speed=batch: ColorJitter"),
        ({"eval": [{"Resize": {"sise": 2}}]}, "transforms.eval: transform Resize takes no argument 'sise'"),
        ({"eval": ["ToTensor", {"Normalize": {"mean": [1, 2], "std": [1, 1]}}]}, "transforms.eval: Normalize.mean must be"),
        ({"eval": [{"FiveCrop": {"size": 40}}]}, "transforms.eval: transform FiveCrop on an image of 3 x 16 x 16"),
    ],
)
def test_check_names_the_list(cfg, message):
    with pytest.raises(UserError, match=message):
        check(TransformsConfig.model_validate(cfg), SHAPE)


def test_check_accepts_what_works():
    check(
        config(CROP, "AutoAugment", "ToTensor", NORMALIZE, "CutMix", eval=[{"Resize": {"size": 20}}, {"FiveCrop": {}}]), SHAPE
    )
    check(config(eval=["ToTensor", NORMALIZE]), SHAPE, whole_photos=True)


def test_check_reads_the_list_of_predict():
    class Predict:
        predict = ({"RandomCrop": {"pading": 2}},)

    with pytest.raises(UserError, match="transforms.predict: transform RandomCrop takes no argument 'pading'"):
        check(Predict(), SHAPE)
