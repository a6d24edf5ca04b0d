"""Image by image: every name of torchvision, the user's own, and one meaning for each argument."""

from __future__ import annotations

import inspect
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from tracked_cls.config import CROPS, MIXES, TRANSFORM_NAMES
from tracked_cls.errors import UserError
from tracked_cls.transforms import SamplePipeline

SIZE = 32
pytestmark = pytest.mark.usefixtures("one_thread")
FLOWER = Image.fromarray(load_sample_image("flower.jpg")).resize((SIZE, SIZE))
PICTURES = {
    channels: torch.from_numpy(np.array(FLOWER.convert(mode)).reshape(SIZE, SIZE, channels)).permute(2, 0, 1).contiguous()
    for channels, mode in ((1, "L"), (3, "RGB"))
}
CLIP = torch.stack([PICTURES[3].roll(shift, 2) for shift in range(6)])
INVERT = [{"RandomInvert": {"p": 1.0}}]
BOTH = [{"RandomInvert": {"p": 1.0}}, {"RandomHorizontalFlip": {"p": 1.0}}]


def whiten(channels, scale=0.5):
    length = channels * SIZE * SIZE
    return {"transformation_matrix": np.eye(length, dtype=np.float32) * scale, "mean_vector": [0.1] * length}


# what a name needs, and other values for each of its arguments
NEEDS = {
    "GaussianBlur": {"kernel_size": 5},
    "JPEG": {"quality": 20},
    "Pad": {"padding": 3},
    "RandomAdjustSharpness": {"sharpness_factor": 3.0},
    "RandomAffine": {"degrees": 20},
    "RandomPosterize": {"bits": 2},
    "RandomResize": {"min_size": 20, "max_size": 40},
    "RandomRotation": {"degrees": 20},
    "RandomShortestSize": {"min_size": 20},
    "RandomSolarize": {"threshold": 128},
    "ToDtype": {"dtype": "float32"},
    "UniformTemporalSubsample": {"num_samples": 6},
    **{name: {"transforms": INVERT} for name in ("Compose", "RandomApply", "RandomChoice", "RandomOrder")},
}
ARGUMENTS = {
    "AugMix": {"severity": 10, "mixture_width": 1, "chain_depth": 5, "alpha": 9.0, "all_ops": False, "interpolation": "nearest",
               "fill": 200},
    "AutoAugment": {"policy": "svhn", "interpolation": "bilinear", "fill": 200},
    "CenterCrop": {"size": 20},
    "ColorJitter": {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.4},
    "Compose": {"transforms": BOTH},
    "ConvertImageDtype": {"dtype": "float16"},
    "ElasticTransform": {"alpha": 200.0, "sigma": 3.0, "interpolation": "nearest", "fill": 200},
    "FiveCrop": {"size": 20},
    "GaussianBlur": {"kernel_size": 3, "sigma": [3.0, 4.0]},
    "GaussianNoise": {"mean": 0.3, "sigma": 0.5, "clip": False},
    "Grayscale": {"num_output_channels": 3},
    "JPEG": {"quality": 90},
    "LinearTransformation": {"transformation_matrix": whiten(3, 0.9)["transformation_matrix"],
                             "mean_vector": [0.4] * 3 * SIZE * SIZE},
    "Normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3], "inplace": True},
    "Pad": {"padding": [1, 2, 3, 4], "fill": 200, "padding_mode": "reflect"},
    "RandAugment": {"num_ops": 5, "magnitude": 30, "num_magnitude_bins": 11, "interpolation": "bilinear", "fill": 200},
    "RandomAdjustSharpness": {"sharpness_factor": 0.0, "p": 0.0},
    "RandomAffine": {"degrees": [50, 60], "translate": [0.3, 0.3], "scale": [0.4, 0.5], "shear": [20, 30, 20, 30],
                     "interpolation": "nearest", "fill": 200, "center": [3, 3]},
    "RandomApply": {"transforms": BOTH, "p": 0.0},
    "RandomAutocontrast": {"p": 0.0},
    "RandomChoice": {"transforms": BOTH, "p": [1.0]},
    "RandomCrop": {"size": 20, "padding": 5, "pad_if_needed": True, "fill": 200, "padding_mode": "reflect"},
    "RandomEqualize": {"p": 0.0},
    "RandomErasing": {"p": 0.0, "scale": [0.4, 0.5], "ratio": [3.0, 3.3], "value": "random", "inplace": True},
    "RandomGrayscale": {"p": 0.0},
    "RandomHorizontalFlip": {"p": 0.0},
    "RandomInvert": {"p": 0.0},
    "RandomOrder": {"transforms": BOTH},
    "RandomPerspective": {"distortion_scale": 0.9, "p": 0.0, "interpolation": "nearest", "fill": 200},
    "RandomPhotometricDistort": {"brightness": [2.0, 2.1], "contrast": [2.0, 2.1], "saturation": [2.0, 2.1],
                                 "hue": [0.4, 0.5], "p": 0.0},
    "RandomPosterize": {"bits": 1, "p": 0.0},
    "RandomResize": {"min_size": 38, "max_size": 20 + 61, "interpolation": "nearest", "antialias": False},
    "RandomResizedCrop": {"size": 20, "scale": [0.1, 0.11], "ratio": [3.0, 3.1], "interpolation": "nearest",
                          "antialias": False},
    "RandomRotation": {"degrees": [50, 60], "interpolation": "nearest", "expand": True, "center": [3, 3], "fill": 200},
    "RandomShortestSize": {"min_size": 25, "max_size": 18, "interpolation": "nearest", "antialias": False},
    "RandomSolarize": {"threshold": 50, "p": 0.0},
    "RandomVerticalFlip": {"p": 0.0},
    "RandomZoomOut": {"fill": 200, "side_range": [3.0, 3.5], "p": 0.0},
    "Resize": {"size": 20, "interpolation": "nearest", "max_size": 40, "antialias": False},
    "ScaleJitter": {"target_size": [20, 20], "scale_range": [0.5, 0.6], "interpolation": "nearest", "antialias": False},
    "TenCrop": {"size": 20, "vertical_flip": True},
    "ToDtype": {"dtype": "float16", "scale": True},
    "ToPILImage": {"mode": "RGB"},
    "TrivialAugmentWide": {"num_magnitude_bins": 5, "interpolation": "bilinear", "fill": 200},
    "UniformTemporalSubsample": {"num_samples": 3},
}  # fmt: skip
NO_ARGUMENTS = ("Identity", "PILToTensor", "RGB", "RandomChannelPermutation", "ToImage", "ToPureTensor", "ToTensor")
# shown elsewhere: in another test, or without effect on the values by their nature
ELSEWHERE = {
    ("Grayscale", "num_output_channels"): "the channels are the model's again at the end",
    ("Normalize", "inplace"): "spends less memory, nothing else",
    ("RandomErasing", "inplace"): "spends less memory, nothing else",
    ("RandomCrop", "pad_if_needed"): "with a larger size",
    ("RandomCrop", "fill"): "with padding",
    ("RandomCrop", "padding_mode"): "with padding",
    ("Pad", "fill"): "compared to 0",
    ("RandomChoice", "p"): "test_choice_follows_its_probabilities",
    ("RandomChoice", "transforms"): "test_choice_follows_its_probabilities",
    ("Resize", "max_size"): "test_resize_by_its_longer_side",
    ("RandomResizedCrop", "antialias"): "with a smaller size",
    ("Resize", "antialias"): "with a smaller size",
    ("Resize", "interpolation"): "with a smaller size",
    ("ToDtype", "dtype"): "the types end in float32 or bytes",
    ("ConvertImageDtype", "dtype"): "the types end in float32 or bytes",
    ("ToPILImage", "mode"): "the only mode of three channels",
    ("TenCrop", "vertical_flip"): "with a smaller size",
    ("UniformTemporalSubsample", "num_samples"): "test_a_clip_keeps_its_frames",
    ("LinearTransformation", "transformation_matrix"): "with its vector",
    ("LinearTransformation", "mean_vector"): "with its matrix",
    ("GaussianBlur", "kernel_size"): "with a wide sigma",
}
WITH = {  # arguments that only show beside others
    ("RandomCrop", "pad_if_needed"): ({"size": 40, "padding": 4}, {"size": 40, "pad_if_needed": True}),
    ("RandomCrop", "fill"): ({"padding": 5}, {"padding": 5, "fill": 200}),
    ("RandomCrop", "padding_mode"): ({"padding": 5}, {"padding": 5, "padding_mode": "reflect"}),
    ("RandomResizedCrop", "antialias"): ({"size": 8}, {"size": 8, "antialias": False}),
    ("Resize", "antialias"): ({"size": 20}, {"size": 20, "antialias": False}),
    ("Resize", "interpolation"): ({"size": 20}, {"size": 20, "interpolation": "nearest"}),
    ("Pad", "fill"): ({"padding": 3}, {"padding": 3, "fill": 200}),
    ("TenCrop", "vertical_flip"): ({"size": 20}, {"size": 20, "vertical_flip": True}),
    ("GaussianBlur", "kernel_size"): ({"kernel_size": 5, "sigma": 3.0}, {"kernel_size": 3, "sigma": 3.0}),
    ("LinearTransformation", "transformation_matrix"): (whiten(3), whiten(3, 0.9)),
    ("LinearTransformation", "mean_vector"): (whiten(3), {**whiten(3), "mean_vector": [0.4] * 3 * SIZE * SIZE}),
}


def needs(name, channels=3):
    per_channel = {"mean": [0.5] * channels, "std": [0.5] * channels}
    return {"Normalize": per_channel, "LinearTransformation": whiten(channels)}.get(name, NEEDS.get(name, {}))


def pipeline(*specs, channels=3, **options):
    named = [spec if isinstance(spec, dict) else {spec: {}} for spec in specs]
    return SamplePipeline.from_specs(named, (channels, SIZE), **options)


def outputs(name, args, count=8):
    """Return what several seeds make of the picture, whatever its size."""
    apply = SamplePipeline.untried([{name: args}], (3, SIZE))
    return [apply.run(PICTURES[3], seed) for seed in range(count)]


def same(here, there):
    return all(
        len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(here, there, strict=True)
    )


# ---- every name ------------------------------------------------------------------------------------------------------

EXCLUDED = {
    "AutoAugmentPolicy": "a word of AutoAugment",
    "InterpolationMode": "a word of many",
    "Transform": "the base class",
    "Lambda": "needs a function: a user's own is named by its import path",
    **dict.fromkeys(
        ("ClampBoundingBoxes", "ConvertBoundingBoxFormat", "RandomIoUCrop", "SanitizeBoundingBoxes"), "for bounding boxes"
    ),
    **dict.fromkeys(("ClampKeyPoints", "SanitizeKeyPoints", "SetClampingMode"), "for key points"),
}


def test_the_names_are_torchvisions():
    theirs = {name for name in dir(v2) if name[0].isupper()}
    assert set(TRANSFORM_NAMES) == theirs - set(EXCLUDED)


def test_the_tables_of_this_file_name_every_transform():
    assert {*ARGUMENTS, *NO_ARGUMENTS, *MIXES} == set(TRANSFORM_NAMES)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in TRANSFORM_NAMES if name not in MIXES])
def test_every_transform_works_on_a_picture(name, channels):
    clip = name == "UniformTemporalSubsample"
    stretched = lambda image: reference.resize(image, [SIZE, SIZE])  # noqa: E731
    apply = pipeline({name: needs(name, channels)}, channels=channels, fit=stretched, frames=6 if clip else None)
    image = CLIP[:, :channels] if clip else PICTURES[channels]
    before = image.clone()
    spread = []
    for seed in range(5):
        out = apply(image, seed)
        views = {"FiveCrop": (5,), "TenCrop": (10,), "UniformTemporalSubsample": (6,)}.get(name, ())
        assert out.shape == (*views, channels, SIZE, SIZE)
        assert out.dtype in (torch.uint8, torch.float32)
        assert type(out) is torch.Tensor
        assert out.isfinite().all()
        spread.append(float(out.float().std()))
    assert max(spread) > 0
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, args in ARGUMENTS.items() for argument in args if (name, argument) not in ELSEWHERE],
)
def test_every_argument_changes_the_output(name, argument):
    changed = {**needs(name), argument: ARGUMENTS[name][argument]}
    assert not same(outputs(name, needs(name)), outputs(name, changed))


@pytest.mark.parametrize(("name", "argument"), WITH, ids="-".join)
def test_an_argument_changes_the_output_beside_others(name, argument):
    plain, changed = WITH[name, argument]
    assert not same(outputs(name, plain), outputs(name, changed))


@pytest.mark.parametrize("name", [name for name in TRANSFORM_NAMES if name not in (*MIXES, "ToTensor")])
def test_the_tables_of_this_file_name_every_argument(name):
    assert set(inspect.signature(getattr(v2, name)).parameters) == set(ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", ["Identity", "PILToTensor", "RGB", "ToImage", "ToPureTensor", "ToPILImage", "RandomCrop"])
def test_what_only_changes_the_kind_of_an_image_keeps_its_pixels(name):
    assert torch.equal(pipeline(name)(PICTURES[3], 0), PICTURES[3])


@pytest.mark.parametrize("before", [[], ["ToPILImage"], ["ToImage"]], ids=["tensor", "PIL", "tv_tensor"])
@pytest.mark.parametrize("name", ["ToTensor", {"ToDtype": {"dtype": "float32", "scale": True}}, "ConvertImageDtype"], ids=str)
def test_floats_are_the_bytes_over_255(name, before):
    if before == ["ToPILImage"] and name != "ToTensor":
        before = ["ToPILImage", "ToImage"]
    out = pipeline(*before, name)(PICTURES[3], 0)
    torch.testing.assert_close(out, PICTURES[3].float() / 255, atol=1e-6, rtol=0)


def test_todtype_without_scale_keeps_the_numbers():
    assert torch.equal(pipeline({"ToDtype": {"dtype": "float32"}})(PICTURES[3], 0), PICTURES[3].float())


def test_what_needs_floats_gets_them():
    out = pipeline({"Normalize": {"mean": [0.5], "std": [0.25]}})(PICTURES[3], 0)
    torch.testing.assert_close(out, (PICTURES[3].float() / 255 - 0.5) / 0.25)


def test_channels_permute():
    found = {tuple(sorted(out[0].float().mean(dim=(1, 2)).tolist())) for out in outputs("RandomChannelPermutation", {})}
    assert len(found) == 1
    assert len({out[0].numpy().tobytes() for out in outputs("RandomChannelPermutation", {})}) > 1


def test_grey_and_colour_end_in_the_channels_of_the_model():
    grey = pipeline("Grayscale")(PICTURES[3], 0)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(pipeline()(PICTURES[1], 0), PICTURES[1].expand(3, -1, -1))
    assert torch.equal(pipeline("RGB", channels=1)(PICTURES[1], 0), PICTURES[1])
    assert torch.equal(pipeline(channels=1)(PICTURES[3], 0), PICTURES[1])  # as Pillow's convert("L")


def test_resize_by_its_longer_side():
    apply = SamplePipeline.untried([{"Resize": {"size": None, "max_size": 16}}], (3, SIZE))
    assert apply.run(PICTURES[3][:, :16], 0)[0].shape == (3, 8, 16)


def test_choice_follows_its_probabilities():
    flip = {"RandomHorizontalFlip": {"p": 1.0}}
    never, always = ({"RandomChoice": {"transforms": [flip, {"Identity": {}}], "p": p}} for p in ([0, 1], [1, 0]))
    assert torch.equal(pipeline(never)(PICTURES[3], 1), PICTURES[3])
    assert torch.equal(pipeline(always)(PICTURES[3], 1), PICTURES[3].flip(2))


def test_matrices_come_from_files_too(tmp_path):
    args = whiten(3)
    np.save(tmp_path / "matrix.npy", np.array(args["transformation_matrix"]))
    np.save(tmp_path / "mean.npy", np.array(args["mean_vector"]))
    files = {"transformation_matrix": str(tmp_path / "matrix.npy"), "mean_vector": str(tmp_path / "mean.npy")}
    assert same(outputs("LinearTransformation", args, 1), outputs("LinearTransformation", files, 1))


# ---- randomness ------------------------------------------------------------------------------------------------------

STRONG = [{"RandomAffine": {"degrees": 30, "translate": [0.2, 0.2]}}, {"ColorJitter": {"brightness": 0.5}}, {"AugMix": {}}]


def test_an_image_is_a_function_of_its_seed():
    apply = pipeline(*STRONG)
    first = apply(PICTURES[3], 2**64 - 5)
    apply(PICTURES[3], 1)
    torch.manual_seed(7)
    assert torch.equal(apply(PICTURES[3], 2**64 - 5), first)
    assert not torch.equal(apply(PICTURES[3], 6), first)


def test_the_generators_of_the_process_stay_where_they_were(own):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.random()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    pipeline(*STRONG, {f"{own}:Jitter": {}})(PICTURES[3], 11)
    assert (torch.rand(1), random.random(), np.random.random()) == expected


def test_all_frames_of_a_clip_share_one_draw():
    still = PICTURES[3].expand(4, -1, -1, -1)
    out = pipeline(*STRONG, "RandomErasing", "RandomPerspective", frames=4)(still, 5)
    assert not torch.equal(out[0], PICTURES[3].float() / 255)
    for frame in out:
        assert torch.equal(frame, out[0])


# ---- sizes, views, clips ---------------------------------------------------------------------------------------------


def test_another_size_is_fitted_while_it_is_bytes():
    seen = []

    def fit(image):
        seen.append(tuple(image.shape))
        return torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)

    out = pipeline({"Pad": {"padding": 2}}, fit=fit)(PICTURES[3], 0)
    assert out.shape == (3, SIZE, SIZE)
    assert set(seen) == {(3, SIZE + 4, SIZE + 4)}
    assert not out.any()


def test_a_float_image_of_another_size_is_refused():
    with pytest.raises(UserError, match="float image of 36 x 36 pixels, the model takes 32 x 32; end the list with CenterCrop"):
        pipeline("ToTensor", {"Pad": {"padding": 2}})


@pytest.mark.parametrize(("name", "count"), [("FiveCrop", 5), ("TenCrop", 10)])
def test_each_view_of_a_crop_is_transformed(name, count):
    apply = pipeline({"Resize": {"size": 40}}, {name: {"size": SIZE}}, {"RandomInvert": {"p": 1.0}}, "ToTensor")
    crops = (reference.five_crop if name == "FiveCrop" else reference.ten_crop)(reference.resize(PICTURES[3], [40]), [SIZE])
    out = apply(PICTURES[3], 0)
    assert out.shape == (count, 3, SIZE, SIZE)
    torch.testing.assert_close(out, 1 - torch.stack(crops).float() / 255)


def test_a_clip_keeps_its_frames():
    with pytest.raises(UserError, match="the number of frames must stay"):
        pipeline({"UniformTemporalSubsample": {"num_samples": 3}}, frames=6)


def test_the_type_is_the_same_for_every_image():
    apply = pipeline({"RandomApply": {"transforms": [{"GaussianNoise": {}}], "p": 0.5}})
    assert {apply(PICTURES[3], seed).dtype for seed in range(10)} == {torch.float32}


@pytest.mark.parametrize(("specs", "normalises"), [([], False), (["ToTensor"], False), (
    ["ToTensor", {"Normalize": {"mean": [0.5], "std": [0.5]}}], True)])  # fmt: skip
def test_it_knows_whether_it_normalises(specs, normalises):
    assert pipeline(*specs).normalises is normalises


# ---- the user's own --------------------------------------------------------------------------------------------------

OWN = """
import random
import numpy as np
import torch

class Invert:
    def __init__(self, strength=1.0):
        self.strength = strength
    def __call__(self, image):
        assert type(image) is torch.Tensor and image.dtype == torch.uint8
        return (255 - image * self.strength).to(torch.uint8)

class Jitter:
    def __call__(self, image):
        return image + int(5 * random.random() + 5 * np.random.random() + 5 * torch.rand(()))

class InPlace:
    def __call__(self, image):
        return image.fill_(7)

def rotated(image, degrees):
    return image.rotate(degrees)

def as_array(image):
    return np.asarray(image)[:, ::-1]

def nothing(image):
    return None

def broken(image):
    return image.no_such_thing
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_transforms.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    yield "my_transforms"
    sys.path.remove(str(folder))


def test_a_users_class_takes_its_arguments(own):
    assert torch.equal(pipeline(f"{own}:Invert")(PICTURES[3], 0), 255 - PICTURES[3])
    assert not pipeline({f"{own}:Invert": {"strength": 0.0}})(PICTURES[3], 0).float().sub(255).any()


def test_a_users_function_gets_the_pil_image(own):
    turned = pipeline("ToPILImage", {f"{own}:rotated": {"degrees": 90}})(PICTURES[3], 0)
    assert torch.equal(turned, PICTURES[3].rot90(1, (1, 2)))
    mirrored = pipeline("ToPILImage", f"{own}:as_array", "RandomInvert")(PICTURES[3], 0)
    assert mirrored.shape == (3, SIZE, SIZE)


def test_a_users_randomness_is_a_function_of_the_seed(own):
    apply = pipeline({"RandomApply": {"transforms": [{f"{own}:Jitter": {}}], "p": 1.0}})
    values = [apply(PICTURES[3], seed) for seed in range(8)]
    random.seed(1)
    np.random.seed(1)
    for seed, value in enumerate(values):
        assert torch.equal(apply(PICTURES[3], seed), value)
    assert len({value.numpy().tobytes() for value in values}) > 2


def test_a_user_may_write_into_the_image(own):
    before = PICTURES[3].clone()
    assert (pipeline(f"{own}:InPlace")(PICTURES[3], 0) == 7).all()
    assert torch.equal(PICTURES[3], before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "transform my_transforms:nothing must return a tensor, an array or a PIL image, got NoneType"),
        ("broken", r"transform my_transforms:broken: AttributeError: .*no_such_thing.*\(my_transforms.py, line 31\)"),
        ("rotated", "my_transforms:rotated: TypeError: .*degrees"),
    ],
)
def test_a_users_mistake_is_named(own, name, message):
    with pytest.raises(UserError, match=message):
        pipeline(f"{own}:{name}")


def test_a_list_travels_as_its_names(own, monkeypatch):
    apply = pipeline(*STRONG, f"{own}:Invert", {"LinearTransformation": whiten(3)})
    pickled = pickle.dumps(apply)
    assert b"torchvision" not in pickled
    monkeypatch.delitem(sys.modules, own)  # as in a spawned process, which has not imported it
    assert torch.equal(pickle.loads(pickled)(PICTURES[3], 5), apply(PICTURES[3], 5))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("RandomAfine", {}, "unknown transform 'RandomAfine'; did you mean 'RandomAffine'?"),
        (
            "RandomCrop",
            {"paddin": 2},
            r"RandomCrop takes no argument 'paddin'; did you mean 'padding'\?; it takes size, padding",
        ),
        ("Identity", {"p": 1}, "transform Identity takes no argument 'p'; it takes none"),
        ("ToTensor", {"p": 1}, "transform ToTensor takes no argument 'p'"),
        ("RandomAffine", {}, "transform RandomAffine needs degrees; it takes degrees, translate"),
        ("Normalize", {"mean": [0.5]}, "transform Normalize needs std"),
        ("Normalize", {"mean": [0.5, 0.5], "std": [1, 1]}, r"Normalize.mean must be .* per channel \(3\), got \[0.5, 0.5\]"),
        ("Normalize", {"mean": [0.5], "std": [0]}, "transform Normalize"),
        ("RandomAffine", {"degrees": -1}, "transform RandomAffine with {'degrees': -1}: .*must be positive"),
        ("RandomAffine", {"degrees": "ten"}, "transform RandomAffine with {'degrees': 'ten'}"),
        ("RandomAffine", {"degrees": 1, "translate": [0, 2]}, "translation values should be between 0 and 1"),
        ("RandomAffine", {"degrees": 1, "scale": [2, 1]}, "transform RandomAffine on an image of 3 x 32 x 32: uniform_"),
        ("RandomAffine", {"degrees": 1, "interpolation": "cubic"}, "unknown RandomAffine.interpolation 'cubic'"),
        ("RandomErasing", {"scale": [0.5, 0.2]}, r"RandomErasing with {'scale': \[0.5, 0.2\]}: Scale and ratio should be"),
        ("RandomErasing", {"p": float("nan")}, "transform RandomErasing"),
        ("RandomErasing", {"value": [1, 2], "p": 0.01}, "transform RandomErasing on an image of 3 x 32 x 32: If value"),
        ("RandomHorizontalFlip", {"p": 1.5}, "RandomHorizontalFlip with {'p': 1.5}: `p` should be"),
        ("RandomCrop", {"size": 40}, "transform RandomCrop on an image of 3 x 32 x 32: Required crop size"),
        ("RandomCrop", {"padding": 40, "padding_mode": "reflect"}, "transform RandomCrop on an image of 3 x 32 x 32"),
        ("ToDtype", {"dtype": "int7"}, "unknown ToDtype.dtype 'int7'"),
        ("AutoAugment", {"policy": "imagenet2"}, "unknown AutoAugment.policy 'imagenet2'; did you mean 'imagenet'"),
        ("RandomApply", {"transforms": "x"}, "RandomApply.transforms must be a list"),
        ("RandomApply", {"transforms": [{"FiveCrop": {}}]}, "FiveCrop cannot stand within RandomApply"),
        ("Compose", {"transforms": [{"Normalize": {"mean": [0], "std": [1]}}]}, "Normalize cannot stand within another"),
        ("LinearTransformation", {"transformation_matrix": "no.npy", "mean_vector": []}, "path of a .npy file, got 'no.npy'"),
        ("LinearTransformation", {"transformation_matrix": [[1.0]], "mean_vector": [0.0]}, "incompatible shape"),
        ("UniformTemporalSubsample", {"num_samples": 2}, "transform UniformTemporalSubsample"),
        ("MixUp", {}, "MixUp works on whole batches: put it at the end of transforms.train"),
        ("no_such_module:Invert", {}, "transform: 'no_such_module:Invert'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_mistake_names_transform_argument_and_value(name, args, message):
    with pytest.raises(UserError, match=message):
        pipeline({name: args})


def test_crops_are_the_views():
    assert CROPS == ("FiveCrop", "TenCrop")
