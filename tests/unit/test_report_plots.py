"""Plots of reports: what is drawn where, how a name looks, and what a page could trip over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import matplotlib
import pytest

from lexico_lab.evaluation.report import palette
from lexico_lab.evaluation.report.numbers import number
from lexico_lab.evaluation.report.plots import Axis, Point, Series, bars, lines

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = len(palette.SERIES)


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def titles(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def marks(svg: str) -> list[ElementTree.Element]:
    return [*ElementTree.fromstring(svg).iter(f"{SVG}use")]


def height(mark: ElementTree.Element) -> float:
    return float(mark.get("y", "nan"))


class TestAxes:
    def test_log_axis_keeps_a_zero_at_its_edge(self) -> None:
        points = [Point(x, y) for x, y in enumerate([0.0, 1e-12, 0.1, 1.0])]
        svg = lines("t", [Series("s", points, 0)], Axis("x"), Axis("KL", log=True))
        zero, tiny, tenth, one = (height(mark) for mark in marks(svg)[:4])
        assert zero == tiny > tenth > one
        assert {"1e-5", "0.1", "1"} <= set(texts(svg))

    @pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [-1.0, 5.0]])
    @pytest.mark.parametrize("log", [False, True])
    def test_any_values_have_ticks(self, values: Sequence[float], log: bool) -> None:
        points = [Point(x, y) for x, y in enumerate(values)]
        svg = lines("t", [Series("s", points, 0)], Axis("of x"), Axis("of y", log=log))
        assert {"of x", "of y", "s"} <= set(texts(svg))
        assert len(texts(svg)) > 6
        assert "nan" not in svg

    def test_layers_have_whole_numbers(self) -> None:
        points = [Point(x, 1) for x in range(3)]
        svg = lines("t", [Series("s", points, 0)], Axis("layer", whole=True), Axis("y"))
        assert {"0", "1", "2"} <= set(texts(svg))
        assert "0.5" not in texts(svg)

    def test_bars_begin_at_zero_and_have_their_values(self) -> None:
        rows: list[tuple[str, list[float | None]]] = [("one", [25.0, None]), ("two", [50.0, 100.0])]
        svg = bars("t", ("a", "b"), rows, Axis("%", from_zero=True, up_to=100), [True, False])
        assert {"one", "two", "a", "b", "25", "50", "100", "0"} <= set(texts(svg))
        assert titles(svg) == ["one, a: 25", "two, a: 50", "two, b: 100"]
        assert len(re.findall(r"font(?:-weight)?: (?:bold|700)", svg)) == 1, "the strong row alone"

    def test_dots_stand_for_bars_that_would_have_no_zero(self) -> None:
        svg = bars("t", ("a",), [("one", [0.1]), ("two", [0.0])], Axis("times", log=True))
        assert titles(svg) == ["one, a: 0.1", "two, a: 0"]


class TestLooks:
    def test_a_way_looks_alike_whatever_else_is_drawn(self) -> None:
        """One colour and one mark, also beside dashed lines, which have those of their way."""
        points = [Point(1, 1)]
        ours = Series("ours", points, COLOURS)
        once = Series("once", points, COLOURS, strong=False, dashed=True)
        first, second = (Series("peer", points, index, strong=False) for index in (4, 5))
        assert (once.colour, once.mark) == (ours.colour, ours.mark)
        assert (first.colour, first.mark) != (second.colour, second.mark)
        assert (ours.colour, ours.mark) != (Series("s", points, 0).colour, Series("s", [], 0).mark)

    def test_what_a_point_tells_is_at_its_mark(self) -> None:
        points = [Point(1, 2, 1, 3, "first"), Point(2, 3, title="second")]
        svg = lines("t", [Series("s", points, 0), Series("u", [Point(1, 1)], 1)], *[Axis("x")] * 2)
        assert titles(svg) == ["first", "second", "u"]
        told = {title: mark for mark in marks(svg) for title in titles_of(mark)}
        assert height(told["first"]) > height(told["second"])

    def test_every_colour_has_another_on_dark_pages(self) -> None:
        svg = lines("t", [Series("s", [Point(1, 1, 0, 2)], 3)], Axis("x"), Axis("y"))
        used = set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", svg))
        rules = palette.dark_rules()
        assert {colour for _, colour in used} >= {palette.SERIES[3], palette.GRID, palette.TEXT}
        for part, colour in used:
            assert f'[style*="{part}: {colour}"]' in rules

    def test_names_are_what_they_say(self) -> None:
        """Neither markup nor mathematics."""
        names = ["<s>", "$x_1$", "a & b"]
        series = [Series(name, [Point(1, 1, title=f"<p> {name}")], 0) for name in names]
        svg = lines("<t>", series, Axis("<x>"), Axis("y"))
        assert {*names, "<x>"} <= set(texts(svg))
        assert [f"<p> {name}" for name in names] == titles(svg)
        assert ElementTree.fromstring(svg).get("aria-label") == "<t>"


class TestBytes:
    def test_equal_plots_are_equal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the style of whoever runs them."""
        series = [Series("s", [Point(1, 1 / 3, 0.1, 0.5), Point(2, 2)], 0)]
        first = lines("t", series, Axis("x"), Axis("y"))
        monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
        monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
        assert lines("t", series, Axis("x"), Axis("y")) == first
        assert not re.search(r"\d\.\d{3}", first), "digits that nobody sees"

    def test_ids_of_two_plots_differ(self) -> None:
        series = [Series("s", [Point(1, 1)], 0)]
        drawn = [lines(title, series, Axis("x"), Axis("y")) for title in ("one", "two")]
        first, second = (set(re.findall(r' id="([^"]*)"', svg)) for svg in drawn)
        assert first
        assert not first & second


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (12.345, "12.3"), (0.04567, "0.0457"), (3e-7, "3e-7"), (100, "100")],
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def titles_of(mark: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in mark.iter(f"{SVG}title")]
