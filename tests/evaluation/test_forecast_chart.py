"""The chart of a forecast: points on a logarithmic axis, and the law through them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.helpers.manifests import forecast_json
from transferapp.evaluation.report import charts

ROOT = ElementTree.fromstring(str(charts.forecast_chart(forecast_json())))


def places(tag: str, kind: str, key: str) -> list[float]:
    found = [element.attrib[key] for element in ROOT.iter(tag) if element.attrib["class"] == kind]
    return [float(value.rstrip("%")) for value in found]


def test_doubling_is_one_step_to_the_right_everywhere() -> None:
    points = places("circle", "point val", "cx")
    assert len(points) == 4
    assert points[1] - points[0] == pytest.approx((points[3] - points[1]), rel=0.1)  # 22, 43, 86
    assert points[0] == pytest.approx(13, abs=0.1)


def test_higher_accuracies_lie_higher() -> None:
    heights = places("circle", "point val", "cy")
    assert heights == sorted(heights, reverse=True)


def test_the_images_that_there_are_are_marked() -> None:
    (now,) = places("line", "reference", "x1")
    starts, ends = places("line", "curve val", "x1"), places("line", "curve val", "x2")
    assert starts[1] == pytest.approx(now, abs=0.01)
    assert starts[0] < now < ends[-1]


def test_it_says_what_it_shows_to_those_who_cannot_see_it() -> None:
    assert ROOT.attrib["aria-label"] == "Accuracy by training images: 88% with 86, 92% expected with 270"
