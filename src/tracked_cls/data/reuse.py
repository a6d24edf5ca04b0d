"""What an earlier preparation learnt of each image, so that an image that has not changed is not decoded again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import __version__ as pillow_version

from tracked_cls.data.cache import FORMAT_VERSION, Prepared, open_partial, verify_prepared
from tracked_cls.data.decode import Pixels
from tracked_cls.data.ingest import Outcome, Plan, Record, Rejection
from tracked_cls.data.names import is_utf8
from tracked_cls.data.sources import Sample, Source
from tracked_cls.errors import UserError

_LEDGER = "intake.parquet"
# what may change while a file's size and time stay as they are
_PASSING = {"E_PERMISSION", "E_READ", "E_MISSING", "E_LINK", "E_NOT_FILE", "E_MEMORY", "E_TIMEOUT", "E_CRASHED"}


def terms(plan: Plan) -> dict[str, Any]:
    """Return what two preparations must have in common for one to use the other's images, as plain JSON values."""
    return {"format": FORMAT_VERSION, "pillow": pillow_version, **asdict(plan)}


def write_ledger(folder: Path, source: Source, outcomes: Sequence[tuple[Sample, Outcome]]) -> None:
    """Write what became of every sample beside the cache; digests of accepted ones are in the manifest."""
    import pyarrow  # half a second to import, and only those who prepare need it
    import pyarrow.parquet

    whole, text = pyarrow.int64(), pyarrow.string()
    schema = pyarrow.schema({
        "file": text, "size": whole, "time": whole, "row": whole, "code": text, "reason": text,
        "shape": pyarrow.list_(whole), "sums": pyarrow.list_(whole), "changes": pyarrow.list_(text),
    })  # fmt: skip
    columns = list(zip(*_entries(source, outcomes), strict=True)) or [()] * len(schema)
    table = pyarrow.table(
        [pyarrow.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
    pyarrow.parquet.write_table(table, folder / _LEDGER)


def _entries(source: Source, outcomes: Sequence[tuple[Sample, Outcome]]) -> Iterator[tuple[Any, ...]]:
    """Yield the lines of the ledger; `row` is the place in the cache, -1 for what was rejected."""
    row = 0
    for sample, outcome in outcomes:
        identity = _identity(source, sample)
        if isinstance(outcome, Rejection):
            told: tuple[Any, ...] = (-1, outcome.code, outcome.reason, (), (), ())
        else:
            sums = [value for channel in outcome.sums for value in channel]
            told = (row, "", "", outcome.shape, sums, outcome.changes)
            row += 1
        if identity is not None:
            yield *identity, *told


def _identity(source: Source, sample: Sample) -> tuple[str, int, int] | None:
    """Return what an unchanged image is known by: its file with size and time; or its name and its whole source."""
    path, stamp = source.path_of(sample), source.stamp(sample)
    if path is None:
        return f"{source.fingerprint} {sample.path}", 0, 0
    if stamp is None or not is_utf8(path):
        return None
    return path, *stamp


def known_outcomes(earlier: Path | None, source: Source, plan: Plan) -> Mapping[str, Outcome]:
    """Return path -> outcome of the samples that an earlier prepared set holds unchanged; nothing where it is not sound."""
    if earlier is None:
        return {}
    try:
        verify_prepared(earlier)
        info = json.loads((earlier / "meta.json").read_text(encoding="utf-8"))
        return _Known(open_partial(earlier), source, plan) if info.get("terms") == terms(plan) else {}
    except (OSError, UserError):
        return {}


class _Known(Mapping[str, Outcome]):
    """Outcomes by sample path, each made when it is asked for."""

    def __init__(self, prepared: Prepared, source: Source, plan: Plan) -> None:
        import pyarrow.parquet  # see above

        self._prepared = prepared
        self._plan = plan
        self._ledger: dict[str, list[Any]] = pyarrow.parquet.read_table(prepared.folder / _LEDGER).to_pydict()
        columns = (self._ledger[name] for name in ("file", "size", "time", "code"))
        line_by_identity = {
            (file, size, time): line
            for line, (file, size, time, code) in enumerate(zip(*columns, strict=True))
            if code not in _PASSING
        }
        lines = ((sample.path, line_by_identity.get(_identity(source, sample) or ("", 0, 0))) for sample in source.samples)
        self._line_by_path = {path: line for path, line in lines if line is not None}

    def __len__(self) -> int:
        return len(self._line_by_path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._line_by_path)

    def __contains__(self, path: object) -> bool:
        return path in self._line_by_path  # Mapping's own would make the outcome

    def __getitem__(self, path: str) -> Outcome:
        line = self._line_by_path[path]
        entry = {name: column[line] for name, column in self._ledger.items()}
        if entry["code"]:
            return Rejection(entry["code"], entry["reason"])
        row, (height, width, channels), sums = entry["row"], entry["shape"], entry["sums"]
        return Record(
            kept=self._kept(row, channels),
            sha256=self._prepared.manifest.sha256[row],
            pixel_digest=self._prepared.manifest.ids[row].partition("-")[0],
            shape=(height, width, channels),
            sums=tuple(zip(sums[::2], sums[1::2], strict=True)),
            changes=tuple(entry["changes"]),
        )

    def _kept(self, row: int, channels: int) -> bytes:
        if self._prepared.files is not None:
            return self._prepared.files.read(row)
        assert self._prepared.pixels is not None
        pixels: Pixels = self._prepared.pixels[row][..., : self._plan.channels or channels]
        return pixels.tobytes()
