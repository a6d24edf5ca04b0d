"""A user's own dataset: a class with ``__len__`` and ``__getitem__``, named by its import path."""

from __future__ import annotations

import hashlib
import inspect
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tracked_cls import plugins
from tracked_cls.config import DataConfig
from tracked_cls.console import progress
from tracked_cls.data.decode import Pixels, RejectedImage, pixels_of
from tracked_cls.data.sources.base import ArraySource, Sample, digest
from tracked_cls.data.sources.rows import Checker, Row
from tracked_cls.errors import UserError, did_you_mean

_KEYS = ("image", "label", "id", "split", "group", "weight")
_ITEM = "an item must be (image, label), (image, label, id) or a dict with the keys image and label"
_IMAGE = "an image must be a PIL image, a uint8 array [H,W] or [H,W,C], or a uint8 tensor [H,W] or [C,H,W], C 1 or 3"


def scan_python(cfg: DataConfig, root: Path | None) -> ArraySource:
    """Return the items of a user's dataset.

    Its attribute or method ``fingerprint`` tells whether it has changed; without one, every item is read to find that out.
    """
    assert cfg.dataset is not None, "the configuration asks for it"
    dataset = _open(cfg.dataset, cfg.dataset_args)
    about: dict[str, Any] = {"multi_label": cfg.multi_label, "group_pattern": cfg.group_pattern}
    made_of = (cfg.dataset, sorted(cfg.dataset_args.items()))
    own = _own_fingerprint(dataset, cfg.dataset)
    if own is not None:
        return ArraySource(cfg.label, digest((*made_of, own)), lambda: _Items(dataset, cfg), **about)
    items = _Items(dataset, cfg, with_digest=True)
    note = f"{cfg.dataset} has no fingerprint, so all of its items are read each time to see whether they changed"
    return ArraySource(cfg.label, digest((*made_of, items.digest)), lambda: items, notes=[note], **about)


# ---- the dataset -----------------------------------------------------------------------------------------------------


def _open(path: str, args: Mapping[str, Any]) -> Any:
    factory = plugins.load(path, "data.dataset")
    if not callable(factory):
        raise UserError(f"data.dataset: {path!r} is no class, but a {type(factory).__name__}")
    _check_arguments(factory, path, args)
    try:
        dataset = factory(**args)
    except Exception as error:  # the user's own code
        raise UserError(f"data.dataset: making {path} raised {_line(error)}; see data.dataset_args") from error
    lacking = [name for name in ("__len__", "__getitem__") if not hasattr(type(dataset), name)]
    if lacking:
        raise UserError(f"data.dataset: {path} has no {' and no '.join(lacking)}; a dataset has both")
    return dataset


def _check_arguments(factory: Any, path: str, args: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some classes written in C tell nothing
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        unknown = next((name for name in args if name not in signature.parameters), None)
        takes = f"; it takes {', '.join(signature.parameters) or 'none'}"
        near = takes if unknown is None else did_you_mean(unknown, signature.parameters) or takes
        raise UserError(f"data.dataset_args: {path}: {error}{near}") from None


def _own_fingerprint(dataset: Any, path: str) -> str | None:
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        try:
            own = own()
        except Exception as error:  # the user's own code
            raise UserError(f"data.dataset: {path}.fingerprint() raised {_line(error)}") from error
    if own is not None and (not isinstance(own, str) or not own):
        raise UserError(f"data.dataset: the fingerprint of {path} must be text, got {own!r}")
    return own


def _class_names(dataset: Any, path: str) -> Sequence[str] | None:
    names = getattr(dataset, "classes", None)
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data.dataset: the attribute classes of {path} must be a list of names, got {names!r:.200}")
    if len(set(names)) < len(names):
        raise UserError(f"data.dataset: the attribute classes of {path} names a class twice: {', '.join(names):.200}")
    return names


# ---- its items -------------------------------------------------------------------------------------------------------


class _Items(Mapping[Sample, Pixels]):
    """The items of a dataset, each read once for its label, and again whenever its image is asked for."""

    def __init__(self, dataset: Any, cfg: DataConfig, *, with_digest: bool = False) -> None:
        assert cfg.dataset is not None
        self._dataset = dataset
        self._path = cfg.dataset
        self._name = cfg.label
        self._has_frames = cfg.frames is not None
        self._classes = _class_names(dataset, cfg.dataset)
        self._index: dict[Sample, int] = {}
        checker = Checker(cfg.dataset, multi_label=cfg.multi_label)
        total = hashlib.sha256()
        for index in progress(range(self._length()), self._length(), f"reading {self._name}", unit="item"):
            item = self._item(index)
            sample = checker.sample(self._row(item, index, multi_label=cfg.multi_label))
            self._index[sample] = index
            if with_digest:
                total.update(repr((tuple(sample), self._digest(item["image"], index))).encode("utf-8", "surrogateescape"))
        self.digest = total.hexdigest()

    def __getitem__(self, sample: Sample) -> Pixels:
        index = self._index[sample]
        return self._pixels(self._item(index)["image"], index)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def _length(self) -> int:
        try:
            length = len(self._dataset)
        except Exception as error:  # the user's own code
            raise UserError(f"data.dataset: len() of {self._path} raised {_line(error)}") from error
        if not length:
            raise UserError(f"data.dataset: {self._path} is empty: its len() is 0")
        return length

    def _error(self, index: int, text: str) -> UserError:
        return UserError(f"{self._path}: item {index}: {text}")

    def _item(self, index: int) -> dict[str, Any]:
        """Return an item by the names of its parts; those that are not given, or None, are left out."""
        try:
            item = self._dataset[index]
        except Exception as error:  # the user's own code
            raise self._error(index, f"__getitem__ raised {_line(error)}") from error
        if isinstance(item, (tuple, list)) and len(item) in (2, 3):
            item = dict(zip(_KEYS, item, strict=False))
        if not isinstance(item, Mapping):
            size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise self._error(index, f"{_ITEM}, got a {type(item).__name__}{size}")
        unknown = next((str(key) for key in item if key not in _KEYS), None)
        if unknown is not None:
            raise self._error(index, f"unknown key {unknown!r}{did_you_mean(unknown, _KEYS)}")
        given = {key: value for key, value in item.items() if value is not None}
        for key in ("image", "label"):
            if key not in given:
                raise self._error(index, f"{_ITEM}; {key!r} is {'None' if key in item else 'missing'}")
        return given

    def _row(self, item: Mapping[str, Any], index: int, *, multi_label: bool) -> Row:
        label = item["label"]
        if multi_label != isinstance(label, (list, tuple, set, frozenset)):
            rule = "a list of labels" if multi_label else "one label (several need data.multi_label=true)"
            raise self._error(index, f"the label must be {rule}, got {label!r:.100}")
        labels = [self._label(one, index) for one in (label if multi_label else [label])]
        path = self._text(item.get("id", f"{self._name}/{index:06d}"), "id", index)
        if not path:
            raise self._error(index, "its id is empty")
        split, group = (self._text(item.get(key, ""), key, index) for key in ("split", "group"))
        return Row(f"item {index}", path, labels, split, group, str(item.get("weight", 1)))

    def _text(self, value: Any, key: str, index: int) -> str:
        if isinstance(value, str):
            return value
        try:
            return str(operator.index(value))
        except TypeError:
            raise self._error(index, f"its {key} must be text or a whole number, got a {type(value).__name__}") from None

    def _label(self, label: Any, index: int) -> str:
        """Return the name of a class; a number stands for one of ``classes``, or for itself where there are none."""
        if isinstance(label, bool):
            raise self._error(index, "its label must be text or a whole number, got a bool")
        name = self._text(label, "label", index)
        if isinstance(label, str) or self._classes is None:
            return name
        if not 0 <= int(name) < len(self._classes):
            raise self._error(index, f"its label is {name}, but classes has {len(self._classes)} names, from 0")
        return self._classes[int(name)]

    # ---- images

    def _digest(self, image: Any, index: int) -> str:
        try:
            pixels = self._pixels(image, index)
        except RejectedImage as error:  # preparation lists it
            return error.code
        return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()

    def _pixels(self, image: Any, index: int) -> Pixels:
        """Return an image as uint8 [H,W] or [H,W,C], frames as [T,H,W,C]; raises `RejectedImage` for a damaged file."""
        if isinstance(image, Image.Image):
            return self._decoded(image)
        array = _channels_last(image)
        if not isinstance(array, np.ndarray):
            raise self._error(index, f"{_IMAGE}, got a {type(image).__name__}")
        if array.dtype != np.uint8:
            cure = "; scale it to 0-255 and turn it into uint8" if array.dtype.kind == "f" else ""
            raise self._error(index, f"{_IMAGE}, got {type(image).__name__} of {array.dtype}{cure}")
        if array.ndim == 4 and not self._has_frames:
            raise self._error(index, f"its image has {list(array.shape)} values; frames [T,H,W,C] need data.frames")
        if array.ndim not in (2, 3, 4) or 0 in array.shape or (array.ndim > 2 and array.shape[-1] not in (1, 3)):
            raise self._error(index, f"{_IMAGE}, got the shape {list(image.shape)}")
        return array

    def _decoded(self, image: Image.Image) -> Pixels:
        try:
            return pixels_of(image)
        except RejectedImage:
            raise
        except Exception as error:  # a file opened but not read yet: whatever Pillow meets in it
            raise RejectedImage("E_CORRUPT", f"the image is damaged: {_line(error)}") from None


def _channels_last(image: Any) -> Any:
    """Return a tensor as an array with its channels last; anything else as it is. Asks for torch only if it is there."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(image, torch.Tensor):
        return image
    array = image.detach().cpu().numpy()
    return np.moveaxis(array, -3, -1) if array.ndim in (3, 4) else array


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no message'}"
