"""What is said of each image, as lines of CSV or JSON or as rows of Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tracked_cls.config.sections import PredictSection
from tracked_cls.data.names import printable
from tracked_cls.errors import lookup
from tracked_cls.serving.classifier import Classifier

REJECTED_COLUMNS = ("image_id", "code", "reason")
_FORMULA = re.compile(r"['=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_GROUP_ROWS = 65_536  # rows of a row group of Parquet
_LENGTH = 8  # bytes that say how long the next batch is

Columns = dict[str, list[Any]]


@dataclass(frozen=True, eq=False)
class Said:
    """What is said of B images: ids, digests of their files, labels, probabilities [B,K], and who is unsure [B]."""

    ids: Sequence[str]
    digests: Sequence[str]
    labels: Sequence[str]
    probabilities: npt.NDArray[np.float64]
    unsure: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float64]


def say_of(
    classifier: Classifier, probabilities: npt.NDArray[np.float64], ids: Sequence[str], digests: Sequence[str], below: float
) -> Said:
    """Return what probabilities [B,K] say of images."""
    labels = [classifier.label(row) for row in probabilities]
    confidence = np.array([classifier.confidence(row) for row in probabilities])
    return Said(ids, digests, labels, probabilities, confidence < below, confidence)


@dataclass(frozen=True)
class Layout:
    """Which columns there are: of the `top_k` likeliest classes, of the file's digest, of every class."""

    classes: tuple[str, ...]
    top_k: int
    digest: bool
    probabilities: bool

    @classmethod
    def of(cls, options: PredictSection, classes: Sequence[str]) -> Layout:
        """Return the columns that options ask for."""
        return cls(tuple(classes), min(options.top_k, len(classes)), options.digest, options.probabilities)

    def meanings(self, below: float) -> dict[str, str]:
        """Return name -> meaning of every column, in their order."""
        found = {
            "image_id": "path relative to the input, or the name in the archive; unique",
            "label": "name of the likeliest class; of several labels all above one half",
            "probability": "calibrated probability of the likeliest class",
            "unsure": f"whether the answer is less sure than predict.unsure_below={below:g}",
        }
        for rank in range(2, self.top_k + 1):
            found |= {f"label_{rank}": f"class number {rank} by probability", f"probability_{rank}": "its probability"}
        found |= {"sha256": "SHA-256 of the image's file"} if self.digest else {}
        return found | ({f"p:{name}": "probability of this class" for name in self.classes} if self.probabilities else {})

    def columns(self, said: Said) -> Columns:
        """Return name -> values, in the order of `meanings`."""
        table, order = said.probabilities, np.argsort(-said.probabilities, axis=1, kind="stable")[:, : self.top_k]
        found: Columns = {
            "image_id": list(said.ids), "label": list(said.labels), "probability": table.max(axis=1).tolist(),
            "unsure": said.unsure.tolist(),
        }  # fmt: skip
        for rank, chosen in enumerate(order.T[1:], 2):
            found[f"label_{rank}"] = [self.classes[index] for index in chosen.tolist()]
            found[f"probability_{rank}"] = np.take_along_axis(table, chosen[:, None], 1)[:, 0].tolist()
        if self.digest:
            found["sha256"] = list(said.digests)
        if self.probabilities:
            found |= {f"p:{name}": column for name, column in zip(self.classes, table.T.tolist(), strict=True)}
        return found


# ---- the formats -----------------------------------------------------------------------------------------------------


class Format(ABC):
    """How rows are written: batch after batch to a file that may be continued, and from there to the output."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def start(self) -> bytes:
        """Return what stands before the first row."""
        return b""

    @abstractmethod
    def encode(self, columns: Columns) -> bytes:
        """Return the bytes of some rows."""

    def finish(self, part: Path, about: Mapping[str, str]) -> Path:
        """Return the file of all rows, which may be `part` itself; `about` is kept in it where there is a place for that."""
        return part


class _Csv(Format):
    def start(self) -> bytes:
        return csv_lines([[safe_cell(name) for name in self.layout.meanings(0)]])

    def encode(self, columns: Columns) -> bytes:
        return csv_lines(zip(*(_as_cells(values) for values in columns.values()), strict=True))


class _JsonLines(Format):
    def encode(self, columns: Columns) -> bytes:
        cells = zip(*(_as_json(values) for values in columns.values()), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in cells)
        return "".join(f"{line}\n" for line in lines).encode()


class _Parquet(Format):
    """Batches wait as Arrow's own messages, each behind its length: a Parquet file cannot be continued."""

    def encode(self, columns: Columns) -> bytes:
        import pyarrow as pa  # a third of a second to import, for this format only

        columns = {name: [printable(cell) for cell in cells] if cells and isinstance(cells[0], str) else cells
                   for name, cells in columns.items()}  # fmt: skip
        message = pa.RecordBatch.from_pydict(columns, schema=self._schema()).serialize().to_pybytes()
        return len(message).to_bytes(_LENGTH, "little") + bytes(message)

    def finish(self, part: Path, about: Mapping[str, str]) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = part.with_name("rows.parquet")
        schema = self._schema().with_metadata(dict(about))
        with part.open("rb") as file, pq.ParquetWriter(target, schema) as writer:
            for batches in _grouped(_messages(file, self._schema())):
                writer.write_table(pa.Table.from_batches(batches).cast(schema), row_group_size=_GROUP_ROWS)
        return target

    def _schema(self) -> Any:
        import pyarrow as pa

        kinds = {"unsure": pa.bool_(), "sha256": pa.string(), "image_id": pa.string()}
        names = self.layout.meanings(0)
        return pa.schema([(name, kinds.get(name, pa.string() if name.startswith("label") else pa.float64())) for name in names])


def _messages(file: IO[bytes], schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    while length := file.read(_LENGTH):
        yield pa.ipc.read_record_batch(pa.py_buffer(file.read(int.from_bytes(length, "little"))), schema)


def _grouped(batches: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield batches of some 65,536 rows together."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(each.num_rows for each in group) >= _GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


FORMATS: dict[str, type[Format]] = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}


def format_of(output: Path, layout: Layout) -> Format:
    """Return the format that the ending of an output names; raises `UserError` for another ending."""
    return lookup(output.suffix.lower(), FORMATS, "ending of predict.output")(layout)


# ---- cells -----------------------------------------------------------------------------------------------------------


def csv_lines(rows: Any) -> bytes:
    """Return lines of CSV in UTF-8, whatever bytes a file's name is made of: one such name would make the table unreadable."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return printable(text.getvalue()).encode()


def safe_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: one that could be, or begins with ', gets a ' before it.

    Plain numbers stay. Taking one ' off again gives back the text. Source: OWASP, "CSV Injection".
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _as_cells(values: list[Any]) -> list[str]:
    """Return one column as text; all values of it are of one kind."""
    first = values[0] if values else ""
    if isinstance(first, str):
        return [safe_cell(value) for value in values]
    return [str(value).lower() if isinstance(first, bool) else f"{value:.6f}" for value in values]


def _as_json(values: list[Any]) -> list[Any]:
    first = values[0] if values else ""
    if isinstance(first, str):
        return [printable(value) for value in values]
    return values if isinstance(first, bool) else [round(value, 6) for value in values]
