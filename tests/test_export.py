"""A model as files that need neither MLflow nor this project: what is in them, and that they answer like the model."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import PARAMS, ROOT, do
from export_data import description, packed, shape

from tracked_cls import assessment, delivery, export, host, registry, weights
from tracked_cls.config import ExportConfig, load
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.errors import UserError
from tracked_cls.export import agreement, evidence, formats, place, program
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.packaging import EXPORTED_WEIGHTS, Bundle, local_bundle

FILES = {"MODEL_CARD.md", "SHA256SUMS", "config.json", "meta.json", "model.onnx", "model.pt2", "model.safetensors"}


def ask_here(path, inputs):
    """Ask a .pt2 file in this process: starting another one takes seconds."""
    answers = path.with_name("answers.npz")
    np.save(path.with_name("images.npy"), inputs)
    batches = [f"{size}:{agreement._count(inputs, size)}" for size in agreement.BATCHES]
    program.main(str(path), str(path.with_name("images.npy")), str(answers), *batches)
    with np.load(answers) as file:
        return {size: file[str(size)] for size in agreement.BATCHES}


@pytest.fixture(scope="module")
def exported(trained, store, tmp_path_factory):
    """The champion of the digits, exported as a user does it."""
    output = tmp_path_factory.mktemp("export") / "digits"
    return do(export.run, ExportConfig, [*PARAMS, *store, "--output", str(output)])


@pytest.fixture
def quick(monkeypatch):
    """Exports that are asked in this process."""
    monkeypatch.setattr(agreement, "_ask_apart", ask_here)


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the export, to spoil."""
    return shutil.copytree(exported.folder, tmp_path / "copy")


def again(trained, store, output, *words):
    return do(export.run, ExportConfig, [*PARAMS, *store, "--output", str(output), "--formats", "safetensors", *words])


# ---- what is written -------------------------------------------------------------------------------------------------


def test_an_export_holds_every_format_with_its_digests(exported):
    assert {path.name for path in exported.folder.iterdir()} == FILES
    assert exported.size_by_file == {path.name: path.stat().st_size for path in exported.folder.iterdir()}
    lines = (exported.folder / "SHA256SUMS").read_text().splitlines()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in exported.folder.iterdir()}
    named = sorted(FILES - {"SHA256SUMS", "MODEL_CARD.md"})
    assert lines == [*(f"{found[name]}  {name}" for name in named), f"# {found['MODEL_CARD.md']}  MODEL_CARD.md"]
    assert [path.name for path in exported.folder.parent.iterdir()] == ["digits"], "nothing hidden is left"


def test_every_file_agrees_with_the_model_on_all_test_images(exported, trained):
    comparison, num_test = exported.comparison, len(trained.prepared.manifest.indices("test"))
    assert comparison.num_golden == 64
    assert comparison.num_images == num_test, "the prepared data are on this machine, and hold the 64"
    assert [one.format for one in comparison.formats] == ["onnx", "pt2", "safetensors"]
    for one in comparison.formats:
        assert one.probability < 1e-5
        assert one.logits < 1e-4
        assert one.relabelled == 0
    assert comparison.evaluated < 1e-5


def test_the_run_says_what_was_exported_and_how_well_it_agrees(exported, client, trained):
    run = client.get_run(exported.run_id)
    version = registry.by_alias(client, "digits-classifier", "champion")
    assert run.info.status == "FINISHED"
    assert run.data.tags["kind"] == "export"
    assert run.data.tags["model"] == exported.model == version.uri
    assert run.data.tags["model.address"] == "models:/digits-classifier@champion"
    assert run.data.metrics["onnx_max_difference"] == exported.comparison.formats[0].probability
    assert {file.path for file in client.list_artifacts(exported.run_id)} >= {"MODEL_CARD.md", "config.yaml"}
    text = "\n".join(export.lines(exported))
    assert f"{exported.comparison.num_images} real images" in text
    assert all(name in text for name in FILES)
    assert f"-P model={exported.folder} -P input=" in exported.next_command


def test_the_next_command_is_for_a_shell_and_for_the_same_store(exported, monkeypatch, capsys):
    from pipelines import export as verb

    of_blanks = replace(exported, folder=Path("/some/my models"))
    monkeypatch.setattr(export, "run", lambda *_: of_blanks)
    monkeypatch.setattr(delivery, "open_tracker", lambda *_, **__: nullcontext())
    verb.main([*PARAMS, "--tracking.uri", "sqlite:////else/where.db"])
    (said,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next:"))
    assert "model=/some/my models" in shlex.split(said)
    assert said.endswith(" -P tracking.uri=sqlite:////else/where.db")
    assert replace(of_blanks, size_by_file={}).next_command is None


def test_the_onnx_file_describes_itself_to_whoever_opens_it(exported, trained):
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    meta = json.loads((exported.folder / "meta.json").read_text())
    assert json.loads(about["classes"]) == list("0123456789")
    assert Preprocess.from_dict(json.loads(about["preprocess"])) == Preprocess.from_dict(meta["preprocess"])
    assert float(about["temperature"]) == meta["temperature"]
    assert about["weights_digest"] == meta["weights_digest"]
    assert about["run_id"] == trained.run_id
    assert json.loads(about["data"])["digest"] == trained.prepared.manifest.digest
    assert about["producer"] == "tracked_cls"
    opset = next(entry.version for entry in onnx.load(exported.folder / "model.onnx").opset_import if not entry.domain)
    assert about["opset"] == str(opset)


def test_the_model_that_is_registered_describes_itself_too(trained, client):
    bundle, _ = registry.resolve(client, trained.model_uri)
    about = onnxruntime.InferenceSession(bundle.onnx).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list("0123456789")
    assert "run_id" not in about, "it was written before MLflow had given the run its id"


def test_no_file_tells_of_the_machine_it_was_made_on(exported):
    with zipfile.ZipFile(exported.folder / "model.pt2") as archive:
        program = b"".join(archive.read(name) for name in archive.namelist())
    for content in (program, (exported.folder / "model.onnx").read_bytes(), (exported.folder / "config.json").read_bytes()):
        assert str(ROOT).encode() not in content
        assert b"stack_trace" not in content
        assert b"site-packages" not in content


def test_the_network_is_rebuilt_from_tensors_and_description(exported):
    network, meta = assessment.load_network(Bundle(exported.folder, EXPORTED_WEIGHTS))
    config = json.loads((exported.folder / "config.json").read_text())
    assert weights.digest(network) == meta["weights_digest"] == config["weights_digest"]
    assert (config["library"], config["name"], config["num_classes"]) == ("tracked_cls", "small_cnn", 10)
    assert config["first_convolution"]["arguments"]["in_channels"] == 1


def test_the_folder_takes_the_place_of_an_address(exported, trained, client):
    bundle = local_bundle(exported.folder)
    here, there = (Classifier.load(one.onnx, one.meta) for one in (bundle, registry.resolve(client, trained.model_uri)[0]))
    pixels = trained.prepared.sized(trained.prepared.manifest.indices("test")[:20])
    np.testing.assert_array_equal(here.probabilities_of(pixels), there.probabilities_of(pixels))
    assert bundle.weights.is_file()


# ---- of every kind ---------------------------------------------------------------------------------------------------

KINDS = {
    "colour": ("small_cnn", shape(channels=3), {}),
    "clips with several labels": ("small_cnn", shape(channels=3, frames=3), {"multi_label": True}),
    "mobilenet": ("mobilenetv3_small", shape(image_size=28), {}),
    "mobilenet, standard stem": ("mobilenetv3_small", shape(channels=3, image_size=64), {}),
    "resnet": ("resnet18", shape(image_size=28), {}),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=[] if of_images.frames else pytest.mark.slow) for name, (_, of_images, _) in KINDS.items()],
)
def test_a_network_of_every_kind_answers_alike_in_every_format(kind, tmp_path, quick):
    model, of_images, known = KINDS[kind]
    bundle, network, meta = packed(tmp_path / "bundle", of_images, model, **known)
    folder = tmp_path / "out"
    folder.mkdir()
    network = agreement.at_rest(network)
    formats.write(bundle, network, meta, ["onnx", "pt2", "safetensors"], folder)
    comparison = agreement.compare(bundle, network, ["onnx", "pt2", "safetensors"], folder, more=None)
    comparison.require()
    assert comparison.num_images == comparison.num_golden == 9
    for one in comparison.formats:
        assert one.probability < 1e-5, one
        assert one.relabelled == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["prefix"] == ("network." if of_images.frames else "")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_export_that_is_there_stays_until_it_is_told_to_go(trained, store, folder, quick):
    with pytest.raises(UserError, match="exists; set export.overwrite=true"):
        again(trained, store, folder)
    assert {path.name for path in folder.iterdir()} == FILES
    again(trained, store, folder, "--overwrite", "true")
    assert {path.name for path in folder.iterdir()} == FILES - {"model.onnx", "model.pt2"}


MINE = {
    "a file": (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt"),
    "a folder": (lambda folder: (folder / "pictures").mkdir(), "pictures"),
    "many files": (
        lambda folder: [(folder / f"{number}.txt").touch() for number in range(7)],
        "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more",
    ),
    "an edited card": (lambda folder: (folder / "MODEL_CARD.md").write_text("Licence: ours"), "MODEL_CARD.md"),
    "a card of nobody knows whom": (
        lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  meta.json\n"),
        "MODEL_CARD.md, config.json, model.onnx, model.pt2, model.safetensors",
    ),
    "a list that is none": (
        lambda folder: (
            [path.unlink() for path in folder.iterdir() if path.name not in ("meta.json", "SHA256SUMS")]
            and (folder / "SHA256SUMS").write_text("x")
        ),
        "meta.json",
    ),
}


@pytest.mark.parametrize("case", MINE)
def test_what_a_user_put_into_an_export_is_never_replaced(case, trained, store, folder):
    put, named = MINE[case]
    put(folder)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError) as raised:
        again(trained, store, folder, "--overwrite", "true")
    assert f"holds what export did not write, or was edited: {named}; move that away" in str(raised.value)
    assert {path.name for path in folder.iterdir()} == before


def test_an_export_without_its_card_may_be_replaced(folder):
    (folder / "MODEL_CARD.md").unlink()
    place._check_free(folder, overwrite=True)


@pytest.mark.parametrize("length", [245, 300], ids=["too long with what is put before it", "too long"])
def test_a_name_that_is_too_long_is_one_line_before_any_work(length, trained, store, tmp_path):
    with pytest.raises(UserError, match=r"export\.output: .* cannot be written: File name too long"):
        again(trained, store, tmp_path / ("n" * length))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_system_finds_too_long_has_a_cure():
    error = OSError(errno.ENAMETOOLONG, "x", "/some/name")
    assert host.refusal(error) == "/some/name: File name too long; give it a shorter name"


def test_what_is_no_export_is_never_replaced(trained, store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    for name, said in {"mine": "holds something that is no export", "link": "is no folder", "file": "is no folder"}.items():
        with pytest.raises(UserError, match=f"export.output: .*{name}.* {said}"):
            again(trained, store, tmp_path / name, "--overwrite", "true")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("name", ["onnx", "safetensors", "pt2"])
def test_a_file_that_answers_otherwise_is_not_written(name, trained, store, folder, quick, monkeypatch):
    real = agreement._ask_file
    spoiled = lambda which, *rest: {size: told + (which == name) * np.eye(*told.shape, dtype=np.float32)  # noqa: E731
                                    for size, told in real(which, *rest).items()}  # fmt: skip
    monkeypatch.setattr(agreement, "_ask_file", spoiled)
    before = (folder / "SHA256SUMS").read_text()
    words = [*PARAMS, *store, "--output", str(folder), "--overwrite", "true"]
    with pytest.raises(UserError, match=rf"{name} differs from the network by 0\.\d+ in probability .* nothing is written"):
        do(export.run, ExportConfig, [*words, "--formats", name])
    assert (folder / "SHA256SUMS").read_text() == before
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]


def test_answers_that_are_no_numbers_are_differences(trained, client):
    bundle, _ = registry.resolve(client, trained.model_uri)
    broken, reference = np.full((3, 10), np.nan, np.float32), np.zeros((3, 10), np.float32)
    found = agreement._agreement("onnx", {1: broken}, reference, Classifier.load(bundle.onnx, bundle.meta))
    assert found.probability == float("inf")


def test_a_network_that_answers_otherwise_than_it_was_evaluated_is_not_exported(trained, client, tmp_path):
    bundle = Bundle(shutil.copytree(registry.resolve(client, trained.model_uri)[0].folder, tmp_path / "model"))
    network, _ = assessment.load_network(bundle)
    golden = agreement.Golden.load(bundle.golden)
    replace(golden, probabilities=golden.probabilities[::-1]).save(bundle.golden)
    with pytest.raises(UserError, match="built anew, the network differs from the evaluated one by [01]"):
        agreement.compare(bundle, network, [], tmp_path, more=None).require()


def test_a_network_that_torch_cannot_export_is_one_line(tmp_path):
    class Fickle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(256, 4)

        def forward(self, images):
            return self.head(images.flatten(1)) if images.sum() > 0 else images.flatten(1)[:, :4]

    meta = description(shape())
    with pytest.raises(UserError, match="torch.export cannot take this network .* leave pt2 out of export.formats"):
        formats._write_pt2(Fickle(), meta, tmp_path / "model.pt2")


def test_a_run_that_kept_weights_alone_says_why(store, client, trained, tmp_path):
    run = client.create_run("0", tags={"promotion.reason": "transforms.eval has Grayscale, which cannot travel with the model"})
    (tmp_path / "meta.json").write_text("{}")
    client.log_artifact(run.info.run_id, str(tmp_path / "meta.json"), "weights")
    with pytest.raises(UserError, match="only the weights of this run were kept.* transforms.eval has Grayscale"):
        again(trained, store, tmp_path / "out", "--model", f"runs:/{run.info.run_id}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    {
        "unknown": (["--formats", "onnxx"], "unknown format in export.formats 'onnxx'; did you mean 'onnx'?"),
        "twice": (["--formats", "pt2,pt2"], "export.formats must name one or more of onnx, pt2, safetensors, each once"),
        "none": (["--formats", "[]"], "export.formats must name one or more"),
    }.values(),
    ids=["unknown", "twice", "none"],
)
def test_a_mistake_in_the_formats_is_named(words, said):
    with pytest.raises(UserError) as raised:
        load(ExportConfig, [*PARAMS, *words])
    assert said in str(raised.value)


def test_formats_may_be_given_with_commas():
    assert load(ExportConfig, [*PARAMS, "--formats", "onnx, pt2"]).export.formats == ["onnx", "pt2"]


# ---- a folder that is there whole or not at all ------------------------------------------------------------------------

DEAD = f"-999999-1@{os.uname().nodename}"


@pytest.mark.parametrize("is_there", [True, False], ids=["and took its place", "and nothing took its place"])
def test_an_export_that_stepped_aside_for_a_process_that_was_killed(tmp_path, is_there):
    (tmp_path / f".old-out{DEAD}").mkdir()
    (tmp_path / f".old-out{DEAD}" / "old").touch()
    (tmp_path / f".tmp-out{DEAD}").mkdir()
    (tmp_path / ".tmp-other-1-1@elsewhere").mkdir()
    if is_there:
        (tmp_path / "out").mkdir()
    place._settle(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-other-1-1@elsewhere", "out"]
    assert (tmp_path / "out" / "old").exists() is not is_there


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with place.staged(tmp_path / "out", overwrite=False) as folder:
            (folder / "half").touch()
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_came_in_the_way_meanwhile_stays(tmp_path):
    with pytest.raises(UserError, match="holds something that is no export"):
        with place.staged(tmp_path / "out", overwrite=True) as folder:
            (folder / "model.onnx").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


# ---- an export that is opened ------------------------------------------------------------------------------------------


def _flip(path, place=1000):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def _replace_by_link(path):
    elsewhere = path.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _leave_out_onnx(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if "model.onnx" not in line))


SPOILED = {
    "one bit of the graph": (lambda folder: _flip(folder / "model.onnx"), "model.onnx: it has changed since it was written"),
    "one bit of meta.json": (lambda folder: _flip(folder / "meta.json"), "meta.json: it has changed since it was written"),
    "one bit of what is not used": (lambda folder: _flip(folder / "model.pt2"), "model.pt2: it has changed"),
    "a file is missing": (
        lambda folder: (folder / "model.onnx").unlink(),
        "model.onnx: it is missing, and SHA256SUMS names it",
    ),
    "a link out of it": (lambda folder: _replace_by_link(folder / "model.onnx"), "model.onnx: a link out of the folder"),
    "a pipe": (
        lambda folder: [(folder / "model.onnx").unlink(), os.mkfifo(folder / "model.onnx")],
        "model.onnx: it is missing",
    ),
    "no digests": (lambda folder: (folder / "SHA256SUMS").unlink(), "no export of this project: it holds no SHA256SUMS"),
    "digests out of a pipe": (
        lambda folder: [(folder / "SHA256SUMS").unlink(), os.mkfifo(folder / "SHA256SUMS")],
        "it holds no SHA256SUMS",
    ),
    "empty digests": (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS: damaged"),
    "binary digests": (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe"), "SHA256SUMS: it cannot be read"),
    "a digest of something above": (
        lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n"),
        "SHA256SUMS: damaged",
    ),
    "large digests": (lambda folder: (folder / "SHA256SUMS").write_text("x" * 200_000), "SHA256SUMS: larger than 100,000"),
    "no graph": (_leave_out_onnx, "it holds no model.onnx; export the model again with onnx among export.formats"),
    "no folder": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_export_that_is_not_what_was_written_is_refused(case, folder):
    spoil, said = SPOILED[case]
    assert local_bundle(folder)
    spoil(folder)
    with pytest.raises(UserError) as raised:
        local_bundle(folder)
    assert said in str(raised.value)


def test_a_name_that_no_folder_can_have_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        local_bundle(tmp_path / ("x" * 5000))


def test_a_link_to_the_whole_folder_is_fine(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert local_bundle(tmp_path / "link").onnx.is_file()


def test_a_card_that_was_edited_leaves_the_export_as_good_as_it_was(folder):
    with (folder / "MODEL_CARD.md").open("a") as card:
        card.write("\nLicence: ours\n")
    assert local_bundle(folder).onnx.is_file()
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    _flip(folder / "model.onnx")
    assert subprocess.run(["sha256sum", "--status", "-c", "SHA256SUMS"], cwd=folder).returncode == 1


WRONG = {
    **{
        f"temperature {value!r:.10}": ({"temperature": value}, "temperature must be a number above 0, got ")
        for value in (0, -1, float("nan"), float("inf"), "x", None, True, [], 10**400)
    },
    "fewer classes": ({"classes": ["a", "b", "c"]}, "its logits are (10,), and (3,) in meta.json"),
    "classes that are a number": ({"classes": 5}, "classes must be a list of names, each once, got 5"),
    "classes that are text": ({"classes": "0123456789"}, "classes must be a list of names"),
    "no classes": ({"classes": []}, "classes must be a list of names"),
    "classes that are numbers": ({"classes": list(range(10))}, "classes must be a list of names"),
    "a class twice": ({"classes": list("0123456788")}, "classes must be a list of names, each once"),
    "several labels, and nothing between": ({"multi_label": True, "label_separator": None}, "label_separator must be text"),
    "no preprocessing": ({"preprocess": {}}, "meta.json: the description of the preprocessing has unknown keys [] and lacks"),
    "a preprocessing that is a number": ({"preprocess": 5}, "meta.json: "),
    "another size": ({"preprocess": {"image_size": 64}}, "its images are (1, 32, 32), and (1, 64, 64) in meta.json"),
    "an endless size": ({"preprocess": {"image_size": float("inf")}}, "meta.json: "),
    "clips": ({"preprocess": {"frames": 3}}, "its images are (1, 32, 32), and (3, 1, 32, 32) in meta.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_description_that_cannot_be_is_one_line_where_it_is_loaded(case, exported, tmp_path):
    changed, said = WRONG[case]
    meta = meta_of(exported)
    for key, value in changed.items():
        meta[key] = {**meta[key], **value} if isinstance(value, dict) and value else value
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError) as raised:
        Classifier.load(exported.folder / "model.onnx", tmp_path / "meta.json")
    assert said in str(raised.value)
    assert "meta.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[1]", "5", '"x"', "[" * 100_000, "{"], ids=["list", "number", "text", "deep", "cut"])
def test_a_description_that_is_no_mapping_is_one_line(text, exported, tmp_path):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=r"meta\.json: not a (readable )?model description"):
        Classifier.load(exported.folder / "model.onnx", tmp_path / "meta.json")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 1025], ids=repr)
def test_threads_that_cannot_be_are_named(threads, exported):
    with pytest.raises(UserError, match="threads must be a whole number from 1 to 1024, or None for one per core, got "):
        Classifier.load(exported.folder / "model.onnx", exported.folder / "meta.json", threads)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_that_can_be_are_taken(threads, exported):
    found = Classifier.load(exported.folder / "model.onnx", exported.folder / "meta.json", threads)
    assert found.session.get_session_options().intra_op_num_threads == (threads or 0)


# ---- what is known of it -----------------------------------------------------------------------------------------------


def test_the_run_the_version_and_the_data_of_a_model_are_found(exported, trained, client, store, tmp_path):
    known = gathered(exported.model, {}, trained, store, tmp_path)
    assert known.run.run_id == trained.run_id
    assert (known.version.uri, known.aliases) == (exported.model, ("champion",))
    manifest = trained.prepared.manifest
    assert dict(known.num_images) == {split: len(manifest.indices(split)) for split in ("train", "val", "test")}
    assert known.prepared.manifest.digest == manifest.digest
    assert known.notes == ()


@pytest.mark.parametrize(
    "changed",
    [{"data": {"name": "digits", "digest": "other"}}, {"preprocess": None}],
    ids=["of other data", "seen in another size"],
)
def test_prepared_data_that_are_not_the_models_are_not_used(changed, exported, trained, store, tmp_path):
    if "preprocess" in changed:
        changed = {"preprocess": {**meta_of(exported)["preprocess"], "image_size": 8}}
    assert gathered(exported.model, changed, trained, store, tmp_path).prepared is None


def test_a_model_whose_run_is_gone_is_described_without_it(exported, trained, store, tmp_path):
    known = gathered(exported.model, {"run_id": "0" * 32}, trained, store, tmp_path)
    assert (known.run, known.prepared, dict(known.num_images)) == (None, None, {})
    assert known.notes == ("The run that made the model was deleted, or cannot be read.",)
    assert known.version.uri == exported.model


def meta_of(exported):
    return json.loads((exported.folder / "meta.json").read_text())


def gathered(exact, changed, trained, store, tmp_path):
    from tracked_cls import tracking
    from tracked_cls.serving.classifier import read_meta

    with tracking.open_tracker(load(ExportConfig, [*PARAMS, *store]).tracking) as tracker:
        bundle, _ = registry.resolve(tracker.client, exact)
        return evidence.gather(tracker, exact, {**read_meta(bundle.meta), **changed}, tmp_path)
