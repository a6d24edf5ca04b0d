"""The commands as a person types them: exit codes, one clear line for a mistake, and no waiting for it."""

import errno
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PARAMS, ROOT, fast
from tracked_cls.errors import Interrupted, StopRun
from tracked_cls.signals import SIGNALS


def _command(verb, *words, cwd, **options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", f"pipelines.{verb}", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)


def _light(verb, *words):
    """Run a verb in a fresh interpreter and fail if it imported torch or mlflow before it answered."""
    code = (
        f"import sys; from pipelines.command import command; from pipelines.{verb} import main\n"
        "import atexit\n"
        "atexit.register(lambda: print('HEAVY', [m for m in ('torch', 'mlflow', 'sklearn', 'pandas') if m in sys.modules]))\n"
        f"sys.argv[1:] = {list(words)!r}\n"
        "command(main)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("verb", ["main", "prepare", "train", "tune", "evaluate", "promote", "predict", "serve", "export"])
def test_help_answers_without_heavy_imports(verb):
    done = _light(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"mlflow run . -e {verb}" in done.stdout
    assert "HEAVY []" in done.stdout


_TO_THE_FIRST_STEP = """
import os, sys
from pipelines.train import main
from tracked_cls import step

take = step.Stepper.step

def first(self, batch):
    take(self, batch)
    late = ("torch._dynamo", "triton", "torchvision", "matplotlib", "mlflow.pyfunc", "mlflow.pytorch")
    print("HEAVY", [name for name in late if name in sys.modules], flush=True)
    os._exit(0)

step.Stepper.step = first
main(sys.argv[1:])
"""


def test_the_first_step_waits_for_no_import_that_it_does_without(tmp_path):
    words = fast(data__source="digits", tracking__uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = subprocess.run(
        [sys.executable, "-c", _TO_THE_FIRST_STEP, *words], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("train", ["--epochs", "ten"], "epochs must be a whole number"),
        ("train", ["--optimizer.lr", "-1"], "optimizer.lr must be a number > 0"),
        ("train", ["--lr", "0.1"], "unknown option --lr; did you mean 'optimizer.lr'?"),
        ("evaluate", ["--split", "tset"], "evaluate.split must be one of train, val, test, got 'tset'; did you mean 'test'?"),
        ("promote", ["--rollback", "true", "--model", "x"], "promote.model has no effect with promote.rollback=true"),
        ("predict", [], "predict.input is required"),
        ("prepare", ["--params", "nope.yaml"], "params file 'nope.yaml' does not exist"),
    ],
)
def test_a_mistake_answers_with_one_line_and_code_2_without_heavy_imports(verb, words, message):
    done = _light(verb, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert "HEAVY []" in done.stdout


def _picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12), value, np.uint8)).save(path)


def _missing(folder):
    return {"data__source": "folder", "data__root": folder / "nowhere"}, "data.root: "


def _empty(folder):
    (folder / "empty").mkdir()
    return {"data__source": "folder", "data__root": folder / "empty"}, "no images in it"


def _one_class(folder):
    _picture(folder / "one" / "cat" / "1.png")
    return {"data__source": "folder", "data__root": folder / "one"}, "a classifier needs at least 2 classes"


def _too_few(folder):
    for index in range(9):
        _picture(folder / "few" / "cat" / f"{index}.png", index)
    _picture(folder / "few" / "dog" / "1.png", 100)
    return {"data__source": "folder", "data__root": folder / "few"}, "'dog'"


def _nothing_readable(folder):
    for name in ("cat", "dog"):
        (folder / "bad" / name).mkdir(parents=True)
        (folder / "bad" / name / "1.png").write_text("text")
    return {"data__source": "folder", "data__root": folder / "bad"}, "none of the 2 images can be used"


def _unknown_model(folder):
    return {"model": "resnt18"}, "unknown model 'resnt18'; did you mean 'resnet18'?"


def _model_too_big(folder):
    return {"model": "alexnet"}, "model alexnet cannot take 1x32x32 images"


def _no_gpu(folder):
    return {"device": "cuda:99"}, "device 'cuda:99' is not there"


def _limit_too_small(folder):
    return {"limit": 3}, "limit must be at least the number of classes (10), got 3"


@pytest.mark.parametrize(
    "case",
    [_missing, _empty, _one_class, _too_few, _nothing_readable, _unknown_model, _model_too_big, _no_gpu, _limit_too_small],
    ids=lambda case: case.__name__.strip("_"),
)
def test_a_mistake_in_data_or_model_is_one_line(case, tmp_path, store, trained, capsys):
    from pipelines.command import command
    from pipelines.train import main

    options, message = case(tmp_path)
    code = _in_process(command, main, [*fast(data__store=tmp_path / "data", **options), *store])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    partial = list((tmp_path / "data").rglob(".partial*"))
    assert partial == [], "nothing half-written"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "x", "/full/disk"), 2, "error: /full/disk: No space left on device; free some room there"),
        (OSError(errno.EMFILE, "x"), 2, "error: Too many open files; "),
        (
            RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: ...]"),
            2,
            "error: No space left on device; ",
        ),
        (StopRun("FAILED", "train_loss became nan in batch 3"), 1, "error: train_loss became nan in batch 3"),
        (Interrupted(signal.SIGHUP), 129, "interrupted by SIGHUP"),
    ],
    ids=["disk", "files", "store", "nan", "hang-up"],
)
def test_what_ends_a_command_is_one_line_and_a_code(error, code, line, capsys):
    from pipelines.command import command

    def verb(_):
        raise error

    assert _in_process(command, verb, []) == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback_without_its_secrets(capsys):
    from pipelines.command import command

    def verb(_):
        raise ZeroDivisionError("at http://me:hunter2@host:5000")

    assert _in_process(command, verb, []) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ZeroDivisionError" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("variables", "run_id"),
    [({"MLFLOW_RUN_ID": "a", "MLFLOW_EXPERIMENT_ID": "0"}, "a"), ({"MLFLOW_RUN_ID": "a"}, None)],
    ids=["mlflow run", "a run's id set by hand"],
)
def test_under_mlflow_run_the_launcher_is_watched_and_a_stopped_run_gets_its_last_word(monkeypatch, variables, run_id):
    from pipelines import command

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    noted = []
    monkeypatch.setattr(command.signals, "watch_launcher", lambda: noted.append("watched"))
    monkeypatch.setattr(command.afterword, "leave", noted.append)

    def verb(_):
        os.environ.pop("MLFLOW_RUN_ID")  # as the tracker does, for what is started from here
        raise Interrupted(signal.SIGINT)

    assert _in_process(command.command, verb, []) == 130
    assert noted == ([] if run_id is None else ["watched", run_id])


@pytest.mark.parametrize(("several", "rank", "code"), [(False, 0, 2), (False, 1, 2), (True, 1, 0)])
def test_only_training_is_done_by_several_processes(several, rank, code, monkeypatch, capsys):
    from pipelines import command

    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command.signals, "watch_launcher", lambda: None)
    done = []

    assert _in_process(lambda verb: command.command(verb, several=several), done.append, []) == code
    assert len(done) == (code == 0)
    told = "error: torchrun started this 2 times, and each would do all of the work: only train is for several"
    assert capsys.readouterr().err.startswith(told) == (code == 2 and rank == 0)


def _in_process(command, main, words):
    before = sys.argv, {signum: signal.getsignal(signum) for signum in SIGNALS}
    sys.argv = ["pipelines", *words]
    try:
        command(main)
    except SystemExit as done:
        return done.code
    finally:
        sys.argv = before[0]
        for signum, handler in before[1].items():
            signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("runs:/0123456789abcdef0123456789abcdef", "there is no such run"),
        ("models:/digits-classifier@nobody", "model 'digits-classifier' has no 'nobody'; it has @champion"),
        ("models:/digits-classifier/77", "model 'digits-classifier' has no '77'"),
        ("models:/digit-classifier@champion", "there is no registered model 'digit-classifier' ("),
        ("champion", "'champion' is no model address; use runs:/<id>"),
        ("runs:/abc", "'runs:/abc' is no model address: the id of a run has 32 hex digits"),
        ("models:/../etc@champion", "is no model address"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line(address, message, store, trained, capsys):
    from pipelines.command import command
    from pipelines.evaluate import main

    assert _in_process(command, main, [*PARAMS, *store, "--model", address]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_without_a_model_is_one_line(store, trained, client, capsys):
    from pipelines.command import command
    from pipelines.evaluate import main

    run = client.create_run("0")
    assert _in_process(command, main, [*PARAMS, *store, "--model", f"runs:/{run.info.run_id}"]) == 2
    assert "the run logged no model" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_server_that_is_down_is_one_line_within_seconds(verb, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    _picture(tmp_path / "a.png")
    words = ["--input", str(tmp_path / "a.png")] if verb == "predict" else []
    done = _command(verb, *PARAMS, "--tracking.uri", address, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: tracking.uri: the tracking server at {address.removeprefix('http://')} does not answer"
    )


def test_classes_the_model_does_not_know_are_named(tmp_path, store, trained, capsys):
    from pipelines.command import command
    from pipelines.evaluate import main

    for name in ("0", "1", "cat"):
        for index in range(4):
            _picture(tmp_path / "in" / name / f"{index}.png", index)
    words = ["--data.source", "folder", "--data.root", str(tmp_path / "in"), "--data.store", str(tmp_path / "data")]
    assert _in_process(command, main, [*PARAMS, *store, *words, "--model", "models:/digits-classifier@champion"]) == 2
    assert "unknown to the model: cat; not in the data: 2, 3, 4, 5, 6 and 3 more" in capsys.readouterr().err


@pytest.mark.parametrize(("signum", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)])
def test_an_interrupted_training_is_saved_and_the_same_command_continues_it(tmp_path, store, client, signum, code):
    words = [*fast(epochs=12, limit=300, seed=code, checkpoint__store=tmp_path), *store]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipelines.train", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    next(line for line in lines if line.startswith("epoch  2/12"))
    process.send_signal(signum)
    rest = "".join(lines)
    assert process.wait(60) == code, process.stderr.read()
    assert "interrupted: saved after epoch" in rest
    (run_file,) = tmp_path.glob("*/001/run.json")
    run_id = run_file.read_text().split('"')[3]
    assert client.get_run(run_id).info.status == "KILLED"

    done = subprocess.run([*command], env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert "continuing an interrupted run after epoch" in done.stdout
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run_id, "val_loss")]
    assert sorted(steps) == list(range(1, 13)), "one value per epoch, none doubled"
