"""`report` reads runs from the store, writes the page to a file and into a run of its own, and names what it cannot do."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT, do
from tests.report_data import Page, facts, put_metrics, put_pictures, put_predictions
from tracked_cls.config import ReportConfig, load
from tracked_cls.errors import UserError
from tracked_cls.report import publication

PARAMS = ["--params", str(ROOT / "params" / "train.yaml")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def store(home):
    return ["--tracking.uri", f"sqlite:///{home / 'mlflow.db'}"]


@pytest.fixture(scope="module")
def client(store):
    from tracked_cls import tracking

    with tracking.open_tracker(load(ReportConfig, [*PARAMS, *store, "--runs", "a" * 32]).tracking):
        return MlflowClient(store[1])


@pytest.fixture(scope="module")
def make(client, tmp_path_factory):
    """Make a run in the store, with artifacts as a training leaves them."""

    def make_run(kind="train", wrong=0, name="a run", **tags):
        run_id = client.create_run("0", run_name=name, tags={"kind": kind, **tags} if kind else tags).info.run_id
        folder = facts(tmp_path_factory.mktemp("artifacts")).folder
        put_metrics(folder, {"accuracy": {"value": 1 - wrong / 500, "low": 0.5, "high": 1.0}})
        put_pictures(folder, "test_confusion.png")
        put_predictions(folder, [place >= wrong for place in range(500)])
        client.log_artifacts(run_id, str(folder))
        client.log_param(run_id, "epochs", 3 + wrong)
        for epoch in (1, 2):
            client.log_metric(run_id, "val_loss", 1 / epoch, step=epoch)
        client.set_terminated(run_id)
        return run_id

    return make_run


@pytest.fixture(scope="module")
def two(make):
    return make(wrong=100, name="<weak>"), make("evaluate", wrong=20)


def published(store, *words):
    return do(publication.run, ReportConfig, [*PARAMS, *store, *words])


def test_several_runs_are_compared_in_a_page_and_a_run(client, store, home, two):
    done = published(store, "--runs", f"runs:/{two[0]}, {two[1]}")
    text = done.output.read_text(encoding="utf-8")
    assert done.output.parent == home / "reports"
    assert "B is better than A on the same 500 test images: +16.00 percentage points" in text
    assert len(Page(text).images) == 2
    run = client.get_run(done.run_id)
    assert (run.data.tags["kind"], run.info.status) == ("report", "FINISHED")
    assert {file.path for file in client.list_artifacts(done.run_id)} >= {"report.html", "plots", "config.yaml"}
    assert {file.path for file in client.list_artifacts(done.run_id, "plots")} == {"plots/curves.png", "plots/differences.png"}
    assert publication.lines(done)[1] == f"  page: {done.output}"


def test_one_run_gets_its_own_page_anew(store, home, two):
    done = published(store, "--runs", two[0], "--output", "mine/page.html")
    found = Page((home / "mine" / "page.html").read_text(encoding="utf-8"))
    assert done.output == home / "mine" / "page.html"
    assert found.headings[0] == "<weak>"
    assert "80.00 %" in found.text
    assert len(found.images) == 1


def test_a_study_gets_its_own_page(make, store):
    done = published(store, "--runs", make("study", name="tune digits"))
    assert "No trial has ended yet." in done.output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "tags", "alone", "words"),
    [
        (
            "study",
            {"best.run": "the best"},
            False,
            "is of kind study; compare runs of one model each, like its winner the best",
        ),
        ("prepare", {}, True, "is of kind prepare; its report.html is among its artifacts"),
        ("predict", {}, True, "is of kind predict; give runs of train, evaluate, trial, fold or, alone, of a study"),
        (None, {}, True, "is none of this project's"),
    ],
    ids=["study", "prepare", "predict", "strange"],
)
def test_a_run_of_another_kind_is_refused_by_name(make, store, two, kind, tags, alone, words):
    run_id = make(kind, **tags)
    with pytest.raises(UserError) as refused:
        published(store, "--runs", run_id if alone else f"{two[0]},{run_id}")
    assert str(refused.value).startswith(f"report.runs: run {run_id} ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_that_does_not_exist_or_was_deleted_is_refused(client, make, store, two):
    with pytest.raises(UserError, match=f"report.runs: run {'f' * 32} cannot be read from sqlite:"):
        published(store, "--runs", f"{two[0]},{'f' * 32}")
    gone = make()
    client.delete_run(gone)
    with pytest.raises(UserError, match=f"run {gone} was deleted; restore it, or leave it out"):
        published(store, "--runs", gone)


def test_an_output_is_replaced_only_when_asked(store, home, two, tmp_path):
    (home / "there.html").write_text("mine")
    with pytest.raises(UserError, match="there.html' exists; set report.overwrite=true to replace it"):
        published(store, "--runs", two[0], "--output", "there.html")
    assert (home / "there.html").read_text() == "mine"
    published(store, "--runs", two[0], "--output", "there.html", "--overwrite")
    assert "<weak>" not in (home / "there.html").read_text()
    with pytest.raises(UserError, match="is a folder; name an HTML file"):
        published(store, "--runs", two[0], "--output", str(tmp_path))
    with pytest.raises(UserError, match=r"report.output: .* cannot be written"):
        published(store, "--runs", two[0], "--output", "there.html/page.html")


def test_a_file_that_cannot_be_fetched_costs_its_part_only(store, make, client):
    run_id = make(wrong=5)
    folder = Path(unquote(urlparse(client.get_run(run_id).info.artifact_uri).path))
    (folder / "tables" / "test_metrics.json").write_text("{")
    text = published(store, "--runs", run_id).output.read_text(encoding="utf-8")
    assert "test_metrics.json: not valid JSON" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "report.runs is required: ids of runs, as mlflow ui shows them"),
        (["--runs", "abc"], "report.runs: 'abc' is no id of a run: 32 hex digits"),
        (["--runs", f"{'a' * 32},"], "report.runs: '' is no id of a run"),
        (["--runs", f"{'a' * 32},runs:/{'a' * 32}"], f"report.runs names run {'a' * 32} twice"),
        (["--runs", ",".join(f"{place:032x}" for place in range(27))], "report.runs must be at most 26 runs, got 27"),
    ],
    ids=["none", "short", "comma", "twice", "many"],
)
def test_a_mistake_is_named_before_anything_is_opened(words, message):
    with pytest.raises(UserError) as refused:
        load(ReportConfig, [*PARAMS, *words])
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("text", ["{0},{1}", "[{0}, {1}]", "runs:/{0}, {1}", '["{0}", "runs:/{1}"]'])
def test_runs_may_be_written_in_several_ways(text):
    ids = ["ab" * 16, "12345678" * 4]
    assert load(ReportConfig, [*PARAMS, "--runs", text.format(*ids)]).report.runs == ids
