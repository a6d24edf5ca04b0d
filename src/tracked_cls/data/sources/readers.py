"""Tables as text: CSV, TSV, plain lists and Parquet, read strictly, every cell as it stands."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tracked_cls.errors import UserError

Line = tuple[str, Sequence[str]]  # where it stands ("line 12", "row 12"), and its cells
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Table(NamedTuple):
    """Column names, and a reader of the lines: `lines(used)` yields the cells of the used columns, in the order of `used`.

    `used` maps what a column means (path, label, split, group, weight) to its name.
    """

    columns: Sequence[str]
    lines: Callable[[Mapping[str, str]], Iterator[Line]]


def read_table(source: str, path: Path, content: bytes, encoding: str) -> Table:
    """Return the table that a file's content holds; `source` is csv, txt or parquet."""
    if not content:
        raise UserError(f"{path}: the file is empty")
    if source == "parquet":
        return _parquet(path, content)
    text = _decoded(path, content, encoding)
    return _csv(path, text) if source == "csv" else Table(("path", "label"), lambda _: _plain_lines(path, text))


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    """Return the text without a byte order mark; raises `UserError` naming line and offset of the first odd byte."""
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    skipped = len(codecs.BOM_UTF8) if is_utf8 and content.startswith(codecs.BOM_UTF8) else 0
    try:
        text = content[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        offset = error.start + skipped
        known = _BOMS.get(content[:2])
        cure = (
            f"set data.encoding={known}" if known else "save the file as UTF-8 or set data.encoding (latin-1, cp1252, utf-16)"
        )
        line = content.count(b"\n", 0, offset) + 1
        byte = f"the byte 0x{content[offset]:02x} at offset {offset}"
        raise UserError(f"{path}: line {line}: E_ENCODING: {byte} is not {encoding}; {cure}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}: line {line}: E_ENCODING: a NUL character; save the file as UTF-8 or set data.encoding=utf-16")
    return text


# ---- CSV and TSV -----------------------------------------------------------------------------------------------------


def _csv(path: Path, text: str) -> Table:
    records = _records(path, text)
    header = next(records, None)
    if header is None:
        raise UserError(f"{path}: the file has no header line")
    columns = header[1]

    def lines(used: Mapping[str, str]) -> Iterator[Line]:
        places = [columns.index(name) for name in used.values()]
        for number, record in records:
            if len(record) != len(columns):
                raise UserError(
                    f"{path}: line {number}: E_COLUMNS: the header has {len(columns)} columns, this line has {len(record)}; "
                    'a comma inside a cell needs quotes: "a,b"'
                )
            yield f"line {number}", [record[place] for place in places]

    return Table(columns, lines)


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line on which a record begins, and its cells; lines without anything are no records."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    number = 1
    try:
        for record in reader:
            if record:
                yield number, record
            number = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        raise UserError(
            f"{path}: line {number}: E_COLUMNS: not valid CSV: {error}; is a quote left open or not doubled?"
        ) from None


# ---- plain lists -----------------------------------------------------------------------------------------------------


def _plain_lines(path: Path, text: str) -> Iterator[Line]:
    """Yield (path, label) of each line: separated by a tab, or else by the line's last blanks."""
    for number, ended in enumerate(text.split("\n"), 1):
        line = ended.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t") if "\t" in line else _at_last_blank(line)
        if len(cells) > 2:
            raise UserError(
                f"{path}: line {number}: E_COLUMNS: a line is a path, a tab and a label, this one has {len(cells)} parts"
            )
        yield f"line {number}", cells


def _at_last_blank(line: str) -> list[str]:
    path, blank, label = line.rstrip(" ").rpartition(" ")
    return [path.rstrip(" "), label] if blank else [label, ""]


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(path: Path, content: bytes) -> Table:
    import pyarrow as pa  # a third of a second to import, for this kind of table only
    import pyarrow.parquet as pq

    with _naming_damage(path):
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names

    def lines(used: Mapping[str, str]) -> Iterator[Line]:
        with _naming_damage(path):
            columns = file.read(columns=list(used.values()))
            cells = [_cells(path, columns.column(name), role, name) for role, name in used.items()]
        for number, line in enumerate(zip(*cells, strict=True), 1):
            yield f"row {number}", line

    return Table(names, lines)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    import pyarrow as pa  # see above

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a Parquet file, or a damaged one: {reason}") from None


def _cells(path: Path, column: Any, role: str, name: str) -> list[str]:
    """Return a column as text, nothing for null."""
    import pyarrow.types as kinds

    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    is_text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    is_number = kinds.is_integer(kind) or (role == "weight" and (kinds.is_floating(kind) or kinds.is_decimal(kind)))
    if not (is_text or is_number):
        wanted = "numbers" if role == "weight" else "text or whole numbers"
        raise UserError(f"{path}: E_COLUMNS: column {name!r} (data.columns.{role}) holds {column.type}, it must hold {wanted}")
    return ["" if value is None else str(value) for value in column.to_pylist()]
