"""The files of `deploy/` by themselves: settings that are refused in one line, and pins and names that agree."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def start(folder, *words, python=sys.executable, **settings):
    """Start the server's script with settings by their names after TRACKING_."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "TRACKING_FOLDER": str(folder / "server")}
    environment |= {f"TRACKING_{key}": value for key, value in settings.items()}
    line = ["bash", DEPLOY / "server.sh", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def nobody():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"postgresql+psycopg://mlflow@127.0.0.1:{held.getsockname()[1]}/mlflow"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"DATABASE": "postgresql+psycopg://mlflow:geheim@db/mlflow"}, "TRACKING_DATABASE holds a password"),
        ({"DATABASE": "postgresql+psycopg://mlflow@db/mlflow?password=geheim"}, "holds a password after its ?"),
        ({"DATABASE": "postgresql+psycopg://mlflow@db/mlflow?sslcert=a&sslpassword=geheim"}, "holds a password after its ?"),
        ({"DATABASE": "sqlite:///mlflow.db"}, "TRACKING_DATABASE must be postgresql+psycopg://"),
        ({"HOST": "0.0.0.0"}, "TRACKING_HOST=0.0.0.0 is open to others"),
        ({"DATABASE": nobody()}, "Connection refused"),
    ],
    ids=[
        "a password in the address",
        "a password among its options",
        "a key's password",
        "another database",
        "open to others",
        "a database that is away",
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_one_line(tmp_path, settings, named):
    done = start(tmp_path, **settings)

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert named in line
    assert "geheim" not in line


def test_an_empty_password_is_none(tmp_path):
    (tmp_path / "server" / "secrets").mkdir(parents=True)
    (tmp_path / "server" / "secrets" / "database").touch()

    done = start(tmp_path)

    assert done.returncode == 2
    assert f"{tmp_path}/server/secrets/database is empty" in done.stderr


# ---- the compose file ------------------------------------------------------------------------------------------------


def test_the_compose_file_is_seen_on_loopback_only_unless_told():
    published = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}

    assert published == {"database": [], "server": ["${TRACKING_BIND:-127.0.0.1}:${TRACKING_PORT:-5000}:5000"]}


# as Python does for the script: it makes secrets, finds the database, and is told how to be the server
PYTHON = """#!/usr/bin/env bash
case $1 in
  -c) echo secret ;;
  -m) printf '%s\\n' "$@" ;;
esac
"""


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, "127.0.0.1:*,localhost:*"),
        ({"TRACKING_ALLOWED_HOSTS": "localhost:*"}, "localhost:*"),
        ({"TRACKING_BIND": "0.0.0.0", "TRACKING_ALLOWED_HOSTS": "tracking.example:*"}, "tracking.example:*"),
    ],
    ids=["on loopback", "on loopback, by a name", "open to others, by a name"],
)
def test_the_server_of_the_compose_file_answers_to_the_names_it_may_be_called_by(tmp_path, given, hosts):
    done = start_in_a_container(tmp_path, given)

    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert words[words.index("--allowed-hosts") + 1] == hosts


def test_the_server_of_the_compose_file_says_so_where_others_would_all_be_refused(tmp_path):
    done = start_in_a_container(tmp_path, {"TRACKING_BIND": "0.0.0.0"})

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: TRACKING_BIND=0.0.0.0 is open to others: say by TRACKING_ALLOWED_HOSTS=")


def start_in_a_container(folder, given):
    """Start the script with what the compose file hands on of the variables that somebody has given."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    own = {"FOLDER": str(folder / "server"), "SECRETS": str(folder / "server" / "secrets"), "ARTIFACTS": str(folder)}
    return start(folder, python=python, **{**_in_the_container(given), **own})


def _in_the_container(given):
    """Return the settings that the compose file hands on, by their names after TRACKING_."""

    def of(match):
        return given.get(match[1]) or match[2]

    texts = COMPOSE["services"]["server"]["environment"]
    values = {name: re.sub(r"\$\{([A-Z_0-9]+):-([^}]*)\}", of, text) for name, text in texts.items()}
    return {name.removeprefix("TRACKING_"): value for name, value in values.items() if name.startswith("TRACKING_")}


def test_the_compose_file_holds_no_secret_but_the_names_of_their_files():
    given = {key: value for service in COMPOSE["services"].values() for key, value in service["environment"].items()}
    secret = {key: value for key, value in given.items() if re.search("PASSWORD|SECRET|CREDENTIALS|KEY", key)}

    assert set(secret) == {"POSTGRES_PASSWORD_FILE", "TRACKING_SECRETS", "AWS_SHARED_CREDENTIALS_FILE"}
    assert all(value.startswith("/run/secrets") for value in secret.values())
    assert {name for service in COMPOSE["services"].values() for name in service["secrets"]} == set(COMPOSE["secrets"])
    assert all(secret == {"file": f"./secrets/{name}"} for name, secret in COMPOSE["secrets"].items())


def test_the_compose_file_and_the_readme_name_settings_that_the_script_reads():
    read = set(re.findall(r"TRACKING_[A-Z_]+", (DEPLOY / "server.sh").read_text()))
    given = {name for name in COMPOSE["services"]["server"]["environment"] if name.startswith("TRACKING_")}
    table = (DEPLOY / "README.md").read_text().split("| variable |")[1].split("\n\n")[0]
    told = set(re.findall(r"`(TRACKING_[A-Z_]+)`", table))

    assert given <= read
    assert told == read


def test_the_server_waits_for_its_database_and_both_say_how_they_are():
    services = COMPOSE["services"]

    assert services["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert all({"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]) for service in services.values())
    assert COMPOSE["services"]["server"]["environment"]["TRACKING_DATABASE"].endswith("@database:5432/mlflow")


# ---- pins ------------------------------------------------------------------------------------------------------------


def pins(path):
    lines = (line for line in path.read_text().splitlines() if "==" in line)
    return {name.removesuffix("[auth]"): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_server_has_the_versions_of_those_who_talk_to_it():
    server, project = pins(DEPLOY / "requirements.txt"), pins(ROOT / "requirements.txt")

    assert {name: project[name] for name in ("mlflow", "psycopg", "psycopg-binary")}.items() <= server.items()
    assert pins(ROOT / "requirements-dev.txt")["mlflow"] == project["mlflow"]


def test_the_images_copy_what_is_there():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)

    assert set(re.findall(r"AS (\w+)", text)) == {"base", COMPOSE["services"]["server"]["build"]["target"], "job"}
    assert copied
    assert all((ROOT / name).exists() for name in copied)
