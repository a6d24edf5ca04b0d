"""Batch prediction: what it takes, what it writes, what leads back from a row, and how it goes on after an interruption."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import PARAMS, ROOT, do
from tests.faults import corpus
from tests.faults.test_host import limited
from tracked_cls import prediction, registry
from tracked_cls.config import PredictConfig, TrackingConfig
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.prediction import archives, inputs, labelling, listing, parts, rows, sheet
from tracked_cls.prediction import output as outputs
from tracked_cls.prediction.engines import Checked, Scored
from tracked_cls.serving.classifier import Classifier

SIDE = 6
NAMES = ["a/10.png", "a/2.png", "b.png", "c.png", "d/e/f.png", "g.png", "h.png"]
IN_ORDER = ["a/2.png", "a/10.png", "b.png", "c.png", "d/e/f.png", "g.png", "h.png"]


class Shades(Classifier):
    """A classifier of three shades without a network: logits are the mean brightness, less how far a class is from it."""

    def logits_of(self, batch):
        bright = batch.reshape(len(batch), -1).mean(axis=1) / 255
        return -8 * np.abs(bright[:, None] - np.array([0.0, 0.5, 1.0])).astype(np.float32)


def shades(classes=("black", "=grey", "-1")):
    meta = {"weights_digest": "w", "run_id": "r", "data": {"digest": "d"}}
    return Shades(classes, Preprocess(Geometry(SIDE, 1), (0.0,), (1.0,)), None, meta)


def answer(seen):
    return Scored(shades().logits_of(seen[:, 0]))


def job(source, output, engine=answer, classifier=None, **options):
    given = {"input": str(source), "output": str(output), "batch_size": 3, "workers": 1, **options}
    cfg = PredictConfig(predict=given, tracking={"pictures": False})
    written = outputs.output_of(cfg, output)
    about = {"model": "m", "options": {key: str(value) for key, value in options.items() if key != "overwrite"}}
    return cfg, labelling.Job(cfg, classifier or shades(), engine, written, about, {"id": "run"})


def predict(source, output, engine=answer, **options):
    """Label a source as `run` does, without a run."""
    cfg, made = job(source, output, engine, **options)
    told, _ = made.write(inputs.source_of(cfg))
    outputs.keep(made.output)
    return told


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ids(path):
    return [row["image_id"] for row in table(path)]


def shade(value, size=(9, 9)):
    return corpus.encode(np.full(size, value, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Seven grey images in folders, from dark to bright."""
    root = tmp_path / "in"
    for place, name in enumerate(IN_ORDER):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(shade(place * 40))
    return root


# ---- inputs ----------------------------------------------------------------------------------------------------------


def as_list(folder, tmp_path):
    (folder / "list.txt").write_text("# those\n\n" + "\r\n".join(IN_ORDER) + "\n")
    return folder / "list.txt"


def as_csv(folder, tmp_path, column="path", name="table.csv", separator=","):
    lines = [separator.join([column, "number"]), *(separator.join([path, "1"]) for path in IN_ORDER)]
    (folder / name).write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return folder / name


def as_zip(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "none")
        archive.writestr("__MACOSX/._b.png", "none")
        for name in IN_ORDER:
            archive.write(folder / name, name)
    return tmp_path / "in.zip"


def as_tar(folder, tmp_path, ending="tar", mode="w"):
    with tarfile.open(tmp_path / f"in.{ending}", mode) as archive:
        archive.add(folder / "a", "a", recursive=False)
        for name in IN_ORDER:
            archive.add(folder / name, name)
    return tmp_path / f"in.{ending}"


INPUTS = {
    "folder": lambda folder, tmp: folder,
    "pattern": lambda folder, tmp: folder / "**" / "*.png",
    "list": as_list,
    "csv": as_csv,
    "csv with image": lambda folder, tmp: as_csv(folder, tmp, "image"),
    "tsv": lambda folder, tmp: as_csv(folder, tmp, name="table.tsv", separator="\t"),
    "zip": as_zip,
    "tar": as_tar,
    "tar.gz": lambda folder, tmp: as_tar(folder, tmp, "tar.gz", "w:gz"),
    "tgz that is xz": lambda folder, tmp: as_tar(folder, tmp, "tgz", "w:xz"),
    "tar.bz2": lambda folder, tmp: as_tar(folder, tmp, "tar.bz2", "w:bz2"),
}


@pytest.fixture
def reference(folder, tmp_path):
    predict(folder, tmp_path / "reference.csv")
    return (tmp_path / "reference.csv").read_bytes()


@pytest.mark.parametrize("kind", INPUTS)
def test_the_same_images_are_the_same_rows_from_every_input(kind, folder, tmp_path, reference):
    source = INPUTS[kind](folder, tmp_path)
    predict(source, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == reference
    assert ids(tmp_path / "out.csv") == IN_ORDER


def test_idx_images_are_numbered(tmp_path):
    images = np.stack([np.full((7, 5), value, np.uint8) for value in (0, 128, 255)])
    content = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape) + images.tobytes()
    for name, data in {"t10k-images-idx3-ubyte": content, "a.idx.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(data)
        predict(tmp_path / name, tmp_path / f"{name}.csv")
        found = table(tmp_path / f"{name}.csv")
        assert [(row["image_id"], row["label"]) for row in found] == [("00000", "black"), ("00001", "'=grey"), ("00002", "-1")]


def test_a_missing_file_is_a_rejected_row_and_one_listed_twice_gets_a_number(folder, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(shade(255))
    (folder / "list.txt").write_text(f"b.png\ngone.png\n../outside.png\n{outside}\nb.png\nb.png#2\nb.png\n")
    told = predict(folder / "list.txt", tmp_path / "out.csv")
    assert ids(tmp_path / "out.csv") == ["b.png", "../outside.png", str(outside), "b.png#3", "b.png#4"]
    assert [(each.image_id, each.code) for each in told.rejected] == [("gone.png", "E_MISSING"), ("b.png#2", "E_MISSING")]


@pytest.mark.parametrize("kind", ["folder", "list", "csv", "zip", "tar", "pattern"])
def test_an_input_without_images_is_one_line(kind, tmp_path):
    sources = {
        "folder": tmp_path / "in", "list": tmp_path / "in" / "a.txt", "csv": tmp_path / "in" / "a.csv",
        "zip": tmp_path / "a.zip", "tar": tmp_path / "a.tar", "pattern": tmp_path / "in" / "*.png",
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    sources["list"].write_text("\n# none\n")
    sources["csv"].write_text("path\n")
    zipfile.ZipFile(sources["zip"], "w").close()
    tarfile.open(sources["tar"], "w").close()
    with pytest.raises(UserError, match=r"predict.input: (no images in|nothing matches the pattern)"):
        predict(sources[kind], tmp_path / "out.csv")
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".part*"))


@pytest.mark.parametrize(
    ("content", "column", "told"),
    [
        ("name,label\nb.png,1\n", None, "no column with the paths among 'name', 'label'; predict.column names it"),
        ("paht,label\nb.png,1\n", "path", "no column 'path' among 'paht', 'label'.*did you mean 'paht'"),
        ("path,label\n,1\n", None, "line 2: E_COLUMNS: no path in it"),
        ("b.png\nc.png\n", None, "the first line is 'b.png', which looks like an image; begin the table with a line of column"),
        ("path;label\nb.png;1\n", None, "the only column is 'path;label'; columns are parted by ',', not by ';'"),
        ('path\n"b.png\n', None, "not valid CSV"),
        ("path\n\xff.png\n", None, "not UTF-8"),
    ],
    ids=["no column", "near column", "empty cell", "no header", "semicolons", "open quote", "encoding"],
)
def test_a_table_that_cannot_be_read_is_one_line(folder, tmp_path, content, column, told):
    (folder / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=told) as caught:
        predict(folder / "t.csv", tmp_path / "out.csv", column=column)
    assert "\n" not in str(caught.value)


def test_a_column_is_for_tables_only(folder, tmp_path):
    with pytest.raises(UserError, match="predict.column=path has no effect"):
        predict(folder, tmp_path / "out.csv", column="path")


def test_an_empty_input_is_not_the_working_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="predict.input is empty"):
        predict("", tmp_path / "out.csv")


def test_pictures_of_a_format_that_is_not_read_are_told_of(folder, tmp_path, capsys):
    (folder / "a" / "x.HEIC").write_bytes(b"heic")
    (folder / "notes.txt").write_text("none")
    predict(folder, tmp_path / "out.csv")
    assert "W_FORMAT: 1 pictures" in (said := capsys.readouterr().out)
    assert "'a/x.HEIC'" in said


def test_a_file_that_is_no_image_is_named_with_the_reason(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(UserError, match=r"predict.input: the only image of '.*notes.md' cannot be read: .*starts like text"):
        predict(tmp_path / "notes.md", tmp_path / "out.csv")


def test_a_listing_larger_than_memory_is_in_the_same_order(tmp_path, monkeypatch):
    names = [f"{number}/{number}.png" for number in range(50)]
    random.Random(0).shuffle(names)

    class Unsorted:
        is_sorted = False

        def entries(self):
            return (inputs.Entry(name, name, "0") for name in names)

    monkeypatch.setattr(listing, "_RUN", 7)
    monkeypatch.setattr(listing, "_LINE", 3)
    with listing.Listing(Unsorted(), tmp_path) as found:
        assert [entry.image_id for entry in found] == [f"{number}/{number}.png" for number in range(50)]
        assert len(found) == 50


# ---- archives that are no gift ---------------------------------------------------------------------------------------


def put(path, members):
    """Write an archive of (name, content) by its ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_no_member_leads_out_of_an_archive(tmp_path, ending):
    members = [(name, shade(9)) for name in ("../up.png", "/root.png", "a/../../b.png", "C:\\x.png", "..\\y.png", "fine.png")]
    (tmp_path / "deep").mkdir()
    told = predict(put(tmp_path / "deep" / f"a.{ending}", members), tmp_path / "deep" / "out.csv")
    assert ids(tmp_path / "deep" / "out.csv") == ["fine.png"]
    assert {each.code for each in told.rejected} == {"E_PATH"}
    assert told.num_rejected == 5
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.parametrize(
    ("limit", "told"),
    [({"archive_members": 2}, "more than 2 members"), ({"archive_bytes": 200_000}, "members of more than 200,000 bytes")],
    ids=["members", "bytes"],
)
def test_an_archive_beyond_a_limit_is_refused(tmp_path, ending, limit, told):
    path = put(tmp_path / f"a.{ending}", [(f"{number}.bin", bytes(100_000)) for number in range(3)])
    with pytest.raises(UserError, match=f"refused: it holds {told}; predict.archive_"):
        predict(path, tmp_path / "out.csv", **limit)


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_member_that_grows_too_large_is_rejected_unread(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(archives, "_MEMBER_BYTES", 50_000)
    path = put(tmp_path / f"a.{ending}", [("bomb.png", bytes(100_000)), ("b.png", shade(9))])
    told = predict(path, tmp_path / "out.csv")
    assert [(each.image_id, each.code) for each in told.rejected] == [("bomb.png", "E_TOO_LARGE")]
    assert ids(tmp_path / "out.csv") == ["b.png"]


def test_a_zip_that_lies_about_a_size_is_not_believed(tmp_path, monkeypatch):
    path = put(tmp_path / "a.zip", [("a.png", shade(9)), ("bomb.png", bytes(100_000))])
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (10).to_bytes(4, "little")  # the size once unpacked, as the directory has it
    path.write_bytes(data)
    told = predict(path, tmp_path / "out.csv")
    assert [each.image_id for each in told.rejected] == ["bomb.png"]


def test_links_in_a_tar_file_are_no_images(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "b.png", "b.png")
        for kind, name in ((tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.FIFOTYPE, "fifo.png")):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    told = predict(tmp_path / "a.tar", tmp_path / "out.csv")
    assert {(each.image_id, each.code) for each in told.rejected} == {
        (name, "E_NOT_FILE") for name in ("soft.png", "hard.png", "fifo.png")
    }


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_is_one_line(folder, tmp_path, ending):
    path = {"zip": as_zip, "tar": as_tar, "tar.gz": INPUTS["tar.gz"]}[ending](folder, tmp_path)
    path.write_bytes(b"\0nothing" * 200 if ending == "tar" else path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"in.{ending}: the archive is cut short or damaged"):
        predict(path, tmp_path / "out.csv")


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 5_000_000
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(5_001_216))
    with pytest.raises(UserError, match="a header of 5,000,000 bytes"):
        predict(tmp_path / "a.tar", tmp_path / "out.csv")


def test_damage_inside_a_zip_costs_only_its_member(folder, tmp_path):
    path = as_zip(folder, tmp_path)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x03\x04", data.index(b"c.png") - 40)
    data[place + 40 : place + 44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    told = predict(path, tmp_path / "out.csv")
    assert [each.image_id for each in told.rejected] == ["c.png"]
    assert told.num_images == len(NAMES) - 1


# ---- outputs ---------------------------------------------------------------------------------------------------------


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_three_formats_say_the_same(folder, tmp_path):
    for ending in ("csv", "jsonl", "parquet"):
        predict(folder, tmp_path / f"out.{ending}", top_k=2, probabilities=True)
    lines, parquet = read_jsonl(tmp_path / "out.jsonl"), pq.read_table(tmp_path / "out.parquet")
    cells = table(tmp_path / "out.csv")
    columns = ["image_id", "label", "probability", "unsure", "label_2", "probability_2", "sha256"]
    columns += ["p:black", "p:=grey", "p:-1"]
    assert list(cells[0]) == list(lines[0]) == parquet.column_names == columns
    for cell, line, row in zip(cells, lines, parquet.to_pylist(), strict=True):
        assert line == {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        assert cell["label"].removeprefix("'") == line["label"]
        assert cell["unsure"] == str(line["unsure"]).lower()
        assert float(cell["probability_2"]) == line["probability_2"] <= line["probability"]
        assert line["probability"] == max(line[name] for name in columns[-3:])
        assert sum(row[name] for name in columns[-3:]) == pytest.approx(1)
        assert line["sha256"] == parts.durable.sha256_of(folder / line["image_id"])


def test_more_classes_are_asked_for_than_there_are(folder, tmp_path):
    predict(folder, tmp_path / "out.jsonl", top_k=9, digest=False)
    assert list(read_jsonl(tmp_path / "out.jsonl")[0])[4:] == ["label_2", "probability_2", "label_3", "probability_3"]


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png", "\ta.png", "'a.png", "a=.png", "\r.png"])
def test_no_cell_is_a_formula_and_each_can_be_read_back(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(shade(128))
    predict(tmp_path / "in", tmp_path / "out.csv")
    predict(tmp_path / "in", tmp_path / "out.jsonl")
    [row] = table(tmp_path / "out.csv")
    assert row["image_id"][0] not in "=+-@\t\r"
    assert row["image_id"].removeprefix("'") == name
    assert row["label"] == "'=grey"
    assert read_jsonl(tmp_path / "out.jsonl")[0]["image_id"] == name


@pytest.mark.parametrize("text", ["-1", "+2.5", "7"])
def test_a_number_is_no_formula(text):
    assert rows.safe_cell(text) == text


def test_names_of_rejected_files_are_no_formulas(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "=cmd.png").write_text("no")
    (tmp_path / "in" / "b.png").write_bytes(shade(1))
    predict(tmp_path / "in", tmp_path / "out.csv")
    assert ids(tmp_path / "out.rejected.csv") == ["'=cmd.png"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_name_of_any_bytes_leaves_a_table_that_pandas_reads(tmp_path, ending):
    pandas = pytest.importorskip("pandas")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"\xff.png")).write_bytes(shade(128))
    (tmp_path / "in" / os.fsdecode(b"no\xff.png")).write_text("no")
    read = {"csv": pandas.read_csv, "parquet": pandas.read_parquet, "jsonl": partial(pandas.read_json, lines=True)}[ending]
    predict(tmp_path / "in", tmp_path / f"out.{ending}")
    assert read(tmp_path / f"out.{ending}")["image_id"].tolist() == ["\\udcff.png"]
    assert pandas.read_csv(tmp_path / "out.rejected.csv")["image_id"].tolist() == ["no\\udcff.png"]


def test_the_input_is_never_the_output(folder, tmp_path):
    source = as_csv(folder, tmp_path)
    before = source.read_bytes()
    with pytest.raises(UserError, match="is the input itself"):
        predict(source, source, overwrite=True)
    assert source.read_bytes() == before


def test_what_another_output_of_the_same_stem_rejected_is_not_replaced(folder, tmp_path):
    (folder / "bad.png").write_text("no")
    predict(folder, tmp_path / "out.csv")
    (folder / "bad.png").unlink()
    with pytest.raises(UserError, match=r"out\.rejected\.csv' exists"):
        predict(folder, tmp_path / "out.jsonl")
    assert ids(tmp_path / "out.rejected.csv") == ["bad.png"]


@pytest.mark.parametrize("length", [260, 240])
def test_a_name_too_long_for_what_lies_beside_it_is_refused_at_once(folder, tmp_path, length):
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        predict(folder, tmp_path / f"{'x' * (length - 4)}.csv")


def test_an_ending_without_a_format_is_refused_with_those_there_are(folder, tmp_path):
    with pytest.raises(UserError, match=r"ending of predict.output '.jsn'; did you mean '.jsonl'"):
        predict(folder, tmp_path / "out.jsn")


@pytest.mark.parametrize("name", ["out.csv", "out.rejected.csv", "out.csv.meta.json", "out.embeddings.npy"])
def test_no_file_of_the_user_is_replaced_unless_told(folder, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name}' exists; set predict.overwrite=true"):
        predict(folder, tmp_path / "out.csv")
    assert (tmp_path / name).read_text() == "precious"
    predict(folder, tmp_path / "out.csv", overwrite=True)
    assert ids(tmp_path / "out.csv") == IN_ORDER


def test_the_sidecar_says_what_the_rows_are_made_of(folder, tmp_path):
    (folder / "bad.png").write_text("no")
    predict(folder, tmp_path / "out.csv")
    about = json.loads((tmp_path / "out.csv.meta.json").read_text())
    assert about["output"] == {"file": "out.csv", "rows": 7, "sha256": parts.durable.sha256_of(tmp_path / "out.csv")}
    assert (about["rejected"], about["input"]["images"], about["run"]) == (1, 8, {"id": "run"})


# ---- going on --------------------------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818 - no mistake
    """What ends a prediction in the middle."""


def featured(seen):
    return answer(seen)._replace(features=seen[:, 0, 0, :, 0].astype(np.float32))


def stopping(after, asked, engine=featured):
    """An engine that is interrupted after so many batches; what it was asked for is counted."""

    def ask(seen):
        if len(asked) == after:
            raise Stop
        asked.append(len(seen))
        return engine(seen)

    return ask


@pytest.mark.parametrize(("kind", "ending"), [("folder", "csv"), ("tar.gz", "jsonl"), ("folder", "parquet")])
def test_an_interrupted_prediction_goes_on_and_is_the_same_to_the_byte(folder, tmp_path, ending, kind):
    (folder / "bad.png").write_text("no")
    IN_ORDER.insert(3, "bad.png")
    try:
        source = INPUTS[kind](folder, tmp_path)
    finally:
        IN_ORDER.remove("bad.png")
    options = {"embeddings": True, "top_k": 2}
    predict(source, tmp_path / f"whole.{ending}", featured, **options)
    asked = []
    for after in (1, 2):
        with pytest.raises(Stop):
            predict(source, tmp_path / f"out.{ending}", stopping(after, asked), **options)
        assert not list(tmp_path.glob("out.*"))
    told = predict(source, tmp_path / f"out.{ending}", stopping(9, asked), **options)
    for name in (f"{{}}.{ending}", "{}.rejected.csv", "{}.embeddings.npy"):
        assert (tmp_path / name.format("out")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()
    assert sum(asked) == told.num_images == 7, "no image was scored twice"
    assert [each.image_id for each in told.rejected] == ["bad.png"]
    assert not list(tmp_path.glob(".part-*"))


def test_what_was_written_after_the_last_record_of_progress_is_written_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_EVERY_SECONDS", -1)
    predict(folder, tmp_path / "whole.csv")
    kept = {}

    def look(part):
        kept.update({path.name: path.read_bytes() for path in part.folder.iterdir() if path.name == "progress.json"})

    real = parts.Part.commit

    def commit(part, *given):
        real(part, *given)
        if not kept:
            look(part)

    monkeypatch.setattr(parts.Part, "commit", commit)
    with pytest.raises(Stop):
        predict(folder, tmp_path / "out.csv", stopping(2, [], answer))
    part = tmp_path / ".part-out.csv"
    (part / "progress.json").write_bytes(kept["progress.json"])  # as a kill would leave it
    with (part / "rows").open("ab") as file:
        file.write(b"half a ro")
    asked = []
    predict(folder, tmp_path / "out.csv", stopping(9, asked, answer))
    assert sum(asked) == 4
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


CHANGES = {
    "other options": (lambda folder: None, {"top_k": 2}, "had another model, input or options"),
    "altered file": (lambda folder: (folder / "a/2.png").write_bytes(shade(200, (3, 3))), {}, "altered"),
    "file added before": (lambda folder: (folder / "a/1.png").write_bytes(shade(3)), {}, "added"),
    "file removed": (lambda folder: (folder / "a/10.png").unlink(), {}, "removed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_prediction_of_the_same_name_starts_anew_and_says_why(folder, tmp_path, change, capsys):
    alter, options, why = CHANGES[change]
    with pytest.raises(Stop):
        predict(folder, tmp_path / "out.csv", stopping(1, [], answer))
    alter(folder)
    predict(folder, tmp_path / "out.csv", **options)
    predict(folder, tmp_path / "whole.csv", **options)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    said = capsys.readouterr().out
    assert "starts anew" in said
    assert why in said


def test_images_added_behind_what_was_done_are_no_reason_to_start_anew(folder, tmp_path, capsys):
    with pytest.raises(Stop):
        predict(folder, tmp_path / "out.csv", stopping(1, [], answer))
    (folder / "z.png").write_bytes(shade(7))
    predict(folder, tmp_path / "out.csv")
    assert ids(tmp_path / "out.csv") == [*IN_ORDER, "z.png"]
    assert "continues after 3 images" in capsys.readouterr().out


def test_two_processes_do_not_write_one_output(folder, tmp_path):
    def meanwhile(seen):
        with pytest.raises(UserError, match="another process is writing"):
            predict(folder, tmp_path / "out.csv")
        return answer(seen)

    predict(folder, tmp_path / "out.csv", meanwhile)
    assert ids(tmp_path / "out.csv") == IN_ORDER


def test_an_output_that_another_process_wrote_meanwhile_is_not_replaced(folder, tmp_path):
    cfg, late = job(folder, tmp_path / "out.csv")
    predict(folder, tmp_path / "out.csv", top_k=2)
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(UserError, match=r"out\.csv' exists"):
        late.write(inputs.source_of(cfg))
    assert (tmp_path / "out.csv").read_bytes() == before
    assert not list(tmp_path.glob(".part-*"))


def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number:03d}{'x' * 180}.png").write_bytes(shade(number))
    predict(tmp_path / "in", tmp_path / "whole.jsonl")
    asked = []

    def filling(seen):
        asked.append(len(seen))
        if len(asked) == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return answer(seen)

    whole = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    with limited(resource.RLIMIT_FSIZE, whole), pytest.raises(UserError, match="what was labelled so far is kept") as caught:
        predict(tmp_path / "in", tmp_path / "out.jsonl", filling)
    assert "File too large" in str(caught.value)
    first = sum(asked)
    predict(tmp_path / "in", tmp_path / "out.jsonl", stopping(99, asked, answer))
    assert 12 < first < 60
    assert sum(asked) <= 63, "it went on"
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_a_disk_without_room_for_the_listing_is_one_line(kind, folder, tmp_path):
    source = INPUTS[kind](folder, tmp_path)
    with (
        limited(resource.RLIMIT_FSIZE, 100),
        pytest.raises(UserError, match=r"predict.output: .*out.csv: File too large; raise"),
    ):
        predict(source, tmp_path / "out.csv")
    assert not list(tmp_path.glob(".part*"))


# ---- the contact sheet -----------------------------------------------------------------------------------------------


def said_of(count, batch):
    draw = np.random.default_rng(0)
    table = draw.dirichlet([1, 1, 1], count)
    images = [np.full((4, 4, 1), number % 256, np.uint8) for number in range(count)]
    for start in range(0, count, batch):
        names = [f"{number}.png" for number in range(start, min(start + batch, count))]
        part = table[start : start + batch]
        yield rows.say_of(shades(), part, names, [""] * len(names), 0.5), images[start : start + batch]


@pytest.mark.parametrize("batch", [1, 64])
def test_a_sheet_shows_the_least_sure_and_some_others_whatever_the_batches(batch):
    whole, parted = sheet.Sheet(), sheet.Sheet()
    for said, pixels in said_of(300, 300):
        whole.add(said, pixels)
    for said, pixels in said_of(300, batch):
        parted = sheet.Sheet(json.loads(json.dumps(parted.told)))  # as after an interruption
        parted.add(said, pixels)
    [(said, _)] = said_of(300, 300)
    least = [each.confidence for each in whole._least]
    assert least == sorted(said.confidence)[:25]
    assert whole.told == parted.told
    shown = [[words for _, words in pictures] for pictures in whole.chosen()]
    assert list(map(len, shown)) == [25, 25]


@pytest.mark.parametrize(("num_least", "num_others"), [(1, 0), (25, 25)])
def test_a_sheet_is_drawn_of_few_and_of_many(tmp_path, num_least, num_others):
    from tracked_cls.plots.answers import contact_sheet

    pictures = [(np.full((8, 5, 1 if place % 2 else 3), place, np.uint8), "0.50 $x$ 猫") for place in range(25)]
    contact_sheet(pictures[:num_least], pictures[:num_others], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width == 1100
    assert (tmp_path / "sheet.png").stat().st_size < 250_000


# ---- with a real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(trained, tmp_path_factory):
    """Forty test images as files."""
    root = tmp_path_factory.mktemp("digits")
    for index in trained.prepared.manifest.indices("test")[:40]:
        Image.fromarray(trained.prepared.pixels[index][:, :, 0]).save(root / f"{index:04d}.png")
    return root


def test_both_engines_say_the_same_and_torch_gives_the_features(digits, store, client, tmp_path):
    words = [*PARAMS, *store, "--input", str(digits), "--tracking.pictures", "false"]
    for name, extra in {"onnx": [], "torch": ["--embeddings", "true"]}.items():
        found = do(prediction.run, PredictConfig, [*words, "--output", str(tmp_path / f"{name}.parquet"), *extra])
    onnx, torch = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("onnx", "torch"))
    assert onnx["label"] == torch["label"]
    np.testing.assert_allclose(onnx["probability"].to_numpy(), torch["probability"].to_numpy(), atol=1e-5)
    embeddings = np.load(tmp_path / "torch.embeddings.npy", mmap_mode="r")
    assert found.embeddings == embeddings.shape == (40, embeddings.shape[1])
    bundle, _ = registry.resolve(client, "models:/digits-classifier@champion")
    np.testing.assert_allclose(embeddings, _features_of(bundle, onnx["image_id"].to_pylist(), digits), atol=1e-5)
    about = json.loads(torch.schema.metadata[b"tracked_cls"])
    assert about["options"]["engine"] == "torch"
    assert "embeddings: " in "\n".join(prediction.lines(found))


def _features_of(bundle, names, folder):
    """Return what stands before the last layer, found in another way."""
    import torch

    from tracked_cls.assessment import load_network

    network, _ = load_network(bundle)
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    pixels = [classifier.preprocess.geometry.apply(classifier.read((folder / name).read_bytes())) for name in names]
    images = torch.from_numpy(classifier.preprocess.normalise(np.stack(pixels)))
    *_, head = (module for module in network.modules() if isinstance(module, torch.nn.Linear))
    kept = []
    head.register_forward_hook(lambda module, given, answer: kept.append(given[0]))
    with torch.no_grad():
        network.eval()(images)
    return kept[0].numpy()


def test_an_engine_that_answers_otherwise_than_the_served_model_is_refused(trained, client):
    bundle, _ = registry.resolve(client, trained.model_uri)
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    seen = trained.prepared.sized(trained.prepared.manifest.indices("test")[:4])[:, None]
    engine = Checked(lambda seen: Scored(classifier.logits_of(seen[:, 0]) * 0.2), classifier)
    with pytest.raises(UserError, match=r"differs from the served model by 0\.\d+ in probability .*use predict.engine=onnx"):
        engine(seen)


def test_plain_prediction_needs_no_torch(digits, store, tmp_path):
    words = [*PARAMS, *store, "--input", str(digits), "--output", str(tmp_path / "out.csv"), "--tracking.pictures", "false"]
    code = (
        "import sys\nfrom tracked_cls import prediction, tracking\nfrom tracked_cls.config import PredictConfig, load\n"
        f"cfg = load(PredictConfig, {words!r})\n"
        "with tracking.open_tracker(cfg.tracking) as tracker:\n    prediction.run(cfg, tracker)\n"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def test_a_row_leads_to_the_training_run_and_its_data_as_documented(digits, store, trained, client, tmp_path, monkeypatch):
    words = [*PARAMS, *store, "--input", str(digits), "--output", str(tmp_path / "labels.csv")]
    found = do(prediction.run, PredictConfig, words)
    assert "plots/contact_sheet.png" in [item.path for item in client.list_artifacts(found.run_id, "plots")]
    about = json.loads((tmp_path / "labels.csv.meta.json").read_text())
    assert about["run"]["id"] == found.run_id
    text = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
    code = text.partition("<!-- lineage -->\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[1])
    said = []
    exec(compile(code, "docs/prediction.md", "exec"), {"print": lambda *words: said.append(" ".join(map(str, words)))})
    assert any(trained.run_id in line for line in said)
    assert any(trained.prepared.manifest.digest in line for line in said)


def test_a_folder_of_export_and_an_address_are_one_model(store, client, trained, tmp_path):
    with pytest.raises(UserError, match="predict.model: .* does not exist"):
        registry.open_model(client, str(tmp_path / "none"), TrackingConfig(), "predict.model")
    bundle, exact = registry.open_model(client, "models:/digits-classifier@champion", TrackingConfig(), "predict.model")
    assert exact == "models:/digits-classifier/1"
    assert bundle.onnx.is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--embeddings", "true", "--engine", "onnx"], "needs predict.engine=torch"), (["--top_k", "0"], "top_k")],
)
def test_what_goes_not_together_is_told_before_anything_is_read(words, told):
    from tracked_cls.config import load

    with pytest.raises(UserError, match=told):
        load(PredictConfig, [*PARAMS, "--input", "x", *words])


def test_without_a_name_the_same_command_goes_on_in_the_file_that_it_began(digits, store, trained, monkeypatch, capsys):
    words = [*PARAMS, *store, "--input", str(digits), "--tracking.pictures", "false", "--predict.batch_size", "2"]
    take, taken = labelling.Job._take, []

    def stop_at_second(self, batch, *others):
        taken.append(batch)
        if len(taken) == 2:
            raise Stop
        take(self, batch, *others)

    with monkeypatch.context() as patched:
        patched.setattr(labelling.Job, "_take", stop_at_second)
        with pytest.raises(Stop):
            do(labelling.run, PredictConfig, words)
    capsys.readouterr()
    found = do(labelling.run, PredictConfig, words)

    assert "continues after 2 images" in capsys.readouterr().out
    assert not list(found.output.parent.glob(".part-*"))
    assert not found.output.name.endswith(f"-{found.run_id[:8]}.csv")  # it has the name that the first run gave it
    other = do(labelling.run, PredictConfig, words)
    assert other.output.name.endswith(f"-{other.run_id[:8]}.csv")
    assert other.output.read_bytes() == found.output.read_bytes()
