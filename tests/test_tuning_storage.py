"""Where studies are kept: files and PostgreSQL, what is wrong with them said in one line, a torn journal mended."""

import os
import socket
import sys
import time
from multiprocessing import get_context
from threading import Thread

import optuna
import pytest
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from tests.postgres_server import PASSWORD, VARIABLE, postgres, postgres_server  # noqa: F401
from tracked_cls.config import TuneConfig
from tracked_cls.errors import UserError
from tracked_cls.tuning.storage import Revival, dashboard_command, masked, open_storage


def _config(home, url=None, **tune):
    return TuneConfig.model_validate({"tune": {"storage": url, **tune}, "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}"}})


def _fill(storage: BaseStorage, trials=3):
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return study


def _refusal(home, url):
    with pytest.raises(UserError) as refused:
        open_storage(_config(home, url), "s")
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "file"),
    [
        (None, "runs/studies/digits.journal"),
        ("journal:///deep/er/a.journal", "deep/er/a.journal"),
        ("sqlite:///studies.db", "studies.db"),
        ("sqlite:////{home}/abs.db", "abs.db"),
    ],
    ids=["default", "journal", "sqlite", "absolute"],
)
def test_a_study_in_a_file_is_found_again_beside_the_tracking_store(tmp_path, url, file):
    cfg = _config(tmp_path, url and url.replace("/{home}", str(tmp_path)))
    _fill(open_storage(cfg, "digits"))
    assert (tmp_path / file).exists()
    again = optuna.load_study(storage=open_storage(cfg, "digits"), study_name="s")
    assert len(again.trials) == 3
    assert dashboard_command(cfg, "digits").startswith("optuna-dashboard --host 127.0.0.1 --port 8081 ")
    assert str(tmp_path / file) in dashboard_command(cfg, "digits")


def test_processes_that_start_together_make_one_sqlite_database(tmp_path):
    _together(tmp_path, "sqlite:///studies.db")


def test_processes_that_start_together_make_the_tables_once_in_postgres(tmp_path, postgres):  # noqa: F811
    _together(tmp_path, postgres)


def _together(home, url):
    context = get_context("fork")
    openers = [context.Process(target=open_storage, args=(_config(home, url), "s")) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(30)
    assert [opener.exitcode for opener in openers] == [0] * 4
    _fill(open_storage(_config(home, url), "s"), trials=1)


def test_a_sqlite_study_needs_no_heartbeat_and_postgres_has_one(tmp_path, postgres):  # noqa: F811
    assert open_storage(_config(tmp_path, "sqlite:///a.db"), "s").get_heartbeat_interval() is None
    assert open_storage(_config(tmp_path, postgres), "s").get_heartbeat_interval() == 60


def test_an_address_with_braces_is_taken_as_it_is(tmp_path):
    _fill(open_storage(_config(tmp_path, "sqlite:///{a}.db"), "s"), trials=1)
    assert (tmp_path / "{a}.db").exists()


def test_a_database_in_ascii_serves_too(tmp_path, postgres):  # noqa: F811
    if VARIABLE in os.environ:
        pytest.skip("makes a second database")
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    name = f"{engine.url.database}_ascii"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0"))
    engine.dispose()
    _fill(open_storage(_config(tmp_path, postgres.rpartition("/")[0] + f"/{name}"), "s"), trials=1)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("study.db", "must be journal:///file, sqlite:///file, postgresql+psycopg://user@host/database; got 'study.db'"),
        ("sqlite:///", "must be journal:///file"),
        ("mysql+pymysql://u:s3cret@h/d", "must be journal:///file"),
        ("postgresql://u:s3cret@h/d", "name the driver: postgresql+psycopg://"),
        ("postgres://u:s3cret@h/d", "name the driver: postgresql+psycopg://"),
        ("postgresql+psycopg2://u:s3cret@h/d", "name the driver: postgresql+psycopg://"),
        ("postgresql+psycopg://u:s3cret@h:port/d", "expected postgresql+psycopg://user@host:port/database"),
        ("postgresql+psycopg://u:s3:cr/et@127.0.0.1:9/d", ""),
        ("postgresql+psycopg://u:s3cret@127.0.0.1:9/d", "start the server, or correct host and port"),
        ("postgresql+psycopg://127.0.0.1:9/d?user=u&password=s3cret", "start the server, or correct host and port"),
        ("postgresql+psycopg://u:s3cret@nobody.invalid/d", "correct the host's name"),
        ("journal:///blocked/a.journal", "name another file, in a folder that can be written"),
        ("sqlite:///blocked/a.db", "name another file, in a folder that can be written"),
        ("sqlite:///blocked", "file is not a database"),
        ("journal:///blocked", "blocked is no journal of Optuna; name another file"),
        ("journal:///photo", "photo is no journal of Optuna; name another file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line_without_the_password(tmp_path, url, words):
    (tmp_path / "blocked").write_text('a file\n{"op_code": 1}\n' + "text " * 100)
    (tmp_path / "photo").write_bytes(b"\x89PNG without any end of line")
    started = time.monotonic()
    refusal = _refusal(tmp_path, url)
    assert time.monotonic() - started < 5
    assert words in refusal
    assert "s3" not in refusal
    assert "cr" not in refusal.replace("createdb", "")
    assert (tmp_path / "photo").read_bytes() == b"\x89PNG without any end of line"


def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tracked_cls.tuning.storage._CONNECT_SECONDS", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        refusal = _refusal(tmp_path, f"postgresql+psycopg://u:s3cret@127.0.0.1:{silent.getsockname()[1]}/d")
    assert time.monotonic() - started < 5
    assert "start the server, or correct host and port" in refusal
    assert "s3cret" not in refusal


def test_a_wrong_database_and_a_wrong_password_are_named(tmp_path, postgres_server):  # noqa: F811
    url = sqlalchemy.make_url(postgres_server)
    refusal = _refusal(tmp_path, url.set(database="nowhere").render_as_string(hide_password=False))
    assert 'database "nowhere" does not exist; create it (createdb), or correct the name' in refusal
    assert PASSWORD not in refusal
    refusal = _refusal(tmp_path, url.set(password="wr0ng").render_as_string(hide_password=False))
    assert "check user and password" in refusal
    assert "wr0ng" not in refusal


def test_a_missing_driver_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'psycopg[binary]'" in _refusal(tmp_path, "postgresql+psycopg://u:s3cret@127.0.0.1:9/d")


def test_the_store_of_mlflow_is_no_place_for_a_study(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with engine.begin() as connection:
        for table in ("alembic_version", "experiments", "runs"):
            connection.execute(sqlalchemy.text(f"CREATE TABLE {table} (x TEXT)"))
    assert "holds the tables of another program (MLflow's?)" in _refusal(tmp_path, "sqlite:///mlflow.db")
    assert set(sqlalchemy.inspect(engine).get_table_names()) == {"alembic_version", "experiments", "runs"}


def test_a_password_is_masked_wherever_it_stands(tmp_path):
    assert masked("postgresql+psycopg://u:p@ss/w:rd@h:5432/d") == "postgresql+psycopg://u:***@h:5432/d"
    assert masked("postgresql+psycopg://h/d?user=u&password=secret&x=1") == "postgresql+psycopg://h/d?user=u&password=***&x=1"
    assert masked("postgresql+psycopg://u@h:5432/d") == "postgresql+psycopg://u@h:5432/d"
    assert "s3cret" not in dashboard_command(_config(tmp_path, "postgresql+psycopg://u:s3cret@h/d"), "s")


# ---- a journal after a loss of power ---------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    """A journal of three finished trials."""
    _fill(open_storage(_config(tmp_path), "s"))
    return tmp_path / "runs" / "studies" / "s.journal"


def test_a_torn_last_line_is_moved_aside_and_the_study_goes_on(tmp_path, journal, capsys):
    content = journal.read_bytes()
    *whole, last = content.splitlines(keepends=True)
    torn = last[: len(last) // 2]
    journal.write_bytes(b"".join(whole) + torn)

    study = _fill(open_storage(_config(tmp_path), "s"), trials=2)

    assert "the last line of" in capsys.readouterr().out
    assert journal.with_name("s.journal.torn-1").read_bytes() == torn
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    assert study.trials[2].state is TrialState.RUNNING, "what the torn line said is lost: its end"
    again = optuna.load_study(storage=open_storage(_config(tmp_path), "s"), study_name="s")
    assert len(again.trials) == 5
    assert capsys.readouterr().out == "", "mended for good"


def test_a_second_torn_line_is_kept_beside_the_first(tmp_path, journal):
    for number in (1, 2):
        with journal.open("ab") as file:
            file.write(b'{"op_code":%d' % number)
        open_storage(_config(tmp_path), "s")
    assert [journal.with_name(f"s.journal.torn-{n}").read_bytes() for n in (1, 2)] == [b'{"op_code":1', b'{"op_code":2']


def test_a_first_line_that_is_torn_leaves_an_empty_journal(tmp_path, journal):
    journal.write_bytes(journal.read_bytes()[:20])
    assert len(_fill(open_storage(_config(tmp_path), "s"), trials=1).trials) == 1


def test_a_torn_line_is_mended_while_others_write(tmp_path, journal):
    """Readers that are at work have not counted it; a writer's next line stands on its own."""
    other = open_storage(_config(tmp_path), "s")
    study = optuna.load_study(storage=other, study_name="s")
    assert len(study.trials) == 3
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    open_storage(_config(tmp_path), "s")
    study.optimize(lambda trial: 1.0, n_trials=1)
    assert len(optuna.load_study(storage=open_storage(_config(tmp_path), "s"), study_name="s").trials) == 4


@pytest.mark.parametrize("end", [b"", b"\n", b'\n{"op_code":4}\n'], ids=["torn", "last", "amid"])
def test_damaged_lines_are_named_and_nothing_is_touched(tmp_path, journal, end):
    lines = len(journal.read_bytes().splitlines())
    with journal.open("ab") as file:
        file.write(b"\0" * 40 + b"\n" + b"\0" * 40 + b'{"op_code":4}' + end)
    damaged = journal.read_bytes()
    with pytest.raises(UserError, match=rf"line {lines + 1} of .*s\.journal is damaged; keep a copy"):
        open_storage(_config(tmp_path), "s")
    assert journal.read_bytes() == damaged


def test_a_journal_is_mended_under_optunas_own_lock(tmp_path, journal):
    """Else a line that a writer has begun could be cut off."""
    lock = journal.with_name("s.journal.lock")
    lock.symlink_to(journal)
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])
    opener = Thread(target=open_storage, args=(_config(tmp_path), "s"), daemon=True)
    opener.start()
    opener.join(0.5)
    assert opener.is_alive(), "waits for the writer"
    with journal.open("ab") as file:
        file.write(content[-20:])
    lock.unlink()
    opener.join(10)
    assert not opener.is_alive()
    assert journal.read_bytes() == content


def test_a_journal_whose_lines_do_not_follow_from_each_other_is_refused(tmp_path, journal):
    with journal.open("ab") as file:
        file.write(b'{"op_code":4}\n')  # a trial of no study
    with pytest.raises(UserError, match="do not follow from each other"):
        open_storage(_config(tmp_path), "s")


# ---- trials of a machine that is gone --------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_stale_trial_is_made_anew_without_its_owner_until_it_was_killed_too_often(restarts):
    study = optuna.create_study()
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.report(0.5, 1)
    for key, value in {"owner": "far 1 1", "mlflow_run_id": "r", "restarts": restarts}.items():
        trial.set_user_attr(key, value)
    study.tell(trial, state=TrialState.FAIL)

    Revival(max_restarts=2)(study, study.trials[0])

    clone = study.trials[1]
    assert clone.params == trial.params
    assert clone.intermediate_values == {1: 0.5}
    assert clone.system_attrs["failed_trial"] == 0
    assert clone.system_attrs["retry_history"] == [0]
    attrs = {"mlflow_run_id": "r", "restarts": restarts + 1}
    if restarts < 2:
        assert (clone.state, clone.user_attrs) == (TrialState.WAITING, attrs)
    else:
        assert (clone.state, clone.user_attrs) == (TrialState.FAIL, attrs | {"error": "its process was killed 3 times"})


@pytest.mark.parametrize("mark", ["error", "void"])
def test_a_stale_trial_that_had_failed_already_is_not_made_anew(mark):
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr(mark, "x")
    study.tell(trial, state=TrialState.FAIL)
    Revival(max_restarts=2)(study, study.trials[0])
    assert len(study.trials) == 1
