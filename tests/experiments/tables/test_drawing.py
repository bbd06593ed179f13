"""Pictures: the same bytes each time, text escaped, every dot and label within the picture, where its numbers say."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.chart import Bar, Bars, Chart, Series
from experiments.tables.drawing import FONT, digest, draw

HOSTILE = '<script>alert("&")</script>'
MARKS = ("limit", "theory", "predicted", "measured")


def chart(*series: Series, logarithmic: str = "xy") -> Chart:
    return Chart("a chart", "x", "y", series, logarithmic)


def test_a_chart_is_drawn_the_same_each_time_and_names_what_it_was_drawn_of() -> None:
    drawn = chart(Series("a", [(1.0, 1.0), (10.0, 5.0)]), Series("b", [(3.0, 2.0)], "predicted"))
    assert draw(drawn) == draw(drawn)
    assert digest(drawn) in draw(drawn)


def test_whatever_the_picture_shows_is_in_its_digest() -> None:
    base = chart(Series("a", [(1.0, 2.0)]))
    others = [
        chart(Series("b", [(1.0, 2.0)])),
        chart(Series("a", [(1.0, 2.001)])),
        chart(Series("a", [(1.0, 2.0)], "predicted")),
        chart(Series("a", [(1.0, 2.0)]), logarithmic=""),
        Chart("another", "x", "y", base.series),
    ]
    assert len({digest(each) for each in (base, *others)}) == 1 + len(others)
    assert digest(chart(Series("a", [(1.0, 2.0 + 1e-12)]))) == digest(base)  # another machine's last digit


def test_text_is_escaped_and_hollow_and_full_are_explained() -> None:
    root = ElementTree.fromstring(draw(chart(Series(HOSTILE, [(1.0, 1.0)]), Series("b", [(2.0, 9.0)], "predicted"))))
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.findall(".//{http://www.w3.org/2000/svg}script") == []
    assert HOSTILE in texts
    assert "hollow: predicted, full: measured" in texts


@pytest.mark.parametrize("mark", MARKS)
def test_labels_of_one_place_stand_apart(mark: str) -> None:
    names = [f"kernel{i}" for i in range(8)]
    svg = draw(chart(*(Series(name, [(1.0, 1.0)], mark) for name in names)))  # type: ignore[arg-type]
    heights = sorted(place(svg, name)[1] for name in names)
    assert all(below - above >= 9 for above, below in pairwise(heights))


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=12))
def test_labels_of_different_dots_stand_apart_or_beside(points: list[tuple[float, float]]) -> None:
    svg = draw(chart(*(Series(f"d{i}", [point]) for i, point in enumerate(points))))
    found = [place(svg, f"d{i}") for i in range(len(points))]
    for i, (x, y) in enumerate(found):
        for other_x, other_y in found[i + 1 :]:
            assert abs(x - other_x) >= 9 or abs(y - other_y) >= 9


def place(svg: str, label: str) -> tuple[float, float]:
    """Where a label stands, in points."""
    found = re.search(rf'<text [^>]*?x="([\d.-]+)" y="([\d.-]+)"[^>]*>{label}</text>', svg)
    assert found, label
    return float(found[1]), float(found[2])


def test_bars_are_stacked_to_their_sums_and_each_part_says_what_it_is() -> None:
    bars = Bars("bars", "us", (Bar("first", (("a", 1.0), ("b", 2.5))), Bar(HOSTILE, (("b", 4.0),))))
    svg = draw(bars)
    assert svg == draw(bars)
    assert digest(bars) in svg
    root = ElementTree.fromstring(svg)
    said = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert said == ["first, a: 1", "first, b: 2.5", f"{HOSTILE}, b: 4"]
    texts = ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", HOSTILE, "3.5", "4", "a", "b"} <= set(texts)
    assert texts.count("b") == 1  # once in the legend


@pytest.mark.parametrize("letters", [1, 20, 40])
def test_the_labels_of_bars_begin_within_the_picture(letters: int) -> None:
    label = "m" * letters
    said = re.search(rf'x="([0-9.]+)"[^>]*>{label}</text>', draw(Bars("bars", "us", (Bar(label, (("a", 1.0),)),))))
    assert said
    assert float(said[1]) >= letters * 0.5 * FONT  # it ends there; a letter is about half as wide as high


def test_a_changed_part_changes_the_digest_of_bars() -> None:
    base = Bars("bars", "us", (Bar("first", (("a", 1.0),)),))
    others = [Bars("bars", "us", (Bar("first", (("a", 1.1),)),)), Bars("bars", "us", (Bar("first", (("b", 1.0),)),))]
    assert len({digest(each) for each in (base, *others)}) == 3
