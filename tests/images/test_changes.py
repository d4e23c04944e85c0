"""Changes of images."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.images.changes import CONDITIONS, Condition

PIXELS = np.random.default_rng(0).integers(40, 216, (40, 48, 3), np.uint8).repeat(2, axis=0).repeat(2, axis=1)
"""80 high, 96 wide, in blocks of two pixels."""

NAMES = ("blur", "darkness", "JPEG compression", "rotation", "noise", "occlusion", "low resolution")


def test_every_change_has_two_strengths() -> None:
    assert [(each.name, each.strength) for each in CONDITIONS] == [(n, s) for n in NAMES for s in ("mild", "strong")]


def condition(name: str, strength: str) -> Condition:
    return next(each for each in CONDITIONS if (each.name, each.strength) == (name, strength))


def change(name: str, strength: str) -> np.ndarray:
    return condition(name, strength).apply(PIXELS, np.random.default_rng(0)).astype(float)


def detail(pixels: np.ndarray) -> float:
    """Mean difference of neighboring pixels."""
    return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())


@pytest.mark.parametrize("each", CONDITIONS, ids=lambda each: f"{each.name}-{each.strength}")
def test_a_change_keeps_the_shape_and_depends_on_the_generator_alone(each: Condition) -> None:
    before = PIXELS.copy()
    first, again = (each.apply(PIXELS, np.random.default_rng(3)) for _ in range(2))
    assert (first.shape, first.dtype) == (PIXELS.shape, np.uint8)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(PIXELS, before)
    assert np.abs(first.astype(float) - PIXELS).mean() > 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rotation"])
def test_strong_changes_more_than_mild(name: str) -> None:
    mild, strong = (np.abs(change(name, strength) - PIXELS).mean() for strength in ("mild", "strong"))
    assert strong > 1.05 * mild


def test_each_change_does_what_its_name_says() -> None:
    assert detail(change("blur", "strong")) < 0.6 * detail(PIXELS)
    assert detail(change("low resolution", "strong")) < 0.8 * detail(PIXELS)
    assert detail(change("noise", "mild")) > detail(PIXELS)
    assert change("darkness", "mild").mean() == pytest.approx(0.4 * PIXELS.mean(), abs=1)
    assert (change("occlusion", "strong") == 127).all(axis=2).mean() == pytest.approx(0.25, abs=0.03)
    square = PIXELS[:80, :80]
    turned = condition("rotation", "strong").apply(square, np.random.default_rng(0))
    np.testing.assert_array_equal(turned, np.rot90(square))
