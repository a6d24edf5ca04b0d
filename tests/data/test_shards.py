"""Encoded images in shards: what goes in comes out, or is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tracked_cls.data.shards import Shards, ShardWriter
from tracked_cls.errors import UserError

FILES = [bytes([number]) * size for number, size in enumerate((10, 40, 0, 55, 200, 7))]


@pytest.fixture
def shards(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=100)
    for data in FILES:
        writer.add(data)
    writer.finish()
    return Shards(tmp_path)


def test_every_file_comes_back_in_any_order(shards):
    assert len(shards) == 6
    assert [shards.read(index) for index in (5, 0, 3, 3, 1, 2, 4)] == [FILES[index] for index in (5, 0, 3, 3, 1, 2, 4)]


def test_no_shard_grows_beyond_its_limit_but_for_one_large_file(shards):
    sizes = [path.stat().st_size for path in sorted(shards.folder.glob("shard-*.bin"))]
    assert sizes == [50, 55, 200, 7]
    assert np.load(shards.folder / "index.npy")[:, 0].tolist() == [0, 0, 0, 1, 2, 3]


def test_a_changed_file_is_refused_by_shard_and_number(shards):
    with (shards.folder / "shard-00001.bin").open("r+b") as stream:
        stream.seek(20)
        stream.write(b"x")
    with pytest.raises(UserError, match=r"shard-00001\.bin: image 3 has changed"):
        shards.read(3)
    assert shards.read(1) == FILES[1]


def test_a_shard_cut_short_is_refused(shards):
    with (shards.folder / "shard-00002.bin").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(UserError, match="image 4 has changed"):
        shards.read(4)
