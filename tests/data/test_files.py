"""Image files on the disk: what is listed is what is read."""

from __future__ import annotations

import os

import pytest

from tracked_cls.data.decode import RejectedImage
from tracked_cls.data.files import frame_files, stamp_of_frames, unread_formats, walk


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def frames(root):
    return [os.path.relpath(path, root) for path in frame_files(str(root))]


def test_frames_come_in_natural_order(tmp_path):
    touch(tmp_path, "f10.png", "f9.png", ".hidden.png", "notes.txt", "more/f1.PNG", ".trash/f2.png")
    assert frames(tmp_path) == ["f9.png", "f10.png", "more/f1.PNG"]


def test_the_frames_are_the_files_that_the_stamp_of_a_clip_is_made_of(tmp_path):
    touch(tmp_path / "elsewhere", "f3.png")
    touch(tmp_path / "clip", "f1.png", "f2.png", "__MACOSX/f1.png", "folder.png/f4.png")
    (tmp_path / "clip" / "linked").symlink_to(tmp_path / "elsewhere")
    listed, _ = walk(tmp_path / "clip")
    assert frames(tmp_path / "clip") == ["f1.png", "f2.png", "folder.png", "linked/f3.png"]
    assert sorted(name for name, _, _ in listed) == frames(tmp_path / "clip")
    before = stamp_of_frames(listed)
    touch(tmp_path / "elsewhere", "f44.png")
    assert stamp_of_frames(walk(tmp_path / "clip")[0]) != before


def test_frames_that_may_not_be_listed_are_a_rejected_clip(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # chmod would not stop root
    with pytest.raises(RejectedImage, match="this folder may not be read") as caught:
        frame_files(str(tmp_path))
    assert caught.value.code == "E_PERMISSION"


def test_a_path_is_what_pathlib_makes_of_it(tmp_path):
    from tracked_cls.data.sources import FileSource, Sample

    source = FileSource("s", tmp_path, "", [], {})
    for path in ("a/1.png", "name\nwith newline.png", "b\udcff.png"):
        assert source.path_of(Sample(path, ("a",))) == str(tmp_path / path)


def test_pictures_of_formats_that_are_not_read_are_told_by_name(tmp_path):
    touch(tmp_path, "a/1.png", "a/2.HEIC", "a/3.svg", "a/notes.txt")
    images, others = walk(tmp_path)
    assert [name for name, _, _ in images] == ["a/1.png"]
    (note,) = unread_formats(others, tmp_path)
    assert "W_FORMAT: 2 pictures" in note
    assert "(.heic, .svg), e.g. 'a/2.HEIC'" in note
    assert not list(unread_formats(["a/notes.txt"], tmp_path))
