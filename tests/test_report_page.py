"""A page is whole, small, accessible, and trusts no text."""

import re

import pytest

from tests.report_data import Page, png
from tracked_cls.report.page import MAX_BYTES, NO_VALUE, Picture, Section, Table, Tile, render

EVIL = '<script>alert("1")</script>&"\'\n\x1b[31m'


def page(*sections, **options):
    return render("digits", kind="test report", sections=sections, **options)


def test_every_part_is_on_the_page():
    table = Table("Numbers", ["name", "value"], [["a", "0.5"], ["b", "1.5"]], note="beside it")
    section = Section(
        "Part", text=["some words"], facts=[("fact", "known")], tables=[table],
        pictures=[Picture("Title", "what it shows", png())], commands=[("Again", "mlflow run .")],
    )  # fmt: skip
    text = page(
        section, lead="leading", summary=["in short"], tiles=[Tile("accuracy", "99 %", "or so", "good")], footer="the end"
    )
    found = Page(text)
    assert found.headings == ["digits", "Part"]
    assert found.tables == {"Numbers": [["name", "value"], ["a", "0.5"], ["b", "1.5"]]}
    assert found.facts == {"fact": "known"}
    assert [image["alt"] for image in found.images] == ["what it shows"]
    for words in (
        "leading",
        "in short",
        "accuracy",
        "99 %",
        "or so",
        "some words",
        "beside it",
        "Title",
        "mlflow run .",
        "the end",
    ):
        assert words in found.text
    assert found.errors == []


def test_user_text_is_escaped_wherever_it_stands():
    section = Section(
        EVIL, text=[EVIL], facts=[(EVIL, EVIL)], tables=[Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], note=EVIL),
        Table(EVIL, [EVIL], [[EVIL]], folded=True)], pictures=[Picture(EVIL, EVIL, png(), EVIL, EVIL)], commands=[(EVIL, EVIL)],
    )  # fmt: skip
    text = render(
        EVIL, kind="report", lead=EVIL, summary=[EVIL], tiles=[Tile(EVIL, EVIL, EVIL)], sections=[section], footer=EVIL
    )
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert all(not name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert found.images[0]["alt"].startswith("<script>")
    assert "\x1b" not in found.text
    assert found.errors == []


def test_a_page_stands_alone():
    text = page(Section("Part", pictures=[Picture("Title", "alt", png())]))
    assert not re.search(r"https?://|<script|<link|url\(|@import|\bon\w+=", text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in Page(text).images)
    assert "prefers-color-scheme: dark" in text


def test_a_page_can_be_read_by_machines_and_by_ear():
    tables = [Table("Numbers", ["name", "value"], [["a", "0.5"]]), Table("More", ["name"], [["a"]], folded=True)]
    sections = [Section(f"Part {index}", tables=tables, pictures=[Picture("Title", "alt", png())]) for index in range(5)]
    text = page(*sections)
    found = Page(text)
    tags = [tag for tag, _ in found.tags]
    assert dict(found.tags[0][1]) == {"lang": "en"}
    assert tags.count("h1") == 1
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in found.tags if tag == "th")
    assert all(attrs["alt"] and attrs["width"] and attrs["height"] for attrs in found.images)
    assert found.links == [], "in the frame of mlflow ui no link leads anywhere, not even within the page"
    assert {attrs["aria-labelledby"] for tag, attrs in found.tags if tag == "section"} <= found.ids


def test_parts_without_content_are_left_out():
    assert Page(page(Section("Nothing"), Section("Something", text=["x"]))).headings == ["digits", "Something"]


@pytest.mark.parametrize(
    ("cells", "is_number"),
    [
        (["0.5", "1,234", NO_VALUE, ""], True),
        (["0.972 (0.903 to 0.993)", NO_VALUE], True),
        (["+3.34 to +8.64"], True),
        (["<0.001", "12 ms", "98.6 %", "0.95 ± 0.01"], True),
        (["1e-05", "inf"], False),
        (["3", "cat"], False),
        ([NO_VALUE, ""], True),
        (["", ""], False),
    ],
)
def test_columns_of_numbers_are_aligned_to_the_right(cells, is_number):
    table = Table("t", ["name", "value"], [["5", cell] for cell in cells])
    assert table.numeric == [False, is_number]


def test_large_pictures_are_made_smaller_before_any_is_left_out():
    pictures = [Picture(f"Title {seed}", "alt", png(900, 700, seed, noise=True), f"plots/{seed}.png") for seed in range(3)]
    assert sum(len(picture.png) for picture in pictures) > 2 * MAX_BYTES / 1.4
    found = Page(text := page(Section("Part", pictures=pictures)))
    assert len(text.encode()) <= MAX_BYTES
    assert len(found.images) == 3
    assert "Left out" not in found.text


def test_what_does_not_fit_at_all_is_left_out_with_a_word():
    pictures = [Picture(f"Title {seed}", "alt", png(700, 700, seed, noise=True), f"plots/{seed}.png") for seed in range(8)]
    small = Picture("Small", "alt", png(), "plots/small.png")
    found = Page(text := page(Section("Part", pictures=[*pictures, small])))
    assert len(text.encode()) <= MAX_BYTES
    assert 1 < len(found.images) < 9
    assert [place for place in range(8) if f"it is plots/{place}.png among the run's artifacts" in found.text]
    assert "plots/small.png" not in found.text
