"""The JSON of a request: a table with one column of images, or one clear line about what it is instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracked_cls.serving.limits import Limits, Refusal
from tracked_cls.serving.pyfunc import COLUMN, shown, wrong_columns

FORMATS = ("dataframe_split", "dataframe_records")
_VALUES_OF_IMAGE, _VALUES_BESIDE = 8, 1000  # JSON values: a few bytes of text each become a hundred in memory
_MARKS = ",[{"  # each stands before a value
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # to the end where it is not closed: in linear time
_EXAMPLE = 'like {"dataframe_split": {"columns": ["image"], "data": [["<base64>"]]}, "params": {"top_k": 3}}'


@dataclass(frozen=True)
class Payload:
    """The cells of the column ``image``, one per row, and the parameters, as they were sent."""

    cells: list[Any]
    params: dict[str, Any]


def parse(body: bytes, limits: Limits) -> Payload:
    """Return what a request holds; raises `Refusal` where it is no table of as many images as are allowed."""
    request = _object(body, limits)
    found = [name for name in FORMATS if name in request]
    if len(found) != 1:
        raise Refusal(400, f"the JSON object must have one of {' and '.join(FORMATS)}; {_EXAMPLE}")
    _check_keys(request, (found[0], "params"), "the JSON object")
    table, params = request[found[0]], request.get("params", {})
    rows = table.get("data") if found[0] == "dataframe_split" and isinstance(table, dict) else table
    if not isinstance(rows, list) or not isinstance(params, dict) or (rows is table) != (found[0] == "dataframe_records"):
        raise Refusal(400, f"{found[0]} does not hold a list of rows, or params is no object; {_EXAMPLE}")
    if len(rows) > limits.max_images:
        raise Refusal(413, f"{len(rows):,} images are more than the {limits.max_images:,} allowed (serve.max_images)")
    if rows is not table:
        _check_split(table)
    cell = _of_record if rows is table else _of_row
    return Payload([cell(row, number) for number, row in enumerate(rows, 1)], params)


def _check_split(table: Mapping[str, Any]) -> None:
    _check_keys(table, ("columns", "index", "data"), "dataframe_split")
    columns = table.get("columns", [])
    if columns != [COLUMN]:
        raise wrong_columns(columns if isinstance(columns, list) else [columns])


def _check_keys(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in known:
            raise Refusal(400, f"unknown key {shown(name)} in {where}; known: {', '.join(known)}")


def _of_row(row: Any, number: int) -> Any:
    """Return the cell of one row of ``dataframe_split``; one without any is an error in its own row."""
    if not isinstance(row, list):
        return row  # null, or the image without its brackets
    if len(row) > 1:
        raise Refusal(400, f"row {number} holds {len(row)} values, and there is one column, {COLUMN!r}; {_EXAMPLE}")
    return row[0] if row else None


def _of_record(row: Any, number: int) -> Any:
    if row is None:
        return None
    if not isinstance(row, dict):
        raise Refusal(400, f"row {number} of dataframe_records is no object; like " + '{"image": "<base64>"}')
    _check_keys(row, (COLUMN,), f"row {number} of dataframe_records")
    return row.get(COLUMN)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _object(body: bytes, limits: Limits) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
        _check_count(text, limits)
        request = json.loads(text)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise Refusal(400, "the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"the body is not valid JSON: {error.msg}, at letter {error.pos}; {_EXAMPLE}") from None
    except ValueError:  # a number of thousands of digits
        raise Refusal(400, f"the body is not valid JSON: a number is too long; {_EXAMPLE}") from None
    if not isinstance(request, dict):
        raise Refusal(400, f"the JSON is no object; {_EXAMPLE}")
    return request


def _check_count(text: str, limits: Limits) -> None:
    """Raise `Refusal` before millions of small values take the memory."""
    most = _VALUES_OF_IMAGE * limits.max_images + _VALUES_BESIDE
    if _num_marks(text, 0, len(text)) > most and _has_more(text, most):
        raise Refusal(413, f"the JSON holds more than {most:,} values; of at most {limits.max_images:,} images as base64 text")


def _has_more(text: str, most: int) -> bool:
    """Whether there are more values than that, or more texts than can stand among so many."""
    num_marks = num_texts = end = 0
    for found in _TEXT.finditer(text):
        num_marks, num_texts = num_marks + _num_marks(text, end, found.start()), num_texts + 1
        end = found.end()
        if num_marks > most or num_texts > 2 * most + 2:  # a name and a text for each
            return True
    return num_marks + _num_marks(text, end, len(text)) > most


def _num_marks(text: str, start: int, end: int) -> int:
    return sum(text.count(mark, start, end) for mark in _MARKS)
