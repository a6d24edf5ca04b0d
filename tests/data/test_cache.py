"""Prepared folders: whole or not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tracked_cls import durable
from tracked_cls.config import DataConfig
from tracked_cls.data import cache
from tracked_cls.errors import UserError


def publish(final, text="x"):
    with cache.staging(final) as folder:
        (folder / "meta.json").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_with_the_digest_of_every_file(tmp_path):
    final = tmp_path / "set" / "key"
    with cache.staging(final) as folder:
        (folder / "meta.json").write_text("x")
        assert not final.exists()
    assert names(final) == ["COMPLETE", "meta.json"]
    assert names(final.parent) == ["key"]
    cache.verify_prepared(final)


def test_a_failure_leaves_nothing(tmp_path):
    final = tmp_path / "set" / "key"
    with pytest.raises(ZeroDivisionError), cache.staging(final) as folder:
        (folder / "meta.json").write_text(str(1 / 0))
    assert names(final.parent) == []


def test_who_finished_first_stays(tmp_path):
    final = tmp_path / "set" / "key"
    with cache.staging(final) as folder:
        (folder / "meta.json").write_text("second")
        other = tmp_path / "set" / "other"
        publish(other, "first")
        other.rename(final)
    assert (final / "meta.json").read_text() == "first"
    assert names(final.parent) == ["key"]


def test_a_final_folder_without_complete_is_replaced(tmp_path):
    final = tmp_path / "set" / "key"
    final.mkdir(parents=True)
    (final / "pixels.npy").write_text("half")
    publish(final)
    assert names(final) == ["COMPLETE", "meta.json"]


def test_complete_is_written_after_everything_else_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append((path.name, (path.parent / "COMPLETE").exists())))
    publish(tmp_path / "set" / "key")
    names = [name for name, _ in synced]
    assert names.index("meta.json") < names.index("COMPLETE")
    assert not dict(synced)["meta.json"]


def test_what_killed_processes_left_is_swept_and_live_ones_are_left_alone(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tracked_cls.data.cache import staging
with staging(Path({str(tmp_path / "set" / "dead")!r})):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [name.startswith(".partial-dead-") for name in names(tmp_path / "set")] == [True]
    with cache.staging(tmp_path / "set" / "alive"):
        publish(tmp_path / "set" / "key")
        left = [name for name in names(tmp_path / "set") if name.startswith(".partial")]
        assert [name.startswith(".partial-alive-") for name in left] == [True]


@pytest.mark.parametrize("marker", [None, "", "[]", '{"meta.json": 1}'], ids=["absent", "empty", "list", "malformed"])
def test_a_folder_without_a_sound_complete_is_never_opened(tmp_path, marker):
    final = tmp_path / "set" / "key"
    publish(final)
    (final / "COMPLETE").unlink()
    if marker is not None:
        (final / "COMPLETE").write_text(marker)
    with pytest.raises(UserError, match="delete the folder and run prepare again"):
        cache.open_prepared(final)


def test_a_changed_small_file_is_noticed_on_opening(tmp_path):
    final = tmp_path / "set" / "key"
    publish(final, "abc")
    (final / "meta.json").write_text("abd")
    with pytest.raises(UserError, match=r"meta\.json: its content has changed"):
        cache.open_prepared(final)


def test_one_changed_bit_of_a_large_file_is_noticed_on_opening(tmp_path):
    final = tmp_path / "set" / "key"
    with cache.staging(final) as folder:
        (folder / "pixels.npy").write_bytes(bytes(2_000_000))
    with (final / "pixels.npy").open("r+b") as stream:
        stream.seek(1_234_567)
        stream.write(b"\1")
    for check in (cache.open_prepared, cache.verify_prepared):
        with pytest.raises(UserError, match=r"pixels\.npy: its content has changed"):
            check(final)
    with (final / "pixels.npy").open("ab") as stream:
        stream.write(b"\1")
    with pytest.raises(UserError, match="not of its 2000000 bytes"):
        cache.open_prepared(final)


def test_shards_are_digested_image_by_image_and_whole_when_asked(tmp_path):
    final = tmp_path / "set" / "key"
    with cache.staging(final) as folder:
        (folder / "shard-00000.bin").write_bytes(bytes(9))
        (folder / "meta.json").write_text("{}")
    (final / "shard-00000.bin").write_bytes(bytes(8) + b"\1")
    with pytest.raises(UserError, match="not a prepared set that can be read"):  # it got beyond the digests
        cache.open_prepared(final)
    with pytest.raises(UserError, match=r"shard-00000\.bin: its content has changed"):
        cache.verify_prepared(final)


FOLDER = {"source": "folder", "root": "r", "name": "n"}
SAME = {
    "store": "elsewhere",
    "workers": 7,
    "download": False,
    "folds": 4,
    "root": "moved",
    "test": {"source": "folder", "root": "moved"},
}
OTHER = {
    "image_size": 9,
    "channels": 3,
    "fit": "pad",
    "interpolation": "nearest",
    "val_fraction": 0.3,
    "test_fraction": 0.3,
    "split_seed": 1,
    "split": "hash",
    "max_pixels": 5,
    "name": "m",
    "label_pattern": "prefix",
    "group_pattern": "(.)",
    "frames": 4,
    "cache": "files",
    "cache_limit_bytes": 5,
    "min_side": 9,
    "decode_seconds": 5.0,
    "decode_memory_bytes": 1_000_000_000,
    "duplicates": "allow",
    "near_duplicates": "off",
    "test": {"source": "digits"},
}


@pytest.mark.parametrize("name", SAME)
def test_the_key_does_not_follow_what_leaves_the_result_as_it_is(name):
    base = FOLDER | {"test": {"source": "folder", "root": "t"}}
    key = cache.prepared_key(DataConfig(**base), "print")
    assert cache.prepared_key(DataConfig(**{**base, name: SAME[name]}), "print") == key
    assert cache.prepared_key(DataConfig(**base), "other") != key


def test_the_arguments_of_a_split_are_in_the_fingerprint_not_in_the_key():
    place = {"source": "python", "dataset": "a:B"}
    keys = {cache.prepared_key(DataConfig(**FOLDER, test={**place, "dataset_args": args}), "p") for args in (None, {"a": 1})}
    assert len(keys) == 1


@pytest.mark.parametrize("name", OTHER)
def test_the_key_follows_what_decides_the_result(name):
    assert cache.prepared_key(DataConfig(**{**FOLDER, name: OTHER[name]}), "p") != cache.prepared_key(DataConfig(**FOLDER), "p")


def test_an_option_that_nobody_has_thought_of_decides():
    decisive = set(DataConfig.model_fields) - set(SAME) - {"table", "dataset_args", "fold", "val"}
    untested = decisive - set(OTHER)
    assert untested == {"source", "dataset", "columns", "encoding", "multi_label", "label_separator"}


def test_current_names_the_latest(tmp_path):
    for key in ("one", "two"):
        publish(tmp_path / "set" / key)
        cache.set_current(tmp_path / "set" / key)
    assert (tmp_path / "set" / "current").read_text() == "two\n"
    assert cache.current(tmp_path, "set") == tmp_path / "set" / "two"
    assert cache.current(tmp_path, "nothing") is None


@pytest.mark.parametrize("label", [".", ".."])
def test_a_name_never_leads_out_of_the_store(tmp_path, label):
    with pytest.raises(UserError, match="cannot name a folder"):
        cache.prepared_folder(tmp_path, label, "key")
