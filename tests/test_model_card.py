"""The model card says what the run measured, and what nobody knows, and shows names letter by letter."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from export_data import RUN_ID, description, shape
from report_data import facts, put_metrics

from tracked_cls.export import card
from tracked_cls.export.agreement import Agreement, Comparison
from tracked_cls.export.evidence import Evidence
from tracked_cls.export.markdown import Markdown, code, escaped
from tracked_cls.registry import Version
from tracked_cls.report.page import NO_VALUE

FOUND = Comparison(359, 64, 1e-7, (Agreement("onnx", 2e-6, 1e-6, 0),))
SIZES = {"config.json": 1631, "model.onnx": 294_383}
VERSION = Version("tiny-classifier", 3, RUN_ID, {"promotion.verdict": "promoted", "promotion.reason": "better by *far*"})


@pytest.fixture
def known(tmp_path):
    """A registered champion with its test results."""
    put_metrics(tmp_path, {"accuracy": {"value": 0.9861, "low": 0.9677, "high": 0.9941}, "own|made": {"value": 0.5}})
    put_classes(tmp_path, ["class 0", "class 1"])
    run = facts(
        tmp_path,
        metrics={"num_parameters": 72_666, "temperature": 0.5, "test_ece": 0.28, "test_ece_calibrated": 0.01},
        tags={"git.commit": "a" * 40},
    )
    return Evidence(run, VERSION, ("champion",), {"train": 1295, "val": 143, "test": 359})


def put_classes(folder, names):
    columns = [f"{name}{bound}" for name in ("precision", "recall", "f1") for bound in ("", "_low", "_high")]
    with (folder / "tables" / "test_per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *columns, "support"])
        writer.writerows([name, *[f"{0.9 + index / 1000:.4f}"] * 9, 36] for index, name in enumerate(names))


def render(known, sizes=SIZES, **meta):
    return card.render("models:/tiny-classifier/3", description(shape(), **meta), known, FOUND, sizes)


def test_a_card_holds_what_is_known(known):
    text = render(known)
    for line in (
        "# Model card: tiny-classifier, version 3 (champion)",
        "Says of an image which of 4 classes it belongs to, with a probability for each of them.",
        "**98.61 % of the test images are labelled right (95 %: 96.77 % to 99.41 %).**",
        "| Address when exported | `models:/tiny-classifier/3` |",
        "| Network | `small_cnn` |",
        "| Parameters | 72,666 |",
        "- 16 x 16 pixels, 1 channels (grey).",
        "In the order of the logits: class 0, class 1, class 2, class 3.",
        "| Digest of images, labels and splits | `dddddddddddddddd` |",
        "| Images of train | 1,295 |",
        "| accuracy | 0.9861 | 0.9677 to 0.9941 |",
        rf"| own\|made | 0.5000 | {NO_VALUE} |",
        "| class 1 | 0.901 (0.901 to 0.901) | 0.901 (0.901 to 0.901) | 0.901 (0.901 to 0.901) | 36 |",
        "Logits are divided by the temperature 0.5 (fitted on the validation images alone) before they become probabilities. "
        "Expected calibration error on the test images: 0.2800 before, 0.0100 after.",
        "Each was asked about 359 real images, in batches of 1, 2, 7 and 64, and compared with the network itself (PyTorch, "
        "float32).",
        "| `model.onnx` | 294,383 | 2.0e-06 | 1.0e-06 |",
        "`SHA256SUMS` binds every file but this card, to which you may add what it says is not known.",
        f"| `config.json` | 1,631 | {NO_VALUE} | {NO_VALUE} |",
        f"| Run | `{RUN_ID}` |",
        f"| Code, commit | `{'a' * 40}` |",
        r"| Verdict of the gate | promoted, better by \*far\* |",
        f"    mlflow run . -e train --env-manager local -P from_run={RUN_ID}",
        "- It answers with one of its classes for every image, also for one that shows none of them.",
        "- Licence: not recorded.",
    ):
        assert line in text.splitlines(), line
    assert "\n\n\n" not in text
    assert "None" not in text


def test_a_card_without_its_run_says_so_and_makes_nothing_up():
    text = render(Evidence(None, None, notes=("The run that made the model cannot be read: gone",)))
    assert "# Model card: tiny classifier, not registered" in text
    assert "Not known: the run that made the model holds no results that can be read." in text
    assert "- The run that made the model cannot be read" in text
    assert "from_run" not in text
    assert "| number | value |" not in text
    assert "labelled right" not in text


def test_results_that_cannot_be_read_are_named(known):
    (known.run.folder / "tables" / "test_metrics.json").write_text("[1]")
    text = render(known)
    assert "Not known: the run that made the model holds no results that can be read." in text
    assert r"Left out\: test\_metrics\.json" in text


def test_names_of_classes_are_shown_letter_by_letter(known):
    names = ["<script>alert(1)</script>", "a|b", "![x](http://evil)", "`code`\n# title"]
    put_classes(known.run.folder, names)
    text = render(known, classes=names, data={"name": "*d*", "digest": "`|x", "content_digest": ""})
    assert "<script>" not in text.replace(r"\<script\>", "")
    assert r"\<script\>alert\(1\)\<\/script\>" in text
    assert r"| a\|b | 0.901" in text
    assert r"\!\[x\]\(http\:\/\/evil\)" in text
    assert r"\`code\`\\n\# title" in text, "a line break is written out"
    assert r"| Name | \*d\* |" in text
    assert r"| `'\|x` |" in text
    assert f"| Digest of pixels and class names | {NO_VALUE} |" in text


def test_a_card_renders_as_a_table_for_every_table(known):
    """Every line of a table has as many cells as its header."""
    put_classes(known.run.folder, ["a|b", "c"])
    lines = render(known).splitlines()
    starts = [index for index, line in enumerate(lines) if set(line) == {"|", "-"}]
    assert len(starts) == 7
    for start in starts:
        assert lines[start - 2] == "", "a table begins after an empty line"
        width = cells(lines[start])
        rows = lines[start - 1 : start] + lines[start + 1 : lines.index("", start) if "" in lines[start:] else None]
        assert {cells(row) for row in rows} == {width}


def cells(line):
    return line.replace(r"\|", "").count("|") - 1


def test_many_classes_are_cut_to_the_weakest(known):
    put_classes(known.run.folder, [f"kind {index}" for index in range(100)])
    text = render(known, classes=[f"kind {index}" for index in range(100)])
    assert "kind 59 and 40 more, in meta.json." in text
    assert "The 60 classes of lowest F1 of 100" in text
    assert "| kind 59 |" in text
    assert "| kind 60 |" not in text


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"multi_label": True}, "which of 4 labels it has: any number of them, each with its own probability."),
        ({"temperature": 1.0}, "the temperature 1 (none was fitted)"),
        ({"temperature": 2.5}, "the temperature 2.5 (as in meta.json)"),
    ],
)
def test_a_card_follows_the_description(meta, said):
    assert said in render(Evidence(None, None), **meta)


def test_clips_are_called_clips():
    meta = description(shape(channels=3, frames=5))
    text = card.render("models:/m-0", meta, Evidence(None, None), FOUND, SIZES)
    assert "Says of a clip which" in text
    assert "float32 (batch, 5 frames, channels, height, width)" in text


def test_published_weights_bring_their_licence(known):
    run = replace(known.run, params={"model.weights": "IMAGENET1K_V2"})
    assert "Training began from the weights `IMAGENET1K_V2`: their licence" in render(replace(known, run=run))
    assert "Training began" not in render(known)


def test_slices_are_shown_where_there_are_some(known):
    (known.run.folder / "tables" / "test_slices.csv").write_text(
        "column,value,count,accuracy,accuracy_low,accuracy_high\ngroup,ward_3,20,0.9,0.7,0.97\ngroup,,5,1.0,0.5,1.0\n"
    )
    text = render(known)
    assert r"| group | ward\_3 | 20 | 0.900 (0.700 to 0.970) |" in text
    assert r"| group | \(empty\) | 5 |" in text
    assert "is shown above, as far as the data name such parts" in text
    assert "was not looked at." in render(Evidence(None, None))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, 0.986 and 3-5", "plain words, 0.986 and 3-5"),
        ("www.evil.com", r"www\.evil\.com"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("a\\|b", r"a\\\|b"),
        ("me@host", r"me\@host"),
        ("&lt;", r"\&lt;"),
        ("$x$ ~y~", r"\$x\$ \~y\~"),
    ],
)
def test_marks_are_letters_in_texts_of_others(text, shown):
    assert escaped(text) == shown
    assert isinstance(escaped(text), Markdown)


def test_code_holds_no_way_out():
    assert code("a`b|c\nd") == r"`a'b\|c\nd`"
