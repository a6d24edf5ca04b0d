"""What is taken for right without asking torchvision is right, and nothing heavy is imported for it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracked_cls.transforms.batch import TRANSFORMS, BatchPipeline
from tracked_cls.transforms.plain import are_plain
from tracked_cls.transforms.samples import SamplePipeline

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 28)
SPANS = [0, 5, 5.5, -1, [-5, 5], [5, -5], [1, 2, 3], [0.5, 0.5], [0, 0], "5", None, True, float("nan"), float("inf"), []]
ARGUMENTS = {
    "RandomAffine": {
        "degrees": SPANS,
        "translate": [*SPANS, [0.1, 0.2], [1, 1], [1.5, 0]],
        "scale": [*SPANS, [0.9, 1.1], [0.001, 1000]],
        "shear": SPANS,
        "interpolation": ["nearest", "bilinear", "bicubic", 2],
        "fill": [0, 255, 256, 0.5, [1], "x"],
        "center": [[0, 0]],
    },
    "RandomRotation": {"degrees": SPANS, "interpolation": ["nearest", "x"], "fill": [0, "x"], "expand": [True]},
    "RandomCrop": {
        "padding": [*SPANS, 27, 28, 255, 256, [1, 2]],
        "fill": [0, 300],
        "padding_mode": ["reflect", "x"],
        "size": [12],
    },
    "RandomErasing": {
        "p": SPANS,
        "scale": [*SPANS, [0.1, 0.2]],
        "ratio": [*SPANS, [0.3, 3]],
        "value": [0, 1, 2, "random", [0.5]],
    },
    "RandomHorizontalFlip": {"p": [*SPANS, 0.5, 1]},
    "RandomVerticalFlip": {"p": [*SPANS, 0.5, 1]},
    "ColorJitter": {"hue": [0.1]},
    "Compose": {"transforms": [[{"RandomVerticalFlip": {}}]]},
}
CASES = [
    (name, {**needed, key: value})
    for name, arguments in ARGUMENTS.items()
    for needed in ([{"degrees": 5}] if name in ("RandomAffine", "RandomRotation") else [{}])
    for key, value in (
        ("", None),
        *itertools.chain.from_iterable(((key, value) for value in values) for key, values in arguments.items()),
    )
]


def _spec(name, args):
    return {name: {key: value for key, value in args.items() if key}}


def test_every_plain_list_is_one_that_torchvision_takes_and_that_has_a_form_for_batches(one_thread):
    plain = [_spec(name, args) for name, args in CASES if are_plain([_spec(name, args)])]
    assert {name for spec in plain for name in spec} == set(TRANSFORMS)
    assert len(plain) > 40
    for spec in plain:
        SamplePipeline.from_specs([spec], SHAPE)
        BatchPipeline.from_specs([spec], SHAPE[1])


@pytest.mark.parametrize(
    "spec",
    [
        {"RandomAffine": {}},
        {"RandomAffine": {"degrees": [5, -5]}},
        {"RandomAffine": {"degrees": True}},
        {"RandomAffine": {"degrees": 5, "angle": 3}},
        {"RandomErasing": {"p": 1.5}},
        {"RandomCrop": {"padding": -1}},
        {"Rotate": {}},
        {"Normalize": {"mean": [0.5], "std": [0.5]}},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_torchvision(spec):
    assert not are_plain([{"RandomHorizontalFlip": {}}, spec])


def test_a_list_for_batches_is_planned_without_torchvision():
    code = (
        "import sys; from tracked_cls.config import TransformsConfig; from tracked_cls.transforms import check;"
        "train = [{'RandomAffine': {'degrees': 10, 'translate': [0.08, 0.08], 'scale': [0.9, 1.1]}}, 'RandomHorizontalFlip'];"
        "check(TransformsConfig.model_validate({'train': train}), (1, 28)); assert 'torchvision' not in sys.modules;"
        "check(TransformsConfig.model_validate({'train': ['RandomInvert']}), (1, 28)); assert 'torchvision' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
