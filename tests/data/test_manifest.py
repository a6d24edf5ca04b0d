"""The manifest: ids, digests, counts, and what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from tracked_cls.data.manifest import _read_column, find_sample, load_manifest, make_manifest, save_manifest
from tracked_cls.errors import UserError


def manifest(pixel_digests=("aa", "bb", "aa"), labels=(0, 1, 0), splits=(0, 1, 2), paths=("x", "y", "z"), **change):
    values = {
        "labels": np.array(labels, np.int64),
        "splits": np.array(splits, np.uint8),
        "paths": paths,
        "sha256": ["0" * 64] * len(paths),
        "pixel_digests": pixel_digests,
        "geometry": {"image_size": 8},
    }
    return make_manifest("set", ("cat", "dog"), **{**values, **change})


def test_exact_copies_get_an_ordinal_and_a_key_of_their_own():
    made = manifest()
    assert made.ids == ["aa", "bb", "aa-1"]
    assert len(set(made.keys.tolist())) == 3
    assert made.keys.dtype == np.uint64


def test_indices_and_counts_agree_with_the_splits():
    made = manifest(splits=(0, 0, 2))
    assert made.indices("train").tolist() == [0, 1]
    assert made.indices("val").tolist() == []
    assert made.counts() == {"train": {"cat": 1, "dog": 1}, "val": {"cat": 0, "dog": 0}, "test": {"cat": 1, "dog": 0}}
    with pytest.raises(UserError, match="unknown split"):
        made.indices("training")


CHANGES = {
    "labels": ({"labels": np.array([0, 1, 1])}, True, True),
    "splits": ({"splits": np.array([0, 1, 1])}, True, False),
    "pixels": ({"pixel_digests": ["aa", "bb", "cc"]}, True, True),
    "geometry": ({"geometry": {"image_size": 9}}, True, False),
    "paths": ({"paths": ["p", "q", "r"]}, False, False),
    "files": ({"sha256": ["1" * 64] * 3}, False, False),
    "weights": ({"weights": [1, 1, 2]}, True, False),
    "groups": ({"groups": ["", "g", ""]}, True, False),
    "weights of 1": ({"weights": [1, 1, 1]}, False, False),
    "no groups": ({"groups": ["", "", ""]}, False, False),
}


@pytest.mark.parametrize(("change", "digest_moves", "content_moves"), CHANGES.values(), ids=CHANGES)
def test_digests_move_with_what_they_stand_for(change, digest_moves, content_moves):
    before, after = manifest(), manifest(**change)
    assert (after.digest != before.digest) == digest_moves
    assert (after.content_digest != before.content_digest) == content_moves
    assert len(before.digest) == len(before.content_digest) == 16


def test_a_manifest_survives_the_disk(tmp_path):
    made = manifest(paths=("a,b\n.png", "caf\u00e9.png", '"q".png'), weights=[0, 0.5, 1], groups=["g", "", "NA"])
    save_manifest(made, tmp_path)
    read = load_manifest(tmp_path, name="set", classes=made.classes, digest=made.digest, content_digest=made.content_digest)
    assert [list(column) for column in (read.ids, read.paths, read.sha256)] == [
        made.ids,
        ["a,b\n.png", "caf\u00e9.png", '"q".png'],
        made.sha256,
    ]
    assert list(read.groups) == ["g", "", "NA"]
    for column in ("labels", "splits", "keys", "weights"):
        stored = getattr(read, column)
        assert isinstance(stored, np.memmap)
        assert stored.dtype == getattr(made, column).dtype
        np.testing.assert_array_equal(stored, getattr(made, column))


def test_digests_of_plain_sets_are_what_they_always_were():
    made = manifest()
    assert (made.digest, made.content_digest) == ("384265cc8da3be5f", "f7873a28357d1df9")


# ---- several labels --------------------------------------------------------------------------------------------------

SEVERAL = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]], np.uint8)


def several(labels=SEVERAL, **change):
    names = [f"{index:032x}" for index in range(len(labels))]
    values = {
        "labels": labels,
        "splits": np.array([0, 0, 1, 2], np.uint8),
        "paths": names,
        "sha256": names,
        "pixel_digests": names,
        "geometry": {},
    }
    return make_manifest("set", ("a", "b", "c"), **{**values, **change})


def test_an_image_counts_for_each_of_its_labels():
    made = several()
    assert made.multi_label
    assert not manifest().multi_label
    assert made.counts() == {
        "train": {"a": 2, "b": 1, "c": 0},
        "val": {"a": 0, "b": 0, "c": 0},
        "test": {"a": 1, "b": 0, "c": 1},
    }
    assert [made.num_of(split) for split in ("train", "val", "test")] == [2, 1, 1]


def test_the_stratum_is_the_label_or_the_rarest_of_several():
    assert manifest().strata().tolist() == [0, 1, 0]
    assert several().strata().tolist() == [1, 0, 3, 2]


def test_the_content_digest_follows_each_of_the_labels(tmp_path):
    changed = SEVERAL.copy()
    changed[1, 2] = 1
    assert several(changed).content_digest != several().content_digest
    save_manifest(several(), tmp_path)
    read = load_manifest(tmp_path, name="set", classes=("a", "b", "c"), digest="", content_digest="")
    np.testing.assert_array_equal(read.labels, SEVERAL)
    assert read.labels.dtype == np.uint8


def test_other_splits_make_another_digest_of_the_same_content():
    made = manifest()
    other = made.with_splits(np.array([0, 0, 2], np.uint8))
    assert other.indices("train").tolist() == [0, 1]
    assert other.digest == made.with_splits(np.array([0, 0, 2], np.uint8)).digest != made.digest
    assert other.content_digest == made.content_digest


# ---- one sample ------------------------------------------------------------------------------------------------------

NAMED = manifest(("abcd11", "abcd22", "abcd11"), paths=("cat/1.png", "dog/1.png", "cat/2.png"))


@pytest.mark.parametrize(("text", "index"), [("cat/2.png", 2), ("abcd11", 0), ("abcd11-1", 2), ("1", 1), ("abcd2", 1)])
def test_a_sample_is_found_by_path_id_number_or_the_start_of_its_id(text, index):
    assert find_sample(NAMED, text) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/1.pgn", r"did you mean 'cat/1\.png'"),
        ("abcd", r"3 images have an id that starts with 'abcd': abcd11 \(cat/1\.png\)"),
        ("3", "set has the numbers 0 to 2"),
        ("abc", "no image of set has the path or id 'abc'"),
    ],
)
def test_a_sample_that_is_not_there_or_not_clear_is_told(text, message):
    with pytest.raises(UserError, match=message):
        find_sample(NAMED, text)


def test_a_column_on_disk_reads_like_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr("tracked_cls.data.manifest._AT_A_TIME", 2)
    save_manifest(manifest(), tmp_path)
    made = load_manifest(tmp_path, name="set", classes=("cat", "dog"), digest="d", content_digest="c")
    assert list(made.paths) == ["x", "y", "z"]
    assert (made.paths[1], made.paths[-1], made.paths[1:], len(made.paths)) == ("y", "z", ["y", "z"], 3)
    assert "y" in made.paths
    assert "w" not in made.paths
    assert made.paths.index("z") == 2
    with pytest.raises(IndexError):
        made.paths[3]


def test_text_is_read_a_group_of_rows_at_a_time(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    names = [f"image {number}" for number in range(100)]
    pyarrow.parquet.write_table(pa.table({"path": names}), tmp_path / "manifest.parquet", row_group_size=7)
    column = _read_column(tmp_path, "path")

    assert len(column) == 100
    assert list(column) == names
    assert [column[number] for number in (99, 0, 6, 7, 50, -1)] == [names[number] for number in (99, 0, 6, 7, 50, -1)]
    assert [column[5:30], column[6:7], column[:], column[90:200], column[20:5], column[::9]] == [
        names[5:30], names[6:7], names, names[90:], [], names[::9],
    ]  # fmt: skip
    with pytest.raises(IndexError):
        column[100]


def test_text_is_written_in_groups_that_do_not_grow_with_the_set(tmp_path, monkeypatch):
    import pyarrow.parquet

    monkeypatch.setattr("tracked_cls.data.manifest._GROUP_ROWS", 2)
    made = manifest(paths=("a.png", "b.png", "c.png"))

    save_manifest(made, tmp_path)

    file = pyarrow.parquet.ParquetFile(tmp_path / "manifest.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [2, 1]
    read = load_manifest(tmp_path, name=made.name, classes=made.classes, digest=made.digest, content_digest=made.content_digest)
    assert list(read.paths) == ["a.png", "b.png", "c.png"]
