"""Where numbers come from: the commit of the checkout, and whether its files were changed since."""

import shutil
import subprocess

import pytest

from tracked_cls import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder, *words):
    named = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *named, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    return tmp_path


def test_a_run_names_the_commit_of_its_code(checkout):
    tags = provenance.origin()
    assert tags["git.commit"] == git(checkout, "rev-parse", "HEAD")
    assert tags["git.dirty"] == "false"


def test_changed_and_added_files_make_the_code_dirty(checkout):
    (checkout / "more.py").write_text("y = 2\n")
    assert provenance.origin()["git.dirty"] == "true"
    (checkout / "more.py").unlink()
    (checkout / "code.py").write_text("x = 3\n")
    assert provenance.origin()["git.dirty"] == "true"


def test_outside_a_checkout_no_commit_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert not [name for name in provenance.origin() if name.startswith("git")]
