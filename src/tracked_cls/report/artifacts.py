"""What a run left, read for a page: files of a store are untrusted, so their size, columns and types are checked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from tracked_cls.errors import UserError
from tracked_cls.statistics.intervals import Estimate

SPLITS = ("test", "val", "train")  # in the order of their weight

_MAX_TEXT_BYTES, _MAX_PICTURE_BYTES, MAX_PARQUET_BYTES = 20_000_000, 20_000_000, 2_000_000_000
_MAX_PIXELS = 40_000_000
_MAX_PREDICTIONS = 5_000_000

Row = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RunFacts:
    """One run in plain values. `folder` holds its artifacts as far as they are there: ``tables/``, ``plots/``, ``config.yaml``.

    `history` maps a metric to its values by step; `notes` are sentences for the top of its page.
    """

    run_id: str
    name: str
    kind: str
    folder: Path
    url: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    status: str = "FINISHED"
    began_ms: int = 0
    seconds: float | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about N images: their ids, unique, and the names of label and prediction."""

    ids: npt.NDArray[np.object_]
    labels: npt.NDArray[np.object_]
    predicted: npt.NDArray[np.object_]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction is the label [N]."""
        return np.asarray(self.labels == self.predicted, dtype=bool)


def tried(build: Callable[[], T], otherwise: Callable[[], T], troubles: list[str]) -> T:
    """Return a part of a page; where a file of it cannot be read, what is made otherwise, and note the trouble."""
    try:
        return build()
    except UserError as error:
        troubles.append(f"Left out: {error}.")
        return otherwise()


# ---- tables ----------------------------------------------------------------------------------------------------------


def scored_split(facts: RunFacts) -> str | None:
    """Return the split that a run was scored on, as its tables tell; None where there is none."""
    return next((split for split in SPLITS if (facts.folder / "tables" / f"{split}_metrics.json").is_file()), None)


def read_estimates(path: Path) -> dict[str, Estimate]:
    """Return metric name -> number with its interval; bare numbers, as older runs have them, come without one."""
    content = _json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path.name}: expected a mapping of metrics, got {type(content).__name__}")
    return {str(name): _estimate(path, str(name), value) for name, value in content.items()}


def _estimate(path: Path, name: str, value: Any) -> Estimate:
    parts = [value.get(key) for key in ("value", "low", "high")] if isinstance(value, dict) else [value, None, None]
    if isinstance(parts[0], bool) or not isinstance(parts[0], int | float | None):
        raise UserError(f"{path.name}: {name!r} must be a number, or have value, low and high, got {str(value)[:80]}")
    numbers = [float(part) if isinstance(part, int | float) else float("nan") for part in parts]
    return Estimate(*numbers)


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV file, which has at least these columns."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [{str(key): value or "" for key, value in row.items() if isinstance(value, str | None)} for row in reader]
    except csv.Error as error:
        raise UserError(f"{path.name}: not a CSV file: {error}") from None
    absent = [name for name in columns if name not in (reader.fieldnames or ())]
    if absent:
        raise UserError(f"{path.name}: column {absent[0]!r} is missing")
    return rows


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds a mapping."""
    content = _json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path.name}: expected a mapping, got {type(content).__name__}")
    return content


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: not valid JSON: {error}") from None


def read_text(path: Path) -> str:
    """Return a text file of moderate size."""
    try:
        return _bytes(path, _MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: not a text in UTF-8") from None


def _bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path.name}: larger than {limit:,} bytes, which no such file of ours is")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name}: it cannot be read: {error.strerror}") from None


# ---- predictions -----------------------------------------------------------------------------------------------------


def read_predictions(path: Path) -> Predictions:
    """Return what ``tables/<split>_predictions.parquet`` says; raises `UserError` where it is none of ours."""
    import pyarrow as pa  # a second of imports, where several runs are compared only
    import pyarrow.parquet as pq

    names = ["id", "label", "predicted"]
    if path.stat().st_size > MAX_PARQUET_BYTES:
        raise UserError(f"{path.name}: larger than {MAX_PARQUET_BYTES:,} bytes, which no such file of ours is")
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(
                path,
                {name: str(kind) for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)},
                names,
            )
            if file.metadata.num_rows > _MAX_PREDICTIONS:
                raise UserError(f"{path.name}: {file.metadata.num_rows:,} rows; at most {_MAX_PREDICTIONS:,} are compared")
            table = file.read(names)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path.name}: not a Parquet file that can be read: {str(error).splitlines()[0][:200]}") from None
    ids, labels, predicted = (np.array(table.column(name).to_pylist(), dtype=object) for name in names)
    _check_predictions(path, ids, labels, predicted)
    return Predictions(ids, labels, predicted)


def _check_columns(path: Path, kinds: Mapping[str, str], names: Sequence[str]) -> None:
    for name in names:
        if name not in kinds:
            raise UserError(f"{path.name}: column {name!r} is missing")
        if kinds[name] not in ("string", "large_string", "dictionary<values=string, indices=int32, ordered=0>"):
            raise UserError(f"{path.name}: column {name!r} must hold text, got {kinds[name]}")


def _check_predictions(path: Path, *columns: npt.NDArray[np.object_]) -> None:
    ids = columns[0]
    if not len(ids):
        raise UserError(f"{path.name}: no predictions in it")
    if any(value is None for column in columns for value in column):
        raise UserError(f"{path.name}: id, label and predicted must not be empty")
    if len(set(ids.tolist())) != len(ids):
        raise UserError(f"{path.name}: the ids are not unique")


# ---- pictures --------------------------------------------------------------------------------------------------------


def read_pictures(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return file name -> PNG file of the pictures that a folder has; what is no PNG file of moderate size is left out."""
    found = {}
    for name in names:
        path = folder / name
        if path.is_file() and path.stat().st_size <= _MAX_PICTURE_BYTES and _is_png(content := path.read_bytes()):
            found[name] = content
    return found


def _is_png(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > _MAX_PIXELS:
                return False
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True
