"""Options of the data: where images and labels come from, how they are split, prepared and loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError

SourceName = Literal["digits", "folder", "csv", "txt", "parquet", "idx", "torchvision", "python"]
TABLES = ("csv", "txt", "parquet")
_TABLE_ENDINGS = {"csv": (".csv", ".tsv"), "txt": (".txt",), "parquet": (".parquet", ".pq")}
_NAME = r"^[A-Za-z0-9_.-]{1,100}$"


class Place(Section):
    """Where images are: a kind of source with what it needs to be found."""

    def check_place(self, source: str | None, key: str) -> None:
        """Raise `UserError` for what `source` lacks, and for what has no effect with it."""
        given = {name: getattr(self, name) is not None for name in ("root", "table", "dataset")}
        useless = next((name for name, is_given in given.items() if is_given and source is None), None)
        if useless:
            raise UserError(f"{key}.{useless} has no effect without {key}.source")
        if given["table"] and source not in TABLES:
            raise UserError(f"{key}.table has no effect with {key}.source={source}; it belongs to {', '.join(TABLES)}")
        if given["dataset"] and source != "python":
            raise UserError(f"{key}.dataset has no effect with {key}.source={source}; it belongs to python")
        if given["root"] and source in ("digits", "python"):
            cure = f"set {key}.source=folder to read images from it" if source == "digits" else f"see {key}.dataset_args"
            raise UserError(f"{key}.root has no effect with {key}.source={source}; {cure}")
        if source in ("folder", "idx") and not given["root"]:
            raise UserError(f"{key}.source={source} needs {key}.root, the folder that holds the files")
        if source in TABLES and not (given["root"] or given["table"]):
            raise UserError(
                f"{key}.source={source} needs {key}.table, the file that lists the images (or {key}.root, its folder)"
            )
        if source == "torchvision" and getattr(self, "name", None) is None:
            raise UserError(f"{key}.source=torchvision needs {key}.name, the set to load: MNIST, FashionMNIST, CIFAR10, ...")
        if source == "python" and not given["dataset"]:
            raise UserError(f"{key}.source=python needs {key}.dataset, the class to load: my_pkg.my_module:MyDataset")


class DataIdentity(Place):
    """Which data set is meant: enough to name its registered model."""

    source: SourceName = option(
        "digits", "where the images come from; digits (1,797 handwritten digits) needs no files and no network"
    )
    name: str | None = option(
        None, "the torchvision set, or the name the data go by; auto: the source, or the folder's or table's name",
        unset="auto", pattern=_NAME,
    )  # fmt: skip
    root: str | None = option(None, "folder that holds the images or IDX files; tables: auto, the table's folder", unset="none")
    table: str | None = option(
        None, "csv, txt, parquet: the file that lists images and labels; auto: the only file of that kind in data.root",
        unset="auto",
    )  # fmt: skip
    dataset: str | None = option(
        None, "python: import path of a class with __len__ and __getitem__: my_pkg.my_module:MyDataset", unset="none",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )  # fmt: skip

    @model_validator(mode="after")
    def _place_fits_source(self) -> DataIdentity:
        self.check_place(self.source, "data")
        return self

    @property
    def label(self) -> str:
        """The name the data go by: it names the prepared folder and the registered model."""
        if self.name is not None:
            return self.name
        if self.source == "folder" and self.root is not None:
            return _as_name(Path(self.root).absolute().name) or "folder"
        if self.source in TABLES:
            return _as_name(Path(self.table).stem if self.table else Path(str(self.root)).absolute().name) or self.source
        if self.source == "python" and self.dataset is not None:
            return self.dataset.rpartition(":")[2]
        return self.source

    @property
    def model_name(self) -> str:
        """The registered model that training on these data makes."""
        return f"{self.label}-classifier"


class ColumnsConfig(Section):
    """Names of a table's columns."""

    path: str = option("path", "csv, parquet: column of the image files, relative to data.root", min_length=1)
    label: str = option("label", "csv, parquet: column of the class names", min_length=1)
    split: str | None = option(
        None, "csv, parquet: column of train, val or test; empty: drawn; auto: 'split' where there is one", unset="auto"
    )
    group: str | None = option(
        None, "csv, parquet: column of what must stay in one split (a patient, a video); auto: 'group' where there is one",
        unset="auto",
    )  # fmt: skip
    weight: str | None = option(
        None, "csv, parquet: column of sample weights, at least 0; auto: 'weight' where there is one", unset="auto"
    )


class SplitSource(Place):
    """Another source for one split; its classes are those of the training images."""

    source: SourceName | None = option(None, "take this split from another source", unset="none")
    name: str | None = option(None, "the torchvision set", unset="none", pattern=_NAME)
    root: str | None = option(None, "folder that holds its images", unset="none")
    table: str | None = option(None, "csv, txt, parquet: the file that lists its images", unset="auto")
    dataset: str | None = option(None, "python: import path of a class", unset="none")
    dataset_args: dict[str, Any] | None = option(
        None, "python: arguments of the class: {argument: value}; auto: those of data.dataset_args", unset="auto"
    )

    def check_place(self, source: str | None, key: str) -> None:
        """Raise `UserError` as every place does, and for arguments without a class."""
        super().check_place(source, key)
        if self.dataset_args is not None and source != "python":
            given = f"{key}.source={source}" if source else f"no {key}.source"
            raise UserError(f"{key}.dataset_args has no effect with {given}; it belongs to python")


class DataConfig(DataIdentity):
    """How images become a prepared data set."""

    dataset_args: dict[str, Any] = option({}, "python: arguments of the class: {argument: value}")
    columns: ColumnsConfig = ColumnsConfig()
    encoding: str = option("utf-8", "csv, txt: how the table is encoded: utf-8, latin-1, cp1252, ...")
    val: SplitSource = SplitSource()
    test: SplitSource = SplitSource()
    label_pattern: str | None = option(
        None, "folder: class from the path instead of the folder: prefix (of the file name, up to the first _ - . or space), "
        "or a regular expression with one group", unset="off",
    )  # fmt: skip
    multi_label: bool = option(
        False, "csv, txt, parquet, python: an image has any number of labels, none included (needs loss=bce)"
    )
    label_separator: str = option("|", "with multi_label: what stands between labels", min_length=1, max_length=5)
    frames: int | None = option(
        None, "an animated GIF, WEBP or TIFF, or a folder of frames, is one sample of so many evenly spaced frames",
        unit="frames", unset="off", ge=2, le=512,
    )  # fmt: skip

    image_size: int | None = option(
        None, "side of the square input; auto: the usual side of the files, 32 below 24, at most 224", unit="pixels",
        unset="auto", ge=8, le=1024,
    )  # fmt: skip
    channels: Literal[1, 3] | None = option(None, "1 grey, 3 colour; auto: 1 if every image is grey", unset="auto")
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", "how an oblong image becomes square: cut the middle, pad with black, or distort"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = option("bilinear", "resampling filter of the resize")

    split: Literal["auto", "hash"] = option(
        "auto", "how images without a given split are divided: auto, drawn by class and seed; hash, by their content, so that "
        "no image changes its split when others are added",
    )  # fmt: skip
    val_fraction: float = option(0.1, "share of the training images held out, where no val split is given", gt=0, lt=1)
    test_fraction: float = option(0.2, "share of all images held out for the test, where no test split is given", gt=0, lt=1)
    split_seed: int = option(0, "seed of the split; apart from `seed`, so that every seed sees the same test images", ge=0)
    group_pattern: str | None = option(
        None, "regular expression with one group on the path; images of equal group stay in one split", unset="off"
    )
    duplicates: Literal["refuse", "keep_test", "keep_train", "allow"] = option(
        "refuse", "the same pixels in two given splits, or with two labels: refuse; keep the copies in test (else val) or in "
        "train and leave the others out, and all of a picture that has two labels there; or allow. Splits that are drawn keep "
        "copies together, unless they are allowed",
    )  # fmt: skip
    near_duplicates: Literal["auto", "report", "off"] = option(
        "auto", "look for images of val and test that are re-encoded, resized or mirrored copies of others, and report them; "
        "auto: not in a cache of more than 10,000 files, which would be decoded a second time",
    )  # fmt: skip
    folds: int | None = option(
        None,
        "k-fold: train and val are divided anew into so many stratified folds; the test split stays",
        unset="off",
        ge=2,
        le=100,
    )
    fold: int | None = option(None, "with folds: which of them is val, from 0; auto: 0", unset="auto", ge=0)

    cache: Literal["auto", "pixels", "files"] = option(
        "auto", "pixels: images at the model's size, the fastest; files: the files as they are, decoded at each use, so that "
        "RandomResizedCrop sees whole photos; auto: pixels up to data.cache_limit_bytes",
    )  # fmt: skip
    cache_limit_bytes: int = option(16_000_000_000, "largest pixel cache that cache=auto makes", unit="bytes", ge=1)
    max_pixels: int = option(
        64_000_000, "an image with more pixels is rejected before it is decoded", unit="pixels", ge=1, le=89_478_485
    )
    min_side: int = option(1, "an image with a shorter side is rejected", unit="pixels", ge=1, le=100_000)
    decode_seconds: float | None = option(
        10.0, "a file that takes more computing than this (or six times as long by the clock) is rejected; off: no limit",
        unit="s", unset="off", ge=0.1,
    )  # fmt: skip
    decode_memory_bytes: int | None = option(
        4_000_000_000, "a file that needs more memory than this is rejected; off: no limit", unit="bytes", unset="off",
        ge=100_000_000,
    )  # fmt: skip
    store: str = option("data", "folder of the prepared sets; relative to the folder of the tracking store")
    workers: int | None = option(None, "processes that decode; auto: one per core", unset="auto", ge=1, le=256)
    download: bool = option(True, "torchvision sets: download what is not in data.root")

    @field_validator("label_pattern", "group_pattern")
    @classmethod
    def _one_group(cls, value: str | None, info: Any) -> str | None:
        if value is None or (value == "prefix" and info.field_name == "label_pattern"):
            return value
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise UserError(f"data.{info.field_name}: {value!r} is not a regular expression: {error}") from None
        if groups != 1:
            raise UserError(f"data.{info.field_name}: {value!r} must have one group in parentheses, it has {groups}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError:
            raise UserError(f"data.encoding: unknown encoding {value!r}; utf-8, latin-1 and cp1252 are common") from None
        return value

    @model_validator(mode="after")
    def _options_agree(self) -> DataConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"data.val_fraction + data.test_fraction must be below 1, got {self.val_fraction} + {self.test_fraction}"
            )
        for split, other in (("val", self.val), ("test", self.test)):
            other.check_place(other.source, f"data.{split}")
        if self.fold is not None and self.fold >= (self.folds or 0):
            needs = f"be below data.folds ({self.folds})" if self.folds else "come with data.folds"
            raise UserError(f"data.fold must {needs}, got {self.fold}")
        self._refuse_without_effect()
        return self

    def _refuse_without_effect(self) -> None:
        """Refuse what the source has no use for."""
        kinds = {self.source, self.val.source, self.test.source}
        takers = {
            "dataset_args": ("python",),
            "columns": ("csv", "parquet"),
            "encoding": ("csv", "txt"),
            "label_pattern": ("folder",),
            "multi_label": (*TABLES, "python"),
            "frames": ("folder", *TABLES, "python"),
        }
        for key, sources in takers.items():
            if getattr(self, key) != type(self).model_fields[key].get_default() and not kinds & set(sources):
                raise UserError(f"data.{key} has no effect with data.source={self.source}; it belongs to {', '.join(sources)}")
        if self.label_separator != "|" and not self.multi_label:
            raise UserError("data.label_separator has no effect without data.multi_label=true")


class LoaderConfig(Section):
    """How batches of training images are made up."""

    workers: int | None = option(
        None, "processes that load and transform image by image; 0: the training process itself; the result is the same; "
        "auto: 0 where whole batches come from the pixel cache, else one per core", unset="auto", ge=0, le=256,
    )  # fmt: skip
    prefetch: int = option(2, "batches that each worker prepares ahead", unit="batches", ge=1, le=64)
    pin_memory: bool | None = option(None, "page-locked batches for faster copies to a GPU; auto: with a GPU", unset="auto")
    shuffle: bool = option(True, "a new random order in each epoch")
    sampler: Literal["none", "weights", "balanced"] = option(
        "none", "draw training images with replacement: by the weights of the data, or so that all classes are equally likely"
    )

    @model_validator(mode="after")
    def _one_sampler(self) -> LoaderConfig:
        if self.sampler != "none" and not self.shuffle:
            raise UserError(
                f"loader.sampler={self.sampler} and loader.shuffle=false contradict each other: a sampler draws at random"
            )
        return self


def table_endings(source: str) -> tuple[str, ...]:
    """Return the file endings of a kind of table."""
    return _TABLE_ENDINGS[source]


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")
