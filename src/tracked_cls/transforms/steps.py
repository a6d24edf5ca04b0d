"""Names and arguments turned into callables, torchvision's or the user's own: the steps of a `SamplePipeline`.

The one module of the package that uses torchvision, and imports it when the first list is built: it takes a second.
"""

from __future__ import annotations

import functools
import inspect
import random
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tracked_cls import plugins
from tracked_cls.config import CROPS, MIXES, TRANSFORM_NAMES, TransformSpec
from tracked_cls.errors import UserError, did_you_mean, lookup
from tracked_cls.transforms.tensors import describe, plain, to_float

_NEED_FLOATS = ("GaussianNoise", "LinearTransformation", "Normalize", "RandomErasing")
MAKE_FLOATS = frozenset(("ConvertImageDtype", "ToDtype", "ToTensor", *_NEED_FLOATS))
_SIZE_ARGUMENT = {
    **dict.fromkeys(("CenterCrop", "FiveCrop", "RandomCrop", "RandomResizedCrop", "Resize", "TenCrop"), "size"),
    "ScaleJitter": "target_size",
}
_DEFAULTS = {"RandomAffine": {"interpolation": "bilinear"}, "RandomRotation": {"interpolation": "bilinear"}}
_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
_MATRICES = ("transformation_matrix", "mean_vector")
_ALONE = threading.Lock()  # the generators are the process's: threads take turns
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, OSError, ImportError)

Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """One entry of a list: the name that messages give it, and what it does to an image.

    `own`: it is the user's code, or holds some.
    """

    name: str
    apply: Transform
    own: bool = False

    def __call__(self, image: Any) -> list[Any]:
        """Return the transformed image, or the views that a crop makes of it."""
        try:
            out = self.apply(_as_clip(image))
        except UserError:
            raise
        except _FAILURES as error:
            if self.own:  # whose author needs the traceback
                error.add_note(f"transform {self.name}")
                raise
            raise UserError(f"transform {self.name} on an image of {describe(image)}: {error}") from error
        return list(out) if isinstance(out, (tuple, list)) else [out]


@dataclass(frozen=True)
class Builder:
    """Makes steps for a model's input of `channels` and side `size`; `frames`: images are clips of so many."""

    channels: int
    size: int
    frames: int | None
    search: tuple[Path, ...]

    def step(self, name: str, args: Mapping[str, Any]) -> Step:
        """Return the step of a name; raises `UserError` for a wrong name, argument or value."""
        own = any(":" in inner for inner in names_in([{name: dict(args)}]))
        return Step(name, self._own(name, args) if ":" in name else self._torchvision(name, args), own)

    def _torchvision(self, name: str, args: Mapping[str, Any]) -> Transform:
        kind = lookup(name, _kinds(), "transform")
        if name in MIXES:
            raise UserError(f"transform {name} works on whole batches: put it at the end of transforms.train")
        if name == "ToPILImage" and self.frames is not None:
            raise UserError("transform ToPILImage does not go with data.frames: a clip is no single picture")
        given = {**self._size_of(name), **_DEFAULTS.get(name, {}), **args}
        _check_arguments(name, kind, given)
        if name == "Normalize":
            self._check_normalize(args)
        if name == "ToTensor":  # torchvision's leaves tensors alone
            return to_float
        made = _construct(name, kind, args, {key: self._value(name, key, value) for key, value in given.items()})
        return _OnFloats(made) if name in _NEED_FLOATS else made

    def _size_of(self, name: str) -> dict[str, Any]:
        return {_SIZE_ARGUMENT[name]: [self.size, self.size]} if name in _SIZE_ARGUMENT else {}

    def _check_normalize(self, args: Mapping[str, Any]) -> None:
        for key in ("mean", "std"):
            value = args[key]
            if not isinstance(value, (list, tuple)) or len(value) not in (1, self.channels):
                raise UserError(f"Normalize.{key} must be a list with a number per channel ({self.channels}), got {value!r}")

    def _value(self, name: str, argument: str, value: Any) -> Any:
        """Return what a word or a list of the configuration stands for."""
        if argument == "transforms":
            return self._branches(name, value)
        if argument in _MATRICES:
            return _matrix(value, f"{name}.{argument}")
        words = _words().get(argument)
        return lookup(str(value), words, f"{name}.{argument}") if words else value

    def _branches(self, name: str, specs: Any) -> list[Transform]:
        if not isinstance(specs, list):
            raise UserError(f"{name}.transforms must be a list of {{name: {{argument: value}}}}, got {specs!r}")
        for inner in ("Normalize", *CROPS):
            if inner in set(names_in(specs)):
                raise UserError(
                    f"{inner} cannot stand within {name}, where not every image gets it; put it into the list itself"
                )
        return [self.step(inner, args).apply for spec in specs for inner, args in spec.items()]

    def _own(self, path: str, args: Mapping[str, Any]) -> Transform:
        made = plugins.load(path, "transform", self.search)
        if not callable(made):
            raise UserError(f"transform {path} must be a class or a function, got {type(made).__name__}")
        if not inspect.isclass(made):
            return _Own(path, functools.partial(made, **args))
        _check_arguments(path, made, args)
        transform = _construct(path, made, args, args)
        if not callable(transform):
            raise UserError(f"transform {path}: give the class a method __call__(self, image)")
        return _Own(path, transform)


def certain(spec: TransformSpec) -> TransformSpec:
    """Return the spec with torchvision's probabilities at 1, so that a trial reaches all of it."""
    ((name, args),) = spec.items()
    if ":" in name:
        return spec
    parameter = inspect.signature(_kinds()[name]).parameters.get("p")
    sure = {"p": 1.0} if parameter is not None and isinstance(parameter.default, float) and args.get("p", 1) > 0 else {}
    inner = {"transforms": [certain(branch) for branch in args["transforms"]]} if "transforms" in args else {}
    return {name: {**args, **sure, **inner}}


def names_in(specs: Sequence[TransformSpec]) -> Iterator[str]:
    """Yield all names in a list, nested ones included."""
    for spec in specs:
        for name, args in spec.items():
            yield name
            inner = args.get("transforms")
            yield from names_in(inner) if isinstance(inner, list) else ()


def place_of(error: Exception) -> str:
    """Return an error of the user's own code with the line where it arose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    named = "".join(f"{note}: " for note in getattr(error, "__notes__", [])[:1])
    return f"{named}{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


@contextmanager
def seeded(seed: int, *, everywhere: bool) -> Iterator[None]:
    """Seed torch's global generator, `everywhere` Python's and numpy's too, and restore them afterwards.

    torchvision draws from torch's only; what a user's own code draws from is anyone's guess.
    """
    generator = torch.default_generator
    with _ALONE:
        before = generator.get_state()
        others = (random.getstate(), np.random.get_state()) if everywhere else None
        try:
            generator.manual_seed(seed)
            if everywhere:
                random.seed(seed)
                np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            yield
        finally:
            generator.set_state(before)
            if others is not None:
                random.setstate(others[0])
                np.random.set_state(others[1])


@dataclass(frozen=True)
class _OnFloats:
    """A transform that torchvision offers for floats only, or whose numbers mean floats."""

    transform: Transform

    def __call__(self, image: Any) -> Any:
        return self.transform(_as_clip(to_float(image)))


@dataclass(frozen=True)
class _Own:
    """A user's transform: it gets a plain tensor (after ToPILImage a PIL image) and may return an array, too."""

    path: str
    transform: Transform

    def __call__(self, image: Any) -> Any:
        out = self.transform(image.as_subclass(Tensor) if isinstance(image, Tensor) else image)
        if isinstance(out, Image.Image):
            return out
        if not isinstance(out, (Tensor, np.ndarray)):
            raise UserError(f"transform {self.path} must return a tensor, an array or a PIL image, got {type(out).__name__}")
        return _as_clip(plain(out))


def _as_clip(image: Any) -> Any:
    """Mark [T,C,H,W] as one clip: some of torchvision's transforms would draw for each frame of a plain tensor."""
    from torchvision import tv_tensors

    is_clip = isinstance(image, Tensor) and image.ndim == 4 and not isinstance(image, tv_tensors.Video)
    return tv_tensors.Video(image) if is_clip else image


def _construct(name: str, kind: Callable[..., Any], args: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*should be of kind")  # a range from high to low
            return kind(**values)
    except Exception as error:  # a user's own class may raise anything
        raise UserError(f"transform {name} with {_brief(dict(args))}: {error}") from error


def _check_arguments(name: str, kind: Callable[..., Any], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters
    known = [key for key, value in parameters.items() if value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)]
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    open_ended = any(value.kind is value.VAR_KEYWORD for value in parameters.values())
    for argument in () if open_ended else given:
        if argument not in known:
            near, _, _ = did_you_mean(argument, known).partition("; known")
            raise UserError(f"transform {name} takes no argument {argument!r}{near}; {takes}")
    missing = [key for key in known if parameters[key].default is inspect.Parameter.empty and key not in given]
    if missing:
        raise UserError(f"transform {name} needs {', '.join(missing)}; {takes}")


@functools.cache
def _kinds() -> dict[str, type]:
    from torchvision.transforms import v2

    return {name: getattr(v2, name) for name in TRANSFORM_NAMES}


@functools.cache
def _words() -> dict[str, dict[str, Any]]:
    """Return what words stand for, argument by argument."""
    from torchvision.transforms import v2

    return {
        "interpolation": {mode.value.replace("-", "_"): mode for mode in v2.InterpolationMode},
        "dtype": _DTYPES,
        "policy": {policy.value: policy for policy in v2.AutoAugmentPolicy},
    }


def _matrix(value: Any, key: str) -> Tensor:
    """Return nested lists, or the array in a .npy file, as float32."""
    try:
        array = np.load(value, allow_pickle=False) if isinstance(value, str) else np.asarray(value)
        return torch.from_numpy(array.astype(np.float32))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{key} must be a list of numbers or the path of a .npy file, got {_brief(value)}: {error}") from None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
