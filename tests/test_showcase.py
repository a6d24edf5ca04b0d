"""The pictures of an evaluation: what they show is what was found, and no split is too odd to draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learning_data import digits, make_feed, make_prepared, noise, one_thread  # noqa: F401 - the last by being here
from PIL import Image
from sklearn import metrics as reference
from torch import nn

from tracked_cls import evaluation, showcase
from tracked_cls.attribution import heatmaps
from tracked_cls.config import ModelConfig
from tracked_cls.data.loaders import open_split, preview
from tracked_cls.models import PooledFrames, Shape, make_model
from tracked_cls.plots import style
from tracked_cls.scores import MultiLabelScores, Scores

EVERY = ("confusion", "reliability", "roc", "per_class", "slices", "mistakes", "unsure", "right", "embedding")
RNG = np.random.default_rng(0)


class Linear(nn.Module):
    """A convolution and a head of K classes: as little as pictures need."""

    def __init__(self, num_classes, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4, num_classes)

    def forward(self, images):
        return self.head(self.body(images).relu().mean(dim=(2, 3)))


def of_test(prepared):
    """Return the same set with all images in the test split, and that split."""
    tested = replace(prepared, manifest=prepared.manifest.with_splits(np.full(len(prepared.manifest), 2, np.uint8)))
    return open_split(make_feed(tested), "test")


def judged(split, logits, columns=None, temperature=1.0):
    labels = np.asarray(split.prepared.manifest.labels)
    kind = MultiLabelScores if labels.ndim == 2 else Scores
    return evaluation.report(kind(logits.astype(np.float32), labels), split.prepared.manifest.classes, temperature, columns)


def renamed(prepared, names):
    return replace(prepared, manifest=replace(prepared.manifest, classes=tuple(names)))


@pytest.fixture(scope="module")
def shown():
    """A network that is right about most of 80 digits, their split, and the report."""
    split = of_test(digits(num_train=0, num_val=80))
    torch.manual_seed(0)
    network = make_model(ModelConfig(name="small_cnn"), Shape(10, 1, 8))
    (batch,) = split.eval_batches(80)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.images), batch.targets).backward()
        optimizer.step()
    scores = evaluation.score(network, split.eval_batches(64))
    columns = {"half": ["first"] * 40 + ["second"] * 40, "always": ["same"] * 80}
    found = evaluation.report(scores, split.prepared.manifest.classes, 1.25, columns)
    assert 5 < (~found.scores.right).sum() < 60
    return network, split, found


@pytest.fixture(scope="module")
def drawn(shown, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    return folder, showcase.draw(*shown, folder)


def given(monkeypatch, module, name, number=0):
    """Return the list that what a drawing function is given is put into."""
    calls = []
    monkeypatch.setattr(module, name, lambda *args: calls.append(args))
    return calls


# ---- files -----------------------------------------------------------------------------------------------------------


def test_every_picture_is_a_small_file_with_a_text(drawn):
    folder, texts = drawn
    assert list(texts) == [f"test_{name}.png" for name in EVERY]
    assert {path.name for path in folder.iterdir()} == set(texts)
    for name, text in texts.items():
        assert 30 < len(text) < 400
        assert (folder / name).stat().st_size < 250_000
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            assert 500 < picture.width < 1100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_the_same_evaluation_gives_the_same_bytes(shown, drawn, tmp_path):
    folder, texts = drawn
    assert showcase.draw(*shown, tmp_path) == texts
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in texts)


def test_texts_tell_the_numbers(shown, drawn):
    _, _, found = shown
    _, texts = drawn
    wrong = found.confusion * (1 - np.eye(10, dtype=int))
    f1 = [row["f1"] for row in found.per_class]
    assert f"({wrong.max()} time" in texts["test_confusion.png"]
    assert "of 80 images" in texts["test_confusion.png"]
    assert f"{found.reliability.ece:.4f}, {found.reliability_calibrated.ece:.4f} after" in texts["test_reliability.png"]
    assert f"from {min(f1):.3f} (class-{np.argmin(f1)}) to {max(f1):.3f}" in texts["test_per_class.png"]
    lowest = min(found.slices, key=lambda of: of.accuracy.value)
    assert f"{lowest.accuracy.value:.3f} for half = {lowest.value} (40 images)" in texts["test_slices.png"]
    assert f"of {(~found.scores.right).sum()}, the surest first" in texts["test_mistakes.png"]
    assert f"ringed: {(~found.scores.right).sum()} mistakes" in texts["test_embedding.png"]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_curves_enclose_the_areas_of_the_report(shown):
    found = shown[2]
    roc, precision_recall, _ = showcase._curves(found)
    marks, probabilities = np.eye(10)[found.scores.labels], found.scores.probabilities
    assert [curve.area for curve in roc] == sorted((curve.area for curve in roc), reverse=True)
    for curve in roc:
        index = found.classes.index(curve.name)
        assert curve.area == pytest.approx(reference.roc_auc_score(marks[:, index], probabilities[:, index]))
        assert np.trapezoid(curve.up, curve.across) == pytest.approx(curve.area)
    for curve in precision_recall:
        index = found.classes.index(curve.name)
        assert curve.area == pytest.approx(reference.average_precision_score(marks[:, index], probabilities[:, index]))
        assert np.sum(np.diff(curve.across) * curve.up[1:]) == pytest.approx(curve.area)


def test_of_many_classes_the_mean_and_the_worst_curves_are_drawn():
    labels = np.arange(120) % 12
    split = of_test(noise(labels.tolist()))
    found = judged(split, RNG.normal(size=(120, 12)) + 2 * np.eye(12)[labels])
    roc, precision_recall, note = showcase._curves(found)
    areas = sorted(row["roc_auc"] for row in found.per_class)
    assert note == "mean of 12 classes, and the 5 worst"
    assert [curve.is_mean for curve in roc] == [True, *[False] * 5]
    assert [curve.area for curve in roc[1:]] == areas[4::-1]
    assert roc[0].area == pytest.approx(np.mean(areas))
    assert np.trapezoid(roc[0].up, roc[0].across) == pytest.approx(np.mean(areas), abs=0.01)
    assert precision_recall[0].area == pytest.approx(np.mean([row["average_precision"] for row in found.per_class]))


def test_bars_are_the_f1_of_classes_that_have_images(monkeypatch, tmp_path):
    calls = given(monkeypatch, showcase.drawn, "bars")
    split = of_test(renamed(noise([0, 1, 1, 3]), ["a", "b", "absent", "d"]))
    found = judged(split, np.eye(4)[[0, 1, 3, 3]])
    assert showcase._per_class(showcase._Show(Linear(4), split, found), tmp_path / "x.png").startswith("F1 of 3 classes")
    ((bars, _, note, *_),) = calls
    rows = [row for row in found.per_class if row["class"] != "absent"]
    assert [(bar.name, bar.value, bar.low, bar.high, bar.count) for bar in bars] == [
        (row["class"], row["f1"], row["f1_low"], row["f1_high"], row["support"]) for row in rows
    ]
    assert note == "95 % intervals; 1 without images"


def test_slices_of_columns_with_several_values_are_drawn(shown, monkeypatch, tmp_path):
    calls = given(monkeypatch, showcase.drawn, "forest")
    showcase._slices(showcase._Show(*shown), tmp_path / "x.png")
    ((rows, overall, *_),) = calls
    right = shown[2].scores.right
    assert overall == right.mean()
    assert [(row.group, row.name, row.value, row.count) for row in rows] == [
        ("half", "first", right[:40].mean(), 40),
        ("half", "second", right[40:].mean(), 40),
    ]
    assert all(row.low < row.value < row.high for row in rows)


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mistakes", "unsure", "right"])
def test_a_gallery_has_the_images_that_were_picked(shown, monkeypatch, tmp_path, name):
    network, split, found = shown
    calls = given(monkeypatch, showcase, "gallery")
    showcase._PICTURES[name](showcase._Show(*shown), tmp_path / "x.png")
    ((tiles, *_),) = calls
    scores = found.scores.tempered(found.temperature)
    picks = getattr(showcase.picks, name)(scores, 12)
    assert len(tiles) == len(picks) > 5
    for tile, pick in zip(tiles, picks, strict=True):
        label, said = scores.labels[pick.row], scores.predictions[pick.row]
        one = replace(split, indices=split.indices[[pick.row]])
        np.testing.assert_array_equal(tile.picture, preview(one, draws=0, seed=0)[0, 0])
        (batch,) = one.eval_batches(1)
        np.testing.assert_allclose(tile.heat, heatmaps(network, batch.images, np.array([said]))[0], atol=1e-5)
        assert tile.first == (f"class-{label}" if label == said else f"class-{label} → class-{said}")
        assert tile.second == f"{scores.probabilities[pick.row, said]:.2f}"
        assert tile.is_mistake == (label != said)


def test_of_several_views_the_first_is_shown_and_looked_at(shown, monkeypatch, tmp_path):
    network, split, found = shown
    calls = given(monkeypatch, showcase, "gallery")
    mirrored = replace(split, feed=replace(split.feed, tta="flip"))
    for some in (split, mirrored):
        assert "Grad-CAM" in showcase._mistakes(showcase._Show(network, some, found), tmp_path / "x.png")
    for one, same in zip(calls[0][0], calls[1][0], strict=True):
        np.testing.assert_array_equal(one.picture, same.picture)
        np.testing.assert_allclose(one.heat, same.heat, atol=1e-5)


def test_the_plane_has_labels_and_mistakes_of_a_stratified_sample(shown, monkeypatch, tmp_path):
    network, split, found = shown
    calls = given(monkeypatch, showcase.drawn, "plane")
    monkeypatch.setattr(showcase, "_IN_PLANE", 30)
    seen = []
    monkeypatch.setattr(showcase.embedding, "project", lambda points: seen.append(points) or points[:, :2])
    showcase._plane(showcase._Show(*shown), tmp_path / "x.png")
    ((points, labels, wrong, classes, *_),) = calls
    every = showcase.embedding.features(network, split.eval_batches(80))
    rows = [int(np.abs(every - point).sum(axis=1).argmin()) for point in seen[0]]
    assert len(points) == len(set(rows)) == 30
    assert np.bincount(labels).min() >= 2
    assert labels.tolist() == found.scores.labels[rows].tolist()
    assert wrong.tolist() == (~found.scores.right[rows]).tolist()
    assert classes == found.classes


def test_with_several_labels_words_tell_what_is_missed_and_what_is_false(monkeypatch, tmp_path):
    labels = np.array([[1, 0], [1, 1], [0, 0]], np.uint8)
    prepared = noise([0, 1, 0])
    split = of_test(replace(prepared, manifest=replace(prepared.manifest, labels=labels)))
    found = judged(split, np.log(np.array([[9, 4], [0.25, 9], [0.1, 1 / 9]])))
    calls = given(monkeypatch, showcase, "gallery")
    for name in ("mistakes", "right"):
        showcase._PICTURES[name](showcase._Show(Linear(2), split, found), tmp_path / "x.png")
    ((wrong, *_),) = calls
    assert [(tile.first, tile.second, tile.is_mistake) for tile in wrong] == [
        ("class-0", "class-1 0.80, false", True),
        ("class-0, class-1", "class-0 0.20, missed", True),
    ]


# ---- odd splits ------------------------------------------------------------------------------------------------------


def odd(name):
    """Return network, split and report."""
    if name == "one image":
        split = of_test(noise([1]))
        return Linear(2), split, judged(split, np.eye(2)[[1]], {"source": ["a"]})
    if name == "no mistakes":
        split = of_test(noise(list(range(3)) * 8))
        return Linear(3), split, judged(split, 9 * np.eye(3)[list(range(3)) * 8])
    if name == "only mistakes":
        split = of_test(noise([0, 1] * 6))
        return Linear(2), split, judged(split, 9 * np.eye(2)[[1, 0] * 6])
    if name == "300 classes":
        labels = np.arange(500) % 300
        split = of_test(noise(labels.tolist()))
        return Linear(300), split, judged(split, 3 * np.eye(300)[labels] + RNG.normal(size=(500, 300)))
    if name == "odd and long names":
        names = ["$\\frac{$", "漢字" * 40, "a\nb", " ".join(["long"] * 60)]
        split = of_test(renamed(noise([0, 1, 2, 3] * 5, channels=3), names))
        columns = {"$_{$": ["$x^{$", "long " * 50] * 10}
        return Linear(4, 3), split, judged(split, RNG.normal(size=(20, 4)), columns)
    if name == "several labels":
        prepared = noise([2] * 40)
        labels = RNG.integers(0, 2, (40, 3)).astype(np.uint8)
        split = of_test(replace(prepared, manifest=replace(prepared.manifest, labels=labels)))
        return Linear(3), split, judged(split, RNG.normal(size=(40, 3)))
    clips = RNG.integers(0, 256, (20, 3, 8, 8, 1), dtype=np.uint8)
    prepared = make_prepared(clips[:, 0], [0, 1] * 10, ["test"] * 20)
    split = of_test(replace(prepared, pixels=clips, preprocess=replace(prepared.preprocess, frames=3)))
    return PooledFrames(Linear(2)), split, judged(split, RNG.normal(size=(20, 2)))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("one image", {"roc", "slices", "mistakes", "embedding"}),
        ("no mistakes", {"slices", "mistakes"}),
        ("only mistakes", {"slices", "right"}),
        pytest.param("300 classes", {"slices"}, marks=pytest.mark.slow),
        ("odd and long names", set()),
        ("several labels", {"confusion", "slices"}),
        ("clips", {"slices"}),
    ],
)
def test_odd_splits_are_drawn_as_far_as_they_go(name, missing, tmp_path, monkeypatch):
    if name not in ("one image", "several labels"):
        monkeypatch.setattr(showcase.embedding, "project", lambda points: points[:, :2])
    scale = 1 if name == "300 classes" else 3  # coarse pictures take a third of the time
    monkeypatch.setattr(style, "DPI", style.DPI // scale)
    texts = showcase.draw(*odd(name), tmp_path)
    assert set(texts) == {f"test_{picture}.png" for picture in EVERY if picture not in missing}
    for file in texts:
        with Image.open(tmp_path / file) as picture:
            assert 400 < picture.width * scale < 1100
            assert picture.height * scale < 1600
            assert (tmp_path / file).stat().st_size < 250_000


def test_large_photos_make_small_galleries(tmp_path):
    smooth = nn.functional.interpolate(
        torch.rand(12, 3, 40, 40, generator=torch.Generator().manual_seed(0)), 224, mode="bicubic"
    )
    pixels = (smooth.clamp(0, 1) * 255).byte().movedim(1, -1).numpy()
    split = of_test(make_prepared(pixels, list(range(12)), ["test"] * 12))
    found = judged(split, 5 * np.eye(12))
    show = showcase._Show(Linear(12, 3), split, found)
    assert "Grad-CAM" in showcase._right(show, tmp_path / "x.png")
    assert 50_000 < (tmp_path / "x.png").stat().st_size < 250_000


def test_a_network_without_maps_or_last_layer_has_plain_galleries_and_no_plane(shown, tmp_path):
    _, split, found = shown
    show = showcase._Show(nn.Flatten(), split, found)
    assert "Grad-CAM" not in showcase._right(show, tmp_path / "x.png")
    assert showcase._plane(show, tmp_path / "y.png") is None
    assert not (tmp_path / "y.png").exists()
