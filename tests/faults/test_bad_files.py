"""No file ends, holds up or falsifies the work: one function reads it everywhere, in processes with limits."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import bad_files
from tests.faults import corpus, harmful
from tracked_cls.data.decode import RejectedImage
from tracked_cls.data.decoders import _GIVEN_UP, Decoders, Limits, _Died
from tracked_cls.data.ingest import Plan, Rejection, digest_of_pixels, ingest_files
from tracked_cls.data.intake import altered_files, take_in
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.data.reading import read
from tracked_cls.data.sources import Sample, Source
from tracked_cls.errors import UserError
from tracked_cls.processes import Process
from tracked_cls.serving.classifier import Classifier

READ = partial(read, frames=None, geometry=None, digests=False)
PLAN = Plan(image_size=4, channels=None, fit="crop", interpolation="nearest", max_pixels=64_000_000)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
KINDS = corpus.REJECTED | corpus.ACCEPTED


class Files(Source):
    """The files of a folder, all of them of one class."""

    def __init__(self, root, names):
        super().__init__("files", "print")
        self.root, self.names = root, names

    def _list(self):
        return [Sample(name, (f"class {index % 2}",)) for index, name in enumerate(self.names)]

    def path_of(self, sample):
        return f"{self.root}/{sample.path}"

    def array(self, sample):
        raise AssertionError

    def stamp(self, sample):
        return None


def take(root, names, **options):
    return take_in(Files(root, names), PLAN, workers=1, keep=lambda _: None, **options)


def by_path(taken):
    return {sample.path: outcome for sample, outcome in taken.outcomes}


# ---- the corpus, three ways ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a file of every kind, and one outside that a link leads to."""
    folder = tmp_path_factory.mktemp("corpus")
    for title, kind in KINDS.items():
        (folder / kind.name.format(title)).write_bytes(kind.content)
    return folder


@pytest.fixture(scope="module")
def prepared(root):
    """What `prepare` makes of each kind."""
    return by_path(take(root, [kind.name.format(title) for title, kind in KINDS.items()]))


@pytest.fixture(scope="module")
def predicted(root):
    """What `predict` reads of each kind."""
    paths = [f"{root}/{kind.name.format(title)}" for title, kind in KINDS.items()]
    with Decoders(READ, 1, Limits()) as decoders:
        return dict(zip(KINDS, (getattr(each, "pixels", each) for each in decoders.submit(paths)()), strict=True))


def served(content):
    """Return what a served model reads of an image's bytes."""
    asked = SimpleNamespace(preprocess=SimpleNamespace(frames=None))
    try:
        return Classifier.read(asked, content)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)


def test_the_corpus_is_large():
    assert len(corpus.REJECTED) + len(corpus.ACCEPTED) >= 60


@pytest.mark.parametrize("title", corpus.REJECTED)
def test_a_bad_file_has_one_code_in_prepare_predict_and_serving(title, prepared, predicted):
    kind = corpus.REJECTED[title]
    outcomes = prepared[kind.name.format(title)], predicted[title], served(kind.content)
    assert [outcome.code for outcome in outcomes] == [kind.wanted] * 3
    assert len(set(outcomes)) == 1


@pytest.mark.parametrize("title", corpus.ACCEPTED)
def test_an_odd_file_has_the_same_pixels_in_prepare_predict_and_serving(title, prepared, predicted):
    kind = corpus.ACCEPTED[title]
    record, pixels = prepared[kind.name.format(title)], predicted[title]
    wanted = kind.wanted if kind.wanted.ndim == 3 else kind.wanted[:, :, None]
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).max() <= kind.within
    np.testing.assert_array_equal(served(kind.content), pixels)
    assert record.pixel_digest == digest_of_pixels(pixels)


@pytest.mark.parametrize("title", corpus.ACCEPTED)
def test_what_was_done_to_a_file_is_noted(title, prepared):
    kind = corpus.ACCEPTED[title]
    changes = prepared[kind.name.format(title)].changes
    assert kind.note in changes if kind.note else set(changes) <= {"transparency_on_white", "palette_or_cmyk_to_rgb"}


def test_what_is_no_file_is_refused_without_opening_it(tmp_path):
    codes = corpus.put_special(tmp_path)
    started = time.monotonic()
    assert {path: code for path, code, _ in take(tmp_path, list(codes)).rejected} == codes
    found = READ([f"{tmp_path}/{name}" for name in codes])
    assert [each.code for each in found] == list(codes.values())
    assert time.monotonic() - started < 20, "nothing waited for a pipe"


def test_links_are_followed_also_out_of_the_folder(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    names = corpus.put_links(tmp_path / "in", tmp_path / "out")
    assert {record.sha256 for record in by_path(take(tmp_path / "in", names)).values()} == {
        by_path(take(tmp_path / "in", names))["original.png"].sha256
    }


def test_a_name_that_is_not_utf8_is_refused_by_prepare_and_read_by_predict(tmp_path):
    name = os.fsdecode(b"\xff.png")
    (tmp_path / name).write_bytes(corpus.PNG)
    (tmp_path / "b.png").write_bytes(corpus.PNG)
    assert [entry[:2] for entry in take(tmp_path, [name, "b.png"]).rejected] == [("\\udcff.png", "E_NAME")]
    with Decoders(READ, 1, Limits()) as decoders:
        [found] = decoders.submit([f"{tmp_path}/{name}"])()
    np.testing.assert_array_equal(found.pixels, corpus.COLOUR)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(corpus.PNG)
    (tmp_path / "a.png").chmod(0)
    assert [each.code for each in ingest_files([f"{tmp_path}/a.png"], PLAN)] == ["E_PERMISSION"]


@pytest.mark.parametrize(("least", "code"), [(20, None), (21, "E_TOO_SMALL")])
def test_a_side_below_the_least_is_refused(tmp_path, least, code):
    (tmp_path / "a.png").write_bytes(corpus.PNG)  # 30 x 20
    [outcome] = ingest_files([f"{tmp_path}/a.png"], replace(PLAN, min_side=least))
    assert getattr(outcome, "code", None) == code


# ---- limits, and processes that die ----------------------------------------------------------------------------------


def decoders(work=harmful.harmful, num=1, seconds=30.0, memory_bytes=None):
    return Decoders(work, num, Limits(seconds, memory_bytes))


def what_became_of(names, folder="/nowhere", **limits):
    with decoders(**limits) as processes:
        outcomes = processes.submit([f"{folder}/{name}" for name in names])()
    return [outcome if isinstance(outcome, str) else outcome.code for outcome in outcomes]


DEADLY = {
    "SIGSEGV": ("E_CRASHED", {}),
    "SIGKILL": ("E_CRASHED", {}),
    "exit": ("E_CRASHED", {}),
    "compute": ("E_TIMEOUT", {"seconds": 0.2}),
    "sleep": ("E_TIMEOUT", {"seconds": 0.1}),
    "stop": ("E_TIMEOUT", {"seconds": 0.1}),
    "hoard": ("E_MEMORY", {"memory_bytes": 200_000_000}),
}


@pytest.mark.parametrize(("name", "code", "limits"), [(name, *rest) for name, rest in DEADLY.items()], ids=DEADLY)
def test_a_file_that_ends_or_holds_up_its_process_costs_itself_only(monkeypatch, name, code, limits):
    monkeypatch.setattr("tracked_cls.data.decoders._GRACE_SECONDS", 0.5)
    assert what_became_of(["a", name, "b", "c"], **limits) == ["a", code, "b", "c"]


def test_the_kernel_ends_what_takes_too_long_and_what_it_cannot_end_is_given_up(monkeypatch):
    monkeypatch.setattr("tracked_cls.data.decoders._GRACE_SECONDS", 5)
    ends = {}
    for name in ("compute", "sleep", "stop"):
        with decoders(seconds=0.1) as processes, pytest.raises(_Died) as died:
            processes._process().ask([f"/nowhere/{name}"])
        ends[name] = died.value.exit_code
    assert ends["compute"] in (-signal.SIGPROF, -signal.SIGALRM)
    assert ends["sleep"] == -signal.SIGALRM
    assert ends["stop"] == _GIVEN_UP


def test_several_deadly_files_in_several_processes_leave_the_others_in_order():
    names = [f"{index}" if index % 4 else "exit" for index in range(13)]
    with decoders(num=2) as processes:
        waiting = [processes.submit([f"/nowhere/{name}" for name in names[start : start + 4]]) for start in range(0, 13, 4)]
        found = [outcome for wait in waiting for outcome in wait()]
    assert [each if isinstance(each, str) else each.code for each in found] == [
        "E_CRASHED" if name == "exit" else name for name in names
    ]


def test_a_file_is_judged_by_a_process_that_had_no_other(tmp_path):
    assert what_became_of(["a", "once", "b"], tmp_path) == ["a", "once", "b"], "killed from outside, it is tried again"


def test_the_reason_names_the_limit_and_the_option():
    with decoders(seconds=0.1) as processes:
        [late] = processes.submit(["/nowhere/compute"])()
    assert late.reason == "decoding takes more than 0.1 s (data.decode_seconds)"
    with decoders() as processes:
        [crashed] = processes.submit(["/nowhere/SIGKILL"])()
    assert crashed.reason == "decoding it ended the process by SIGKILL; perhaps the machine ran out of memory"


def test_a_mistake_of_ours_is_no_fault_of_a_file():
    with decoders() as processes, pytest.raises(ZeroDivisionError):
        processes.submit(["/nowhere/a", "/nowhere/mistake"])()


def test_time_runs_for_each_file_anew():
    with decoders(harmful.dawdling, seconds=0.1) as processes:
        assert processes.submit([f"/nowhere/{index}" for index in range(20)])() == ["done"] * 20  # 1.4 s by the clock in all


def test_leaving_does_not_wait_for_a_file_that_hangs():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), decoders(seconds=None) as processes:
        processes.submit(["/nowhere/sleep"])
        processes.submit(["/nowhere/a"])
        time.sleep(0.5)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decoders")]


LARGE = corpus.png(7900, 7900, colour=2, rows=bytes(7900 * 23_701))  # 187 MB of pixels in 180 kB


@pytest.mark.parametrize(("limits", "code"), [(Limits(0.3, None), "E_TIMEOUT"), (Limits(None, 150_000_000), "E_MEMORY")])
def test_a_true_image_beyond_a_limit_is_rejected_by_prepare_and_predict(tmp_path, limits, code):
    (tmp_path / "large.png").write_bytes(LARGE)
    (tmp_path / "small.png").write_bytes(corpus.PNG)
    taken = take(tmp_path, ["large.png", "small.png"], limits=limits)
    assert [entry[:2] for entry in taken.rejected] == [("large.png", code)]
    assert len(taken.samples) == 1
    with Decoders(READ, 1, limits) as processes:
        large, small = processes.submit([f"{tmp_path}/large.png", f"{tmp_path}/small.png"])()
    assert large.code == code
    np.testing.assert_array_equal(small.pixels, corpus.COLOUR)


def test_memory_that_neighbours_hold_is_no_fault_of_a_file(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.bmp").write_bytes(corpus.encode(np.zeros((3000, 3000, 3), np.uint8), "BMP"))  # 27 MB each
    plan = replace(PLAN, keep="files")
    with Decoders(partial(ingest_files, plan=plan), 1, Limits(None, 130_000_000)) as processes:
        outcomes = processes.submit([f"{tmp_path}/{name}.bmp" for name in "abcd"])()
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None] * 4


def test_a_process_killed_from_outside_in_the_middle_loses_nothing(tmp_path):
    for index in range(60):
        (tmp_path / f"{index}.png").write_bytes(corpus.PNG)
    names = [f"{index}.png" for index in range(60)]
    with Decoders(partial(harmful.slow_ingest, plan=PLAN), 2, Limits()) as processes:
        waiting = [processes.submit([f"{tmp_path}/{name}" for name in names[start : start + 20]]) for start in (0, 20, 40)]
        time.sleep(0.3)
        for process in list(processes._running):
            os.kill(process._process.pid, signal.SIGKILL)
        outcomes = [outcome for wait in waiting for outcome in wait()]
    assert {getattr(outcome, "code", None) for outcome in outcomes} == {None}
    assert len(outcomes) == 60


# ---- what has changed since --------------------------------------------------------------------------------------------


def test_files_that_changed_since_they_were_prepared_are_named(tmp_path):
    for name in ("same.bmp", "flipped.bmp", "gone.bmp", "now a folder.bmp"):
        (tmp_path / name).write_bytes(corpus.BMP)
    source = Files(tmp_path, ["same.bmp", "flipped.bmp", "gone.bmp", "now a folder.bmp"])
    digests = {path: record.sha256 for path, record in by_path(take(tmp_path, source.names)).items()}
    status = (tmp_path / "flipped.bmp").stat()
    (tmp_path / "flipped.bmp").write_bytes(corpus.spoilt(corpus.BMP, 500))
    os.utime(tmp_path / "flipped.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
    (tmp_path / "gone.bmp").unlink()
    (tmp_path / "now a folder.bmp").unlink()
    (tmp_path / "now a folder.bmp").mkdir()
    found = dict(altered_files(source, digests | {"unlisted.bmp": ""}, workers=1))
    assert found.pop("flipped.bmp") == "its content has changed"
    assert found.pop("unlisted.bmp") == "no longer listed"
    assert found == {"gone.bmp": "E_MISSING: the file does not exist", "now a folder.bmp": "its content has changed"}


def test_damaged_files_are_rejected_or_decoded_as_pillow_does(tmp_path):
    for name, tally in bad_files.run(60, seed=1, folder=tmp_path).items():
        assert tally.codes.total() + tally.as_pillow == tally.num == 10, name
        assert tally.seen_after == tally.altered_after == 10, name
        assert tally.differently == tally.crashes == tally.hangs == 0, name
        assert set(tally.codes) <= {"E_CORRUPT", "E_TRUNCATED", "E_NOT_IMAGE", "E_EMPTY", "E_TOO_LARGE", "E_MODE"}


# ---- predictions -------------------------------------------------------------------------------------------------------


class Brightness:
    """Stands for a classifier: dark or bright, by the mean of the pixels."""

    preprocess = Preprocess(Geometry(8, 3), (0.0,) * 3, (1.0,) * 3)

    classes = ("dark", "bright")

    def activate(self, logits):
        return np.stack([1 - logits[:, 0], logits[:, 0]], axis=1)

    def label(self, row):
        return self.classes[int(row.argmax())]

    def confidence(self, row):
        return row.max()


def predict(folder, output, **options):
    from tracked_cls.config import PredictConfig
    from tracked_cls.prediction import labelling
    from tracked_cls.prediction import output as outputs
    from tracked_cls.prediction.engines import Scored

    def engine(seen):
        return Scored(seen[:, 0].mean(axis=(1, 2, 3))[:, None] / 255)

    cfg = PredictConfig(predict={"input": str(folder), "output": str(output), "batch_size": 7, "workers": 1, **options})
    written = outputs.output_of(cfg, output)
    told, _ = labelling.Job(cfg, Brightness(), engine, written, {}, {}).write(labelling.source_of(cfg))
    outputs.keep(written)
    return told.labels, told.rejected


@pytest.fixture
def mixed(tmp_path):
    """A folder of 12 good images, 3 bad ones and a pipe."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.png").write_bytes(corpus.encode(np.full((9, 9), index * 20, np.uint8)))
    for title in ("half a PNG", "a PNG of 50,000 x 50,000", "empty"):
        (folder / f"{title}.png").write_bytes(corpus.REJECTED[title].content)
    os.mkfifo(folder / "pipe.png")
    return folder


def test_bad_files_are_listed_and_end_no_prediction(mixed, tmp_path):
    labels, rejected = predict(mixed, tmp_path / "out.csv")
    assert labels.total() == 12
    assert {entry.code for entry in rejected} == {"E_TRUNCATED", "E_TOO_LARGE", "E_EMPTY", "E_NOT_FILE"}
    assert len((tmp_path / "out.rejected.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("point", ["predict.mid_rows", "predict.before_rename"])
def test_an_interrupted_prediction_leaves_nothing_half_written_and_the_next_one_is_the_same(
    mixed, tmp_path, monkeypatch, point
):
    predict(mixed, tmp_path / "reference.csv")

    def interrupt(name):
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tracked_cls.failpoints.reach", interrupt)
        predict(mixed, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert not [path for path in tmp_path.glob(".tmp-*") if path.suffix != ".sha256"]
    predict(mixed, tmp_path / "out.csv")
    for ending in (".csv", ".rejected.csv"):
        assert (tmp_path / f"out{ending}").read_bytes() == (tmp_path / f"reference{ending}").read_bytes()


def test_what_killed_predictions_left_is_removed_and_what_others_write_is_not(mixed, tmp_path):
    me = Process.me()
    left = [f".tmp-out.csv-{me.pid}-1@{me.host}", f".tmp-out.rejected.csv-999999999-7@{me.host}"]
    others = [f".tmp-out.csv.other-{me.mark}", f".tmp-other.csv-{me.pid}-1@{me.host}"]
    others += [".tmp-out.csv-1-1@elsewhere", ".tmp-mine.csv"]
    for name in (*left, *others):
        (tmp_path / name).write_text("half")
    predict(mixed, tmp_path / "out.csv")
    assert {path.name for path in tmp_path.glob(".tmp-*")} == set(others)


def test_the_rejected_of_a_killed_prediction_stand_in_no_way_but_other_files_do(mixed, tmp_path):
    (tmp_path / "out.rejected.csv").write_text("my notes\n")
    with pytest.raises(UserError, match=r"out\.rejected\.csv' exists"):
        predict(mixed, tmp_path / "out.csv")
    (tmp_path / "out.rejected.csv").write_text("image_id,code,reason\nold")
    predict(mixed, tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"out\.csv' exists"):
        predict(mixed, tmp_path / "out.csv")


def test_the_limits_of_a_prediction_are_its_own(mixed, tmp_path):
    (mixed / "large.png").write_bytes(LARGE)
    _, rejected = predict(mixed, tmp_path / "out.csv", decode_memory_bytes=100_000_000)
    [reason] = [entry.reason for entry in rejected if entry.image_id == "large.png"]
    assert "100,000,000 bytes (predict.decode_memory_bytes)" in reason
