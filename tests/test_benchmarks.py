"""The benchmark command: its rows and their goals, how sides take turns, and the page it writes."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import loops, measuring, photos, training
from benchmarks.measuring import Found, Goal, LeftOut, Row, Terms, alternating, child, figure
from benchmarks.peers import __main__ as making
from benchmarks.peers import rows as peers

LEAST, MOST = True, False
GOALS = {  # row -> the number that was asked for, and whether it is the least
    **dict.fromkeys((f"train_{model}_28" for model in ("mobilenetv3_small", "mobilenetv3", "small_cnn")), (0.97, LEAST)),
    **dict.fromkeys((f"train_{model}_32" for model in ("mobilenetv3_small", "mobilenetv3", "resnet18")), (0.97, LEAST)),
    "train_against_timm": (1.6, LEAST),
    "train_against_lightning": (3.5, LEAST),
    "input": (3, MOST),
    "input_augmented": (15, MOST),
    "protection": (2, MOST),
    "start": (1.15, MOST),
    "mnist_8s": (8, MOST),
    "mnist_20s": (20, MOST),
    "mnist_90s": (90, MOST),
    "prepare": (2.0, MOST),
    "memory": (1.05, MOST),
    "evaluate": (1.3, MOST),
    "trials": (1.3, LEAST),
    "mobilenet": (150, MOST),
    "mobilenet_12000": (94, LEAST),
    "modes_small_cnn": (0, MOST),
    "modes_resnet18": (0, MOST),
    "photos": (1.5, LEAST),
    "together": (0.95, LEAST),
    "together_alone": (1.7, LEAST),
    "scale_epoch": (5, MOST),
    "scale_memory": (1.5, MOST),
    "scale_images": (0.9, LEAST),
}


TWICE = Goal(2, at_least=True)


def _row(name="speed", goal=TWICE, measure=lambda terms: Found(3, 2, 4), note=""):
    return Row(name, "a thing", "another thing", goal, measure, minutes=1, note=note)


def _result(found, **more):
    machine = {"cpu": "a CPU", "cores": 2, "memory_gb": 8, "versions": {"torch": "2"}}
    about = {"date": "2026-11-22", "rounds": 5, "threads": 2, "load": 0.1, "machine": machine}
    return {**{name: getattr(found, name) for name in Found.__dataclass_fields__}, **about, **more}


# ---- rows and goals --------------------------------------------------------------------------------------------------


def test_every_row_is_held_against_the_goal_that_was_asked_for():
    goals = {row.name: row.goal and (row.goal.value, row.goal.at_least) for row in command.rows()}
    assert goals == GOALS


def test_rows_have_names_of_their_own_and_say_what_they_measure():
    rows = command.rows()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.what and row.baseline and row.minutes > 0 for row in rows)


def test_every_module_that_lists_rows_is_asked():
    folder = Path(command.__file__).parent
    listing = {path for path in folder.rglob("*.py") if "\nROWS" in path.read_text()}
    assert {folder / f"{module.replace('.', '/')}.py" for module in command.MODULES} == listing


@pytest.mark.parametrize(
    ("goal", "found", "met"),
    [
        pytest.param(Goal(0.97, at_least=True), Found(0.97, 0.9, 1.0), True, id="just reached"),
        pytest.param(Goal(0.97, at_least=True), Found(0.969, 0.9, 1.0), False, id="just missed"),
        pytest.param(Goal(2, at_least=False), Found(2.0, 1.0, 3.0), True, id="at most, just reached"),
        pytest.param(Goal(2, at_least=False), Found(2.01, 1.0, 3.0), False, id="at most, just missed"),
        pytest.param(Goal(8, at_least=False, unit="s"), Found(5, 4, 6, "s", fails="accuracy 98 %"), False, id="for nothing"),
    ],
)
def test_a_goal_is_met_by_the_median_alone(goal, found, met):
    assert goal.met(found) is met


def test_a_goal_is_not_compared_with_another_unit():
    with pytest.raises(AssertionError):
        Goal(8, at_least=False, unit="s").met(Found(5, 4, 6))


# ---- taking turns ----------------------------------------------------------------------------------------------------


def test_sides_change_turns_and_each_round_gives_a_ratio():
    order, ours, theirs = [], iter([2.0, 6.0, 3.0]), iter([1.0, 2.0, 2.0])
    found = alternating(lambda: order.append("A") or next(ours), lambda: order.append("B") or next(theirs), 3)
    assert "".join(order) == "ABBAAB"
    assert (found.low, found.value, found.high) == (1.5, 2.0, 3.0)
    assert found.details == {"ours": "3 s (2 s to 6 s)", "theirs": "2 s (1 s to 2 s)"}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9734, "x", "0.973"),
        (1.3, "x", "1.3"),
        (12345.6, "images/s", "12,346 images/s"),
        (3, "us", "3 us"),
        (100, "s", "100 s"),
    ],
)
def test_figures_have_as_many_digits_as_mean_something(value, unit, text):
    assert figure(value, unit) == text


def _script(tmp_path, text):
    path = tmp_path / "side.py"
    path.write_text(text)
    return [measuring.sys.executable, str(path)]


def test_a_side_runs_with_pinned_threads_and_without_the_run_around_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    script = "import json, os; print('talk'); print(json.dumps([os.environ.get(name) for name in ('OMP_NUM_THREADS', "
    script += "'MLFLOW_RUN_ID')]).join(['{\"seen\": ', '}'])); print('more talk')"
    assert child(_script(tmp_path, script), threads=3) == {"seen": ["3", None]}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param("import sys; sys.exit('no such network')", "ended with 1.*no such network", id="fails"),
        pytest.param("print('nothing')", "printed no line of JSON.*nothing", id="silent"),
        pytest.param("import time; time.sleep(60)", "took more than the 1 s", id="hangs"),
    ],
)
def test_a_side_that_fails_says_why(tmp_path, script, message):
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        child(_script(tmp_path, script), seconds=1 if "sleep" in script else 60)


def test_the_clock_stands_while_an_epoch_is_validated(monkeypatch):
    from tracked_cls.training import EpochResult, Progress

    time = {"now": 0.0}
    monkeypatch.setattr(loops.Clock, "now", staticmethod(lambda: (time["now"], 2 * time["now"])))
    state, laps = SimpleNamespace(sums=SimpleNamespace(count=0)), []

    def fit(state):
        for epoch in range(2):
            for batch in range(4):
                time["now"] += 1
                state.sums.count += 10
                yield Progress(epoch + 1, batch + 1, 4)
            time["now"] += 50
            state.sums.count = 0
            yield EpochResult(epoch + 1, *[0.0] * 7)

    for step in loops._on_a_clock(fit, laps)(state):
        time["now"] += 0.5 if isinstance(step, EpochResult) else 0  # logging and saving count
    assert laps == [loops.Lap(images=70, seconds=8.0, computing=16.0, validating=100.0)]
    assert laps[0].found == {"images_per_second": 70 / 8, "with_validation": 70 / 108, "computing_us": 16e6 / 70}


# ---- the command and its page ----------------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A place where the command writes, with two rows of its own."""
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(command, "PAGE", tmp_path / "RESULTS.md")

    def refuse(terms):
        raise LeftOut(f"needs --mnist, got {terms.mnist}")

    def fail(terms):
        raise RuntimeError("the side is gone")

    rows = [_row(), _row("data", measure=refuse), _row("broken", measure=fail)]
    monkeypatch.setattr(command, "rows", lambda: rows)
    return tmp_path


def test_the_page_is_what_the_results_render_to():
    assert command.PAGE.read_text(encoding="utf-8") == command.page(command.rows(), command.read())


def test_a_row_that_falls_short_says_so_and_why():
    short, reached = _row(note="The loader is the limit."), _row("other", note="Nobody reads this.")
    page = command.page([short, reached, _row("third")], {"speed": _result(Found(1.5, 1, 2)), "other": _result(Found(2, 2, 2))})
    assert "| `speed` | a thing | another thing | at least 2 | 1.5 (1 to 2) | **no** |" in page
    assert "Why it falls short: The loader is the limit." in page
    assert "| `other` | a thing | another thing | at least 2 | 2 (2 to 2) | yes |" in page
    assert "Nobody reads this." not in page
    assert "| `third` | a thing | another thing | at least 2 | not measured |  |" in page
    assert page.count("a CPU, 2 cores, 8 GB") == 1


def test_a_figure_that_is_good_for_nothing_is_no_success():
    found = Found(5, 4, 6, "s", {"accuracy": "98.1 %"}, fails="98.1 % of the 99 % are reached")
    page = command.page([_row(goal=Goal(8, at_least=False, unit="s"))], {"speed": _result(found)})
    assert "| 5 s (4 s to 6 s) | **no** |" in page
    assert "- **misses its goal**: 98.1 % of the 99 % are reached" in page


def test_what_is_measured_replaces_what_was_known_of_the_row_alone(at, capsys):
    known = {"speed": _result(Found(1, 1, 1)), "old": _result(Found(9, 9, 9))}
    (at / "results.json").write_text(json.dumps(known))
    assert command.main(["--only", "speed", "--rounds", "2"]) == 0
    results = json.loads((at / "results.json").read_text())
    assert results["old"] == known["old"]
    assert (results["speed"]["value"], results["speed"]["rounds"]) == (3, 2)
    assert set(results["speed"]["machine"]["versions"]) == {"Python", *measuring.LIBRARIES}
    assert "3 (2 to 4) | yes" in (at / "RESULTS.md").read_text()
    assert "3 (2 to 4) | yes" in capsys.readouterr().out


def test_a_row_without_its_data_is_left_out_and_one_that_fails_is_told(at, capsys):
    assert command.main([]) == 1
    told = capsys.readouterr().out
    assert "left out: needs --mnist, got None" in told
    assert "FAILED: the side is gone" in told
    assert told.count("failed: broken") == 1
    assert set(json.loads((at / "results.json").read_text())) == {"speed"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--only", "sped"], "unknown row 'sped'; did you mean 'speed'?", id="unknown row"),
        pytest.param(["--rounds", "0"], "must be at least 1, got 0", id="no rounds"),
        pytest.param(["--mnist", "nowhere"], "'nowhere' is no folder", id="no folder"),
        pytest.param(["--peers", "nowhere"], "python -m benchmarks.peers make FOLDER", id="no peers"),
    ],
)
def test_a_mistake_of_the_user_ends_with_one_line_and_code_2(at, capsys, words, message):
    try:
        code = command.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_busy_machine_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr(measuring.os, "getloadavg", lambda: (3.2, 1.0, 1.0))
    assert measuring.machine().load == 3.2
    assert "warning: the load is 3.2" in capsys.readouterr().out


# ---- what the rows are made of ---------------------------------------------------------------------------------------


def test_a_missing_option_leaves_a_row_out(tmp_path):
    terms = Terms(None, None, 1, tmp_path, None)
    for measure in (row.measure for row in (*training.ROWS, *peers.ROWS)):
        with pytest.raises(LeftOut, match="needs --(mnist|peers)"):
            measure(terms)


def test_photos_are_as_large_as_photos(tmp_path):
    photos.photos(tmp_path, {"train": 3})
    sizes = [path.stat().st_size for path in (tmp_path / "train").rglob("*.jpg")]
    assert len(sizes) == 3
    assert 80_000 < np.mean(sizes) < 130_000
    with Image.open(tmp_path / "train" / "class0" / "00000.jpg") as image:
        assert (image.size, image.mode) == ((500, 375), "RGB")


def test_pictures_for_the_peers_are_all_different_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "COUNTS", {"train": 4, "val": 2, "test": 2})
    for split in ("train", "test"):
        for name in ("0", "1"):
            folder = tmp_path / "mnist" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (28, 28), number).save(folder / f"{split}-{number}.png")
    made = peers.pictures(tmp_path / "mnist", tmp_path / "made")
    names = {path.relative_to(made).as_posix() for path in made.rglob("*.png")}
    assert names == {
        *(f"train/{name}/train-{number}.png" for name in "01" for number in (0, 1)),
        *(f"val/{name}/train-2.png" for name in "01"),
        *(f"test/{name}/test-0.png" for name in "01"),
    }
    with Image.open(made / "val" / "1" / "train-2.png") as image:
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((32, 32), "RGB", (2, 2, 2))


@pytest.mark.parametrize("has_uv", [True, False], ids=["uv", "pip"])
def test_peers_get_our_versions_of_what_both_run_on(monkeypatch, tmp_path, has_uv):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv" if has_uv else None)
    python = tmp_path / "bin" / "python"
    create, install = making._commands(tmp_path, python, ["torch==2", "timm"])
    assert create[-1] == str(tmp_path)
    assert install[-2:] == ["torch==2", "timm"]
    assert (install[0] == "/bin/uv") is has_uv
    assert str(python) in install


def test_the_rate_that_timm_says_is_the_average_of_its_epoch():
    line = "Train: 1 [ 156/157 (100%)]  Loss: 0.51 (0.62)  Time: 0.090s, 1422.2/s  (0.089s, 1,433.10/s)  LR: 1.0e-03"
    assert peers._RATE.match(line)[1] == "1,433.10"


def test_protection_costs_what_the_training_takes_beyond_its_twin():
    from benchmarks import overhead
    from benchmarks.protection import Clock, Cost

    costs = [Cost(all=Clock(wall=10 + protected, cpu=20.2), bare=Clock(10, 10), epochs=2) for protected in (10.1, 10.3, 10.2)]
    found = overhead._protection(costs)
    assert (found.value, found.low, found.high) == pytest.approx((2, 1, 3))
    assert found.details["an epoch without"] == "5 s (5 s to 5 s)"


@pytest.mark.slow
def test_both_sides_train_the_same_network_on_the_same_images(store, tmp_path):
    case = training.Case("small_cnn", 8, images=600, batch_size=32)
    options = case.options(Terms(None, None, 1, tmp_path, None), tmp_path, tmp_path)
    options |= {"data": {"source": "digits", "image_size": 8}, "tracking": {"uri": store[1], "pictures": False}}
    params = training.write(options, tmp_path / "case")
    choice = loops.prepare(params)
    ours, bare = loops.ours(params), loops.bare(params)
    assert choice["model"]["name"] == "small_cnn"
    assert np.load(params.parent / loops.PIXELS).shape == (600, 8, 8, 1)
    assert set(ours) == set(bare)
    assert ours["with_validation"] < ours["images_per_second"]
    assert bare["with_validation"] == bare["images_per_second"]


def test_the_profile_is_the_picture_that_the_run_logged(tmp_path, monkeypatch):
    def train(module, verb, params, *, threads):
        plots = Path(params).parent / "mlartifacts" / "plots"
        plots.mkdir(parents=True)
        (plots / "profile.png").write_bytes(b"a picture")
        assert "profile: true" in Path(params).read_text()
        return {}

    monkeypatch.setattr(training, "ROOT", tmp_path)
    monkeypatch.setattr(training, "PICTURE", tmp_path / "docs" / "profile_epoch.png")
    monkeypatch.setattr(training, "child", train)
    training.profile(Terms(tmp_path, None, 1, tmp_path, None))
    assert training.PICTURE.read_bytes() == b"a picture"
