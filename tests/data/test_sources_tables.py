"""Images listed in a table: what is read from it, and every mistake by its line."""

from __future__ import annotations

import csv
import os

import pytest
from PIL import Image

from tracked_cls.config import DataConfig
from tracked_cls.data.sources import Sample, scan
from tracked_cls.errors import UserError

THREE = "path,label\na.png,cat\nb.png,dog\nc.png,cat\n"


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(path)).save(root / path)


def config(source, **options):
    """Return options for a table whose place the test itself hands to `scan`."""
    return DataConfig(source=source, root=".", **options)


def scan_csv(root, text, written="utf-8", **options):
    table = root / "list.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode(written))
    return scan(config("csv", table=str(table), **options), root)


def parquet(root, columns, name="list.parquet"):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), root / name)
    return scan(config("parquet"), root)


def labels_of(source):
    return {sample.path: sample.labels[0] for sample in source.samples}


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_csv_gives_paths_labels_splits_groups_and_weights(tmp_path):
    put(tmp_path, "x/a.png", "b.png", "c.png")
    rows = ["x/a.png,cat,Train,p1,2.5", "b.png,dog,VALIDATION,,1", "c.png,dog,,p2,0"]
    source = scan_csv(tmp_path, "path,label,split,group,weight\n" + "\n".join(rows) + "\n")
    assert set(source.listed()) == {
        Sample("x/a.png", ("cat",), "train", "p1", 2.5),
        Sample("b.png", ("dog",), "val", None, 1.0),
        Sample("c.png", ("dog",), None, "p2", 0.0),
    }
    assert source.path_of(source.listed()[0]) == f"{tmp_path}/x/a.png"
    status = (tmp_path / "b.png").stat()
    assert source.stamp(Sample("b.png", ("dog",))) == (status.st_size, status.st_mtime_ns // 1_000_000)
    assert source.notes == ()


def test_columns_have_the_names_that_the_user_gives(tmp_path):
    put(tmp_path, "a.png", "b.png")
    columns = {"path": "file", "label": "group", "split": "fold"}
    source = scan_csv(tmp_path, "group,file,fold\ncat,a.png,test\ndog,b.png,train\ncat,c.png,train\n", columns=columns)
    assert source.samples[-1] == Sample("a.png", ("cat",), "test")  # the column `group` is taken: it is no group


ODD = ["NA", "None", "nan", "null", "007", "猫", "a,b", 'say "x"', "two words", "1e5", "#x", "line\nbreak", "true"]


def test_labels_and_paths_are_kept_letter_by_letter_in_csv_tsv_and_parquet(tmp_path):
    names = [f"{number:02d} {label.replace('/', '')}'.png" for number, label in enumerate(ODD)]
    put(tmp_path, *names)
    expected = dict(zip(names, ODD, strict=True))
    for name, delimiter in (("list.csv", ","), ("list.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("path", "label"), *expected.items()])
        assert labels_of(scan(config("csv", table=name), tmp_path)) == expected
    assert labels_of(parquet(tmp_path, {"path": names, "label": ODD})) == expected


ENCODINGS = {
    "utf-8 with a mark": ("utf-8-sig", "utf-8"),
    "latin-1": ("latin-1", "latin-1"),
    "utf-16 with a mark": ("utf-16", "utf-16"),
}


@pytest.mark.parametrize(("written", "named"), ENCODINGS.values(), ids=ENCODINGS)
def test_a_table_is_read_in_the_encoding_named(tmp_path, written, named):
    put(tmp_path, "é.png", "b.png")
    source = scan_csv(tmp_path, "path,label\r\né.png,zoë\r\nb.png,dog\r\n", written, encoding=named)
    assert labels_of(source) == {"é.png": "zoë", "b.png": "dog"}


def test_a_plain_list_separates_by_tab_or_by_the_last_blank(tmp_path):
    text = "# a comment\n\none two.png  cat\nb c.png\tbig dog\r\n   \nc.png cat\n"
    (tmp_path / "list.txt").write_text(text, newline="")
    put(tmp_path, "c.png")
    source = scan(config("txt"), tmp_path)
    assert labels_of(source) == {"one two.png": "cat", "b c.png": "big dog", "c.png": "cat"}


def test_parquet_takes_text_categories_and_whole_numbers(tmp_path):
    import pyarrow as pa

    put(tmp_path, "a.png", "b.png")
    paths = pa.array(["a.png", "b.png", "c.png"]).dictionary_encode()
    label = pa.array([2**63 + 5, 7, 7], pa.uint64())
    source = parquet(
        tmp_path, {"path": paths, "label": label, "weight": [0.1, 1.0, 2.0], "group": ["x", None, ""], "image": [b"", b"", b""]}
    )
    assert source.listed() == [
        Sample("a.png", ("9223372036854775813",), None, "x", 0.1),
        Sample("b.png", ("7",), None, None, 1.0),
        Sample("c.png", ("7",), None, None, 2.0),
    ]
    assert any("columns that nothing reads: 'image'" in note for note in source.notes)


def test_several_labels_stand_in_one_cell(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    text = "path,label\na.png,x10; x9 ;\nb.png,\nc.png,x9\n"
    source = scan_csv(tmp_path, text, multi_label=True, label_separator=";")
    assert source.multi_label
    assert [sample.labels for sample in source.samples] == [("x9", "x10"), (), ("x9",)]
    assert source.class_names == ("x9", "x10")


def test_a_label_named_twice_in_one_cell_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 2: E_LABEL: a label is named twice: 'x', 'x'"):
        scan_csv(tmp_path, "path,label\na.png,x|x\n", multi_label=True)


# ---- the places of tables and files ----------------------------------------------------------------------------------


def test_the_only_table_of_the_root_is_found(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / ".hidden.csv").write_text("x")
    with pytest.raises(UserError, match=r"none ending in \.csv or \.tsv; set data.table"):
        scan(config("csv"), tmp_path)
    (tmp_path / "List.CSV").write_text(THREE)
    assert len(scan(config("csv"), tmp_path).samples) == 3
    (tmp_path / "more.tsv").write_text(THREE)
    with pytest.raises(UserError, match=r"several: List\.CSV, more\.tsv; set data.table"):
        scan(config("csv"), tmp_path)


def test_a_table_may_lie_beside_the_images_or_elsewhere(tmp_path, monkeypatch):
    put(tmp_path, "images/a.png", "images/b.png")
    (tmp_path / "images" / "in.csv").write_text(THREE)
    (tmp_path / "out.csv").write_text(THREE)
    monkeypatch.chdir(tmp_path)
    for table in ("in.csv", "out.csv", str(tmp_path / "out.csv")):
        assert len(scan(config("csv", table=table), tmp_path / "images").samples) == 3
    alone = DataConfig(source="csv", table=str(tmp_path / "images" / "in.csv"))
    assert scan(alone, None).path_of(Sample("a.png", ("cat",))) == f"{tmp_path}/images/a.png"
    with pytest.raises(UserError, match=r"data.table: 'gone.csv' is no file \(looked for .*images/gone.csv and gone.csv\)"):
        scan(config("csv", table="gone.csv"), tmp_path / "images")


def test_a_missing_file_is_left_to_decoding_unless_all_are_missing(tmp_path):
    with pytest.raises(UserError, match=rf"none of its 3 images is below {tmp_path}, e\.g\. 'a\.png'; mend data\.root"):
        scan_csv(tmp_path, THREE)
    put(tmp_path, "c.png")
    source = scan_csv(tmp_path, THREE)
    assert source.stamp(source.samples[0]) == (-1, 0)


def test_paths_are_made_plain_and_windows_paths_are_understood(tmp_path):
    put(tmp_path, "x/a.png", "b.png", "back\\slash.png", "c d.png")
    source = scan_csv(tmp_path, "path,label\nx\\a.png,1\n./x/..//b.png,2\nback\\slash.png,1\nno\\file.png,1\n")
    assert set(labels_of(source)) == {"x/a.png", "b.png", "back\\slash.png", "no\\file.png"}


def test_links_may_lead_anywhere_below_the_root(tmp_path):
    put(tmp_path, "real/a.png", "b.png")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    source = scan_csv(tmp_path, "path,label\nlinked/a.png,1\nc.png,2\ndangling.png,1\n")
    assert [source.stamp(sample) == (-1, 0) for sample in source.samples] == [False, True, False]


def test_images_that_no_row_names_are_noted(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", "x/2.png", "x/10.png")
    (note,) = scan_csv(tmp_path, THREE).notes
    assert note.startswith(f"W_UNLISTED: 2 images below {tmp_path} are in no row of list.csv, e.g. 'x/2.png'")


def test_counting_unlisted_images_gives_up_where_there_are_too_many_files(tmp_path, monkeypatch):
    put(tmp_path, *(f"{index}.png" for index in range(20)))
    monkeypatch.setattr("tracked_cls.data.sources.tables._FEW_FILES", 3)
    assert scan_csv(tmp_path, "path,label\n1.png,a\n2.png,b\n").notes == ()


def test_the_fingerprint_follows_the_table_and_the_files_it_lists(tmp_path):
    put(tmp_path, "a.png", "b.png")
    before = scan_csv(tmp_path, THREE).fingerprint
    put(tmp_path, "unlisted.png")
    assert scan_csv(tmp_path, THREE).fingerprint == before
    assert scan_csv(tmp_path, THREE.replace("dog", "cow")).fingerprint != before
    os.utime(tmp_path / "a.png", (1, 1))
    assert scan_csv(tmp_path, THREE).fingerprint != before


def test_the_order_is_that_of_paths_not_of_rows(tmp_path):
    put(tmp_path, "9.png")
    source = scan_csv(tmp_path, "path,label\n10.png,a\n9.png,b\n8.png,a\n")
    assert [sample.path for sample in source.samples] == ["8.png", "9.png", "10.png"]


def test_groups_may_come_from_paths(tmp_path):
    put(tmp_path, "p1_a.png", "p2_b.png")
    text = "path,label\np1_a.png,x\np2_b.png,y\n"
    source = scan_csv(tmp_path, text, group_pattern=r"^(p\d+)_")
    assert [sample.group for sample in source.samples] == ["p1", "p2"]
    with pytest.raises(UserError, match=r"'p2_b\.png' does not match data.group_pattern .*, like 1 of 2"):
        scan_csv(tmp_path, text, group_pattern="(p1)").samples  # noqa: B018
    with pytest.raises(UserError, match="column 'group' gives the groups, which data.group_pattern contradicts"):
        scan_csv(tmp_path, "path,label,group\na.png,x,\n", group_pattern="(p1)")


def test_a_row_may_name_a_folder_of_frames(tmp_path):
    put(tmp_path, "clips/one/1.png", "clips/one/deep/2.png", "still.png", "spare.png")
    source = scan_csv(tmp_path, "path,label\nclips/one/,a\nstill.png,b\n", frames=2)
    sizes = [(tmp_path / "clips/one" / name).stat().st_size for name in ("1.png", "deep/2.png")]
    assert source.samples[0] == Sample("clips/one", ("a",))
    assert source.stamp(source.samples[0])[0] == sum(sizes)
    assert "W_UNLISTED: 1 images" in source.notes[0]
    before = source.fingerprint
    os.utime(tmp_path / "clips/one/deep/2.png", (1, 1))
    assert scan_csv(tmp_path, "path,label\nclips/one/,a\nstill.png,b\n", frames=2).fingerprint != before


# ---- mistakes --------------------------------------------------------------------------------------------------------

SPANNING = 'path,label\n"two\nlines.png",cat\n'
CSV_MISTAKES = {
    "empty file": ("", "the file is empty"),
    "only blank lines": ("\n\n", "no header line"),
    "no rows": ("path,label\n", "the table lists no images"),
    "misspelt column": (
        "path,lable\na.png,x\n",
        r"E_COLUMNS: no column 'label' among 'path', 'lable'.*mean 'lable'.*columns.label",
    ),
    "no near column": ("path,x\na.png,x\n", r"no column 'label' among 'path', 'x'; data\.columns\.label names it"),
    "semicolons": ("path;label\na.png;x\n", "no column 'path' among 'path;label'.*a comma must stand between columns"),
    "doubled column": ("path,label,label\na.png,x,y\n", "E_COLUMNS: two columns are called 'label'"),
    "short row": (SPANNING + "a.png\n", r"line 4: E_COLUMNS: the header has 2 columns, this line has 1"),
    "long row": ("path,label\na.png,x,y\n", "line 2: E_COLUMNS: the header has 2 columns, this line has 3"),
    "blank label": (SPANNING + "\na.png,\n", "line 5: E_LABEL_MISSING"),
    "label with a blank": ("path,label\na.png, x\n", "line 2: E_LABEL: the label ' x' begins or ends with a blank"),
    "empty path": ("path,label\n,x\n", "line 2: E_ESCAPE: the path is empty"),
    "the root as path": ("path,label\n./,x\n", r"line 2: E_ESCAPE: the path is './'"),
    "absolute path": ("path,label\n/etc/a.png,x\n", "line 2: E_ESCAPE: the path '/etc/a.png' is absolute"),
    "absolute path of Windows": ("path,label\nC:\\a.png,x\n", "line 2: E_ESCAPE.*is absolute"),
    "path that leaves": ("path,label\nx/../../a.png,x\n", "line 2: E_ESCAPE: .* leads out of"),
    "path that leaves backwards": ("path,label\n..\\a.png,x\n", "line 2: E_ESCAPE: .* leads out of"),
    "linked folder that leaves": ("path,label\nout/a.png,x\n", "line 2: E_ESCAPE: .*by a link to .*elsewhere, out of"),
    "linked file that leaves": ("path,label\nout.png,x\n", "line 2: E_ESCAPE: .*by a link to .*a.png, out of"),
    "listed twice": (
        "path,label\na.png,x\nb.png,y\n./a.png,x\n",
        "line 4: E_LABEL_CONFLICT: 'a.png' is listed twice, in line 2 and line 4, both with 'x'",
    ),
    "two labels": ("path,label\na.png,x\na.png,y\n", "E_LABEL_CONFLICT: .* in line 2 and line 3, with 'x' and with 'y'"),
    "odd split": ("path,label,split\na.png,x,tset\n", "line 2: E_SPLIT: .*got 'tset'; did you mean 'test'"),
    "negative weight": ("path,label,weight\na.png,x,-1\n", "line 2: E_WEIGHT: .*at least 0, got '-1'"),
    "infinite weight": ("path,label,weight\na.png,x,inf\n", "line 2: E_WEIGHT"),
    "weight that is no number": ("path,label,weight\na.png,x,nan\n", "line 2: E_WEIGHT"),
    "empty weight": ("path,label,weight\na.png,x,\n", "line 2: E_WEIGHT"),
    "open quote": (SPANNING + '"a.png,x\nb.png,y\n', "line 4: E_COLUMNS: not valid CSV: unexpected end of data"),
    "letters behind a quote": ('path,label\n"a".png,x\n', "line 2: E_COLUMNS: not valid CSV"),
    "NUL": ("path,label\na.png,x\nb\0.png,y\n", "line 3: E_ENCODING: a NUL character"),
    "not UTF-8": (
        b"path,label\na.png,\xe9\n",
        "line 2: E_ENCODING: the byte 0xe9 at offset 17 is not utf-8; save the file as UTF-8 or",
    ),
    "not UTF-8 behind a mark": (b"\xef\xbb\xbfpath,label\na.png,\xe9\n", "line 2: E_ENCODING: the byte 0xe9 at offset 20"),
    "UTF-16": ("path,label\n".encode("utf-16"), "E_ENCODING: .*set data.encoding=utf-16"),
}


@pytest.mark.parametrize(("text", "message"), CSV_MISTAKES.values(), ids=CSV_MISTAKES)
def test_a_mistake_in_a_csv_is_one_line_that_names_the_place(tmp_path, text, message):
    root = tmp_path / "root"
    put(root, "a.png", "b.png", "x/c.png")
    put(tmp_path, "a.png", "elsewhere/a.png")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "out.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(UserError, match=message) as caught:
        scan_csv(root, text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(root / "list.csv"))


def test_one_column_cannot_mean_two_things(tmp_path):
    with pytest.raises(UserError, match="data.columns.path and data.columns.label both name the column 'path'"):
        scan_csv(tmp_path, THREE, columns={"label": "path"})
    with pytest.raises(UserError, match="no column 'patient' among 'path', 'label'; data.columns.group names it"):
        scan_csv(tmp_path, THREE, columns={"group": "patient"})


TXT_MISTAKES = {
    "no label": ("a.png x\nb.png\n", "line 2: E_LABEL_MISSING: 'b.png'"),
    "three parts": ("#\na.png\tx\ty\n", "line 2: E_COLUMNS: .*this one has 3 parts"),
    "blank in the label": ("a.png\tx \n", "line 1: E_LABEL: the label 'x ' begins or ends with a blank"),
    "listed twice": ("a.png x\n\na.png x\n", "E_LABEL_CONFLICT: 'a.png' is listed twice, in line 1 and line 3"),
    "outside": ("../a.png x\n", "line 1: E_ESCAPE"),
}


@pytest.mark.parametrize(("text", "message"), TXT_MISTAKES.values(), ids=TXT_MISTAKES)
def test_a_mistake_in_a_plain_list_names_the_line(tmp_path, text, message):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        scan(config("txt"), tmp_path)


PARQUET_MISTAKES = {
    "null label": ({"path": ["a.png", "b.png"], "label": ["x", None]}, "row 2: E_LABEL_MISSING"),
    "null path": ({"path": ["a.png", None], "label": ["x", "y"]}, "row 2: E_ESCAPE: the path is empty"),
    "labels that are no text": (
        {"path": ["a.png"], "label": [1.5]},
        r"E_COLUMNS: column 'label' \(data.columns.label\) holds double",
    ),
    "truth values": ({"path": ["a.png"], "label": [True]}, "E_COLUMNS: column 'label' .* holds bool"),
    "missing column": ({"file": ["a.png"], "label": ["x"]}, "E_COLUMNS: no column 'path' among 'file', 'label'"),
    "no weight": ({"path": ["a.png"], "label": ["x"], "weight": [float("nan")]}, "row 1: E_WEIGHT: .*got 'nan'"),
    "NUL": ({"path": ["a\0.png"], "label": ["x"]}, "row 1: E_ESCAPE: .*NUL"),
}


@pytest.mark.parametrize(("columns", "message"), PARQUET_MISTAKES.values(), ids=PARQUET_MISTAKES)
def test_a_mistake_in_a_parquet_file_names_the_row(tmp_path, columns, message):
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match=message):
        parquet(tmp_path, columns)


def test_a_damaged_parquet_file_is_named(tmp_path):
    put(tmp_path, "a.png", "b.png")
    parquet(tmp_path, {"path": ["a.png", "b.png"], "label": ["x", "y"]})
    path = tmp_path / "list.parquet"
    content = path.read_bytes()
    for damaged in (b"PAR1", content[:-5], content[:4] + b"\xff" * 60 + content[64:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"list\.parquet: .*damaged"):
            scan(config("parquet"), tmp_path)
