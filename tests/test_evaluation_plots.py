"""What is drawn of an evaluation is what was given: read from the figures before they are saved."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tracked_cls.plots import evaluation as drawn
from tracked_cls.plots import galleries, results, style
from tracked_cls.plots.evaluation import Bar, Curve
from tracked_cls.plots.galleries import Tile
from tracked_cls.statistics.calibration import reliability

RNG = np.random.default_rng(0)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in their order; nothing is saved."""
    kept = []
    for module in (drawn, galleries, results):
        monkeypatch.setattr(module, "save", lambda figure, *_: kept.append(figure))
    return kept


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if not line.get_label().startswith("_")}


def labels_of(axes):
    return [tick.get_text() for tick in axes.get_yticklabels()]


def intervals_of(axes):
    """Return the ends of the lines along one row, by row."""
    found = [line.get_xydata() for line in axes.get_lines() if len(line.get_xydata()) == 2]
    return {int(ends[0, 1]): tuple(ends[:, 0]) for ends in found if ends[0, 1] == ends[1, 1]}


def some_reliability(shift=0.0):
    confidence = RNG.uniform(0.3, 1, 400)
    return reliability(confidence, RNG.uniform(0, 1, 400) < confidence - shift)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_line_goes_through_the_bins_that_hold_something(figures, tmp_path, temperature):
    before, after = some_reliability(0.2), some_reliability()
    assert (before.counts == 0).any()
    drawn.reliability(before, after, temperature, tmp_path)
    lines = lines_of(figures[0].axes[0])
    expected = {"as the network says": before} | ({f"after temperature {temperature:.2f}": after} if temperature != 1 else {})
    assert set(lines) == {"perfect", *(f"{name}: ECE {found.ece:.4f}" for name, found in expected.items())}
    for name, found in expected.items():
        some = found.counts > 0
        points = np.stack([found.confidence[some], found.accuracy[some]], axis=1)
        np.testing.assert_array_equal(lines[f"{name}: ECE {found.ece:.4f}"], points)
    stairs = [patch.get_data().values for patch in figures[0].axes[1].patches]
    np.testing.assert_array_equal(stairs, [found.counts for found in expected.values()])


def curve(area, name="a"):
    return Curve(name, area, np.array([0.0, 1 - area, 1.0]), np.array([0.0, 1.0, 1.0]))


@pytest.mark.parametrize(("areas", "reach"), [([0.999, 0.996], 0.05), ([0.999, 0.99], 0.2), ([0.999, 0.97], 1.0)])
def test_curves_are_shown_near_to_their_corner(figures, tmp_path, areas, reach):
    curves = [curve(area, f"$c{area}") for area in areas]
    drawn.ranking(curves, curves[:1], "", tmp_path)
    roc, precision_recall = figures[0].axes
    assert roc.get_xlim()[1] == reach
    assert roc.get_ylim()[0] == pytest.approx(1 - reach)
    assert precision_recall.get_xlim()[0] == pytest.approx(0.95)
    assert list(lines_of(roc)) == [f"{area:.3f}  $c{area}" for area in areas]


def test_bars_stand_worst_first_with_their_intervals(figures, tmp_path):
    rows = [Bar("good", 0.9, 0.8, 0.95, 10), Bar("bad", 0.2, 0.1, 0.4, 2000), Bar("unknown", 0.5, math.nan, math.nan, 1)]
    drawn.bars(rows, "F1", "", "F1", tmp_path)
    (axes,) = figures[0].axes
    assert labels_of(axes) == ["bad", "unknown", "good"]
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.5, 0.9]
    assert intervals_of(axes)[0] == (0.1, 0.4)
    assert intervals_of(axes)[2] == (0.8, 0.95)
    assert [text.get_text() for text in axes.texts] == ["0.200  of 2,000", "0.500  of 1", "0.900  of 10"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_of_many_bars_the_worst_40_are_drawn(figures, tmp_path):
    values = RNG.permutation(100) / 100
    drawn.bars([Bar(f"{value:.2f}", value, value, value, 1) for value in values], "", "", "", tmp_path)
    assert labels_of(figures[0].axes[0]) == [f"{value / 100:.2f}" for value in range(40)]


def test_slices_stand_below_their_columns_beside_the_line_of_all(figures, tmp_path):
    rows = [Bar("x", 0.9, 0.8, 0.95, 10, "a"), Bar("y", 0.2, 0.1, 0.4, 9, "a"), Bar("z", 0.6, math.nan, math.nan, 1, "b")]
    drawn.forest(rows, 0.7, "", "", "", tmp_path)
    (axes,) = figures[0].axes
    assert labels_of(axes) == ["a", "x", "y", "b", "z"]
    assert intervals_of(axes)[1] == (0.8, 0.95)
    assert intervals_of(axes)[2] == (0.1, 0.4)
    assert axes.get_lines()[0].get_xdata() == [0.7, 0.7]
    assert axes.get_xlim()[0] == pytest.approx(0.05)


def test_of_many_slices_those_are_drawn_whose_interval_ends_lowest(figures, tmp_path):
    values = RNG.permutation(100) / 100
    drawn.forest([Bar(f"{value:.2f}", 0.5, 0.0, value, 1, "a") for value in values], 0.5, "", "", "", tmp_path)
    assert sorted(labels_of(figures[0].axes[0])) == [*(f"{value / 100:.2f}" for value in range(40)), "a"]


@pytest.mark.parametrize(("num_classes", "named"), [(10, True), (20, True), (21, False)])
def test_points_lie_where_they_were_given_and_mistakes_are_ringed(figures, tmp_path, num_classes, named):
    labels = np.arange(60) % num_classes
    points, wrong = RNG.normal(size=(60, 2)).astype(np.float32), RNG.uniform(size=60) < 0.2
    drawn.plane(points, labels, wrong, [f"${label}" for label in range(num_classes)], "", tmp_path)
    (axes,) = figures[0].axes
    dots, rings = axes.collections
    np.testing.assert_array_equal(dots.get_offsets(), points)
    np.testing.assert_array_equal(rings.get_offsets(), points[wrong])
    colours = dots.get_facecolors()
    assert len(np.unique(colours, axis=0)) == num_classes
    assert all(len(np.unique(colours[labels == label], axis=0)) == 1 for label in range(num_classes))
    assert [text.get_text() for text in axes.texts] == [f"${label}" for label in range(num_classes) if named]


@pytest.mark.parametrize(("num_classes", "named"), [(2, True), (30, True), (31, False), (200, False)])
def test_a_confusion_matrix_of_any_size_fits_a_page(figures, tmp_path, num_classes, named):
    matrix = RNG.integers(0, 3, (num_classes, num_classes))
    results.confusion(matrix, ["$\\frac{ and a very long name indeed"] * num_classes, tmp_path)
    axes = figures[0].axes[0]
    assert max(figures[0].get_size_inches()) <= 13
    assert len(axes.texts) == (np.count_nonzero(matrix) if named else 0)
    assert (labels_of(axes)[0] == "$\\frac{ and a very lo…") == named
    np.testing.assert_allclose(axes.images[0].get_array(), matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))


# ---- images ----------------------------------------------------------------------------------------------------------


def tile(channels=3, heat=None, **words):
    picture = RNG.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return Tile(picture, heat, **{"first": "a", "second": "b", **words})


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_shown_as_it_is_and_beside_it_under_its_heat(figures, tmp_path, channels):
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    shown = tile(channels, heat)
    galleries.gallery([shown], "", "", tmp_path)
    (axes,) = figures[0].axes
    pixels = np.asarray(axes.images[0].get_array())
    plain = np.broadcast_to(shown.picture / 255, (8, 8, 3))
    np.testing.assert_allclose(pixels[:, :8], plain)
    cold = np.repeat(0.8 * plain.mean(axis=2, keepdims=True), 3, axis=2)
    heated = pixels[:, -8:]
    np.testing.assert_allclose(heated[1:], cold[1:])
    assert heated[0, 0, 0] > heated[0, 0, 2] + 0.3  # warm


@pytest.mark.parametrize(("hot", "columns"), [(True, 3), (False, 4)])
def test_tiles_stand_in_rows_with_their_words_literally(figures, tmp_path, hot, columns):
    heat = np.zeros((8, 8), np.float32) if hot else None
    tiles = [tile(heat=heat, first=f"${number}", second="0.5", is_mistake=number == 1) for number in range(5)]
    galleries.gallery(tiles, "title", "note", tmp_path)
    axes = figures[0].axes
    boxes = [panel.get_position() for panel in axes]
    assert len({round(box.x0, 6) for box in boxes}) == columns
    assert boxes[0].y0 > boxes[-1].y0
    assert [[text.get_text() for text in panel.texts] for panel in axes] == [[f"${number}", "0.5"] for number in range(5)]
    assert [panel.texts[1].get_color() == style.MARKED for panel in axes] == [False, True, False, False, False]


def test_a_gallery_of_noise_is_saved_in_fewer_colours(tmp_path):
    noisy = [Tile(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8), None, "a", "b") for _ in range(12)]
    galleries.gallery(noisy, "", "", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size < 250_000
    with Image.open(tmp_path / "x.png") as picture:
        assert 16 <= len(picture.getcolors()) < 256


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        ("two\nlines", 20, "two lines"),
        ("漢字漢字", 8, "漢字漢字"),
        ("漢字漢字", 7, "漢字漢…"),
        ("", 5, ""),
    ],
)
def test_texts_are_cut_to_a_width(text, most, expected):
    assert style.cut(text, most) == expected
