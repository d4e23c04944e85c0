"""Geometry: when whole images are tried, and when they replace the center crop."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.images.views import GEOMETRIES, Geometry
from transferapp.policy.geometry import (
    ELONGATED_FROM,
    WORTH_TRYING,
    GeometryFinding,
    elongated_share,
    geometries_to_try,
    judge_geometry,
)


def judged(**mean_losses: float) -> GeometryFinding:
    """The finding on 100 images; their losses differ from those of the center crop with a standard error of 0.01."""
    crop = np.random.default_rng(0).gamma(2.0, 0.5, 100)
    noise = np.where(np.arange(100) % 2, 0.0995, -0.0995)  # deviation 0.1 with one degree of freedom less
    losses: dict[Geometry, np.ndarray] = {"crop": crop}
    for geometry in GEOMETRIES[1:]:
        losses[geometry] = crop + mean_losses[geometry] + noise
    correct = {geometry: np.arange(100) < count for geometry, count in zip(GEOMETRIES, (60, 70, 80), strict=True)}
    return judge_geometry("auto", 1.0, losses, correct, np.arange(100))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 200), 0), ((200, 300), 0), ((320, 200), 1), ((200, 320), 1), ((4000, 10), 1), ((1, 1), 0)],
)
def test_images_longer_than_photographs_are_elongated(size: tuple[int, int], expected: int) -> None:
    assert elongated_share([size]) == expected


def test_the_share_of_no_images_is_zero() -> None:
    assert elongated_share([]) == 0
    assert elongated_share([(100, 100)] * 3 + [(200, 100)]) == 0.25


def test_whole_images_are_tried_where_many_are_elongated() -> None:
    assert geometries_to_try("auto", 0.0) == ("crop",)
    assert geometries_to_try("auto", WORTH_TRYING - 0.01) == ("crop",)
    assert geometries_to_try("auto", WORTH_TRYING) == GEOMETRIES
    for geometry in GEOMETRIES:
        assert geometries_to_try(geometry, 1.0) == (geometry,)


def test_the_center_crop_stays_unless_the_loss_is_clearly_lower() -> None:
    assert judged(resize=0.05, pad=0.05).geometry == "crop"
    assert judged(resize=-0.019, pad=-0.019).geometry == "crop", "within two standard errors"
    assert judged(resize=-0.021, pad=0.5).geometry == "resize"
    assert judged(resize=0.5, pad=-0.021).geometry == "pad"


def test_of_two_that_are_clearly_better_the_lower_loss_is_used() -> None:
    assert judged(resize=-0.2, pad=-0.1).geometry == "resize"
    finding = judged(resize=-0.1, pad=-0.2)
    assert finding.geometry == "pad"
    assert [each.geometry for each in finding.tried] == list(GEOMETRIES)
    assert [each.saved for each in finding.tried] == pytest.approx([0, 0.1, 0.2])
    assert [each.standard_error for each in finding.tried] == pytest.approx([0, 0.01, 0.01], rel=1e-3)
    assert [each.accuracy for each in finding.tried] == [0.6, 0.7, 0.8]
    assert finding.reason.values["accuracy_gain"] == pytest.approx(0.2)
    assert finding.to_json()["tried"][2]["saved"] == pytest.approx(0.2)


def test_copies_of_an_image_count_once() -> None:
    losses: dict[Geometry, np.ndarray] = {"crop": np.linspace(1.0, 2.0, 8), "resize": np.ones(8), "pad": np.ones(8)}
    correct = {name: np.ones(8, bool) for name in losses}
    assert judge_geometry("auto", 1.0, losses, correct, np.arange(8)).geometry == "resize"
    assert judge_geometry("auto", 1.0, losses, correct, np.repeat([0, 1], 4)).geometry == "crop"


def test_what_the_user_sets_is_used_without_a_comparison() -> None:
    losses: dict[Geometry, np.ndarray] = {"pad": np.full(3, 9.0)}
    finding = judge_geometry("pad", 0.0, losses, {"pad": np.zeros(3, bool)}, np.arange(3))
    assert (finding.geometry, finding.tried) == ("pad", ())
    assert "--geometry" in finding.reason.text


def test_the_reason_names_the_share_that_was_too_small() -> None:
    finding = judge_geometry("auto", 0.05, {"crop": np.ones(3)}, {"crop": np.ones(3, bool)}, np.arange(3))
    assert finding.geometry == "crop"
    assert finding.reason.values == {"elongated": 0.05}
    assert f"{ELONGATED_FROM:g}" in finding.reason.text
