"""Chart of the trials of a search: position and shade of points, and unusual input."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from transferapp.evaluation.report.charts import search_chart

TOP, BOTTOM, LEFT, RIGHT = 12.0, 188.0, 14.0, 97.0
"""The drawing area: pixels from the top, per cent of the width."""


def parsed(points: list[tuple[float, float, float]], best: tuple[float, float, float]) -> ElementTree.Element:
    return ElementTree.fromstring(str(search_chart(points, best)))


def circles(root: ElementTree.Element, kind: str) -> list[dict[str, str]]:
    return [circle.attrib for circle in root.iter("circle") if circle.attrib["class"].startswith(kind)]


def place(circle: dict[str, str]) -> tuple[float, float]:
    return float(circle["cx"].rstrip("%")), float(circle["cy"])


def test_points_lie_on_logarithmic_axes_of_whole_decades() -> None:
    ends_and_middle = [(1e-4, 1e-2, 0.5), (1e-3, 1e-1, 0.6), (1e-2, 1.0, 0.7)]
    root = parsed(ends_and_middle, ends_and_middle[2])
    assert [place(circle) for circle in circles(root, "point")] == [
        (LEFT, BOTTOM),
        ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2),
        (RIGHT, TOP),
    ]


def test_axes_reach_to_the_decades_around_the_trials() -> None:
    points = [(3e-4, 0.02, 0.5), (3e-3, 0.5, 0.6)]
    texts = {text.text for text in parsed(points, points[1]).iter("text")}
    assert texts == {"1e-04", "1e-03", "1e-02", "1e-01", "1e+00"}


def test_the_best_has_a_ring_about_its_point_and_is_darkest() -> None:
    points = [(1e-3, 0.1, 0.90), (1e-2, 1.0, 0.95), (1e-4, 0.01, 0.20)]
    root = parsed(points, points[1])
    (ring,) = circles(root, "curve")
    drawn = circles(root, "point")
    assert place(ring) == place(drawn[-1]) == (RIGHT, TOP), "the best is drawn last, over the others"
    # A tenth of accuracy is the whole way from dark to faint, and nothing is too faint to be seen.
    assert [float(circle["fill-opacity"]) for circle in drawn] == pytest.approx([0.12, 0.5, 1.0])


def test_trials_without_regularization_lie_at_the_bottom() -> None:
    points = [(1e-3, 0.0, 0.9), (1e-2, 0.1, 0.8)]
    drawn = circles(parsed(points, points[0]), "point")
    assert place(drawn[1])[1] == BOTTOM
    alone = circles(parsed([(1e-3, 0.0, 0.9)], (1e-3, 0.0, 0.9)), "point")
    assert place(alone[0]) == (LEFT, BOTTOM), "a search that varies neither has a decade to lie in all the same"


def test_without_a_rate_there_is_no_chart() -> None:
    assert search_chart([], (0.0, 0.0, 0.0)) == ""
    assert search_chart([(0.0, 0.1, 0.5)], (0.0, 0.1, 0.5)) == ""


def test_ten_decades_have_no_more_ticks_than_can_be_read() -> None:
    points = [(1e-9, 0.1, 0.5), (1e1, 0.1, 0.6)]
    root = parsed(points, points[1])
    across = [text for text in root.iter("text") if text.attrib["y"] == "206"]
    assert 4 <= len(across) <= 6


def test_it_says_what_it_shows_to_those_who_cannot_see_it() -> None:
    points = [(1e-3, 0.1, 0.9), (1e-2, 0.1, 0.95)]
    label = parsed(points, points[1]).attrib["aria-label"]
    assert label == "2 trials; the best at learning rate 1.00e-02, regularization 1.00e-01"
