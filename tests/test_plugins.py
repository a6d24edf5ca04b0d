"""What an import path of the configuration names, and every way in which it can be wrong."""

from __future__ import annotations

import sys

import pytest

from tracked_cls import plugins
from tracked_cls.errors import UserError


@pytest.fixture(autouse=True)
def _unchanged_path(monkeypatch, tmp_path):
    """Let no test leave folders or modules behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_name_is_found_in_the_working_folder_and_in_the_folders_given(tmp_path):
    write(tmp_path / "here.py", "class Thing:\n    size = 3\n")
    write(tmp_path / "else" / "my_pkg" / "there.py", "from my_pkg.beside import size\ndef thing():\n    return size\n")
    write(tmp_path / "else" / "my_pkg" / "beside.py", "size = 4\n")
    assert plugins.load("here:Thing", "data.dataset").size == 3
    assert plugins.load("my_pkg.there:thing", "data.dataset", [tmp_path / "else"])() == 4


def test_a_module_beside_the_work_does_not_replace_an_installed_one(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    write(tmp_path / "colorsys.py", "rgb_to_hsv = None\n")
    assert plugins.load("colorsys:rgb_to_hsv", "data.dataset") is not None


MISTAKES = {
    "no colon": ("broken.Thing", "no import path; give my_pkg.my_module:Name"),
    "no name": ("broken:", "no import path"),
    "a relative module": (".sound:Thing", "no import path"),
    "no such module": ("nowhere:Thing", "there is no module 'nowhere' among what is installed, nor in"),
    "no such module in a package": ("json.nowhere:Thing", "there is no module 'json.nowhere'"),
    "a name nearly there": ("sound:Thnig", r"there is no 'Thnig' in .*sound\.py; did you mean 'Thing'"),
    "an import of its own fails": ("needs:Thing", "the module imports 'not_there_at_all', which is not installed"),
    "a syntax error": ("syntax:Thing", "importing the module raised SyntaxError"),
    "an error during import": ("broken:Thing", "importing the module raised ZeroDivisionError: division by zero"),
    "an exit during import": ("script:Thing", "importing the module raised SystemExit: 3"),
}


@pytest.mark.parametrize(("path", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_import_path_is_one_line_that_names_the_option(tmp_path, path, message):
    write(tmp_path / "sound.py", "class Thing:\n    pass\n")
    write(tmp_path / "needs.py", "import not_there_at_all\n")
    write(tmp_path / "syntax.py", "def\n")
    write(tmp_path / "broken.py", "1 / 0\n")
    write(tmp_path / "script.py", "import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match=message) as caught:
        plugins.load(path, "data.dataset")
    assert str(caught.value).startswith(f"data.dataset: '{path}'")
    assert "\n" not in str(caught.value)
