"""Power laws of the error, and the forecast from them."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.evaluation.learning_curve import LEAST_ERRORS, Forecast, Laws, fit_laws, forecast

SIZES = np.array([40.0, 80.0, 113.0, 160.0])


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"), [(0.0, 1.5, 0.4), (0.1, 2.0, 0.7), (0.05, 1.0, 0.2), (0.2, 0.0, 0.5)]
)
def test_a_law_is_found_again(floor: float, scale: float, exponent: float) -> None:
    law = Laws(np.array([floor]), np.array([scale]), np.array([exponent]))
    errors = np.concatenate([law.error(size) for size in SIZES])
    found = fit_laws(SIZES, errors[None])
    for size in (20.0, 160.0, 1000.0):
        assert found.error(size)[0] == pytest.approx(law.error(size)[0], abs=1e-6)


def test_no_law_rises_or_falls_below_zero() -> None:
    rng = np.random.default_rng(0)
    found = fit_laws(SIZES, rng.uniform(0, 1, (300, 4)))
    assert (found.floor >= 0).all()
    assert (found.scale >= 0).all()
    assert (found.error(1e9) <= found.error(10)).all()


def test_errors_that_grow_are_a_floor() -> None:
    found = fit_laws(SIZES, np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert (found.scale[0], found.floor[0]) == (0.0, pytest.approx(0.25))


def outcomes(count: int, seed: int, law: Laws, *, hard: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return whether images are classified right at each size, and their labels; a class can have all errors."""
    rng = np.random.default_rng(seed)
    labels, difficulty = np.arange(count) % 4, rng.uniform(size=count)
    if hard:
        difficulty = np.where(labels == hard, difficulty / 4, 1.0)
    errors = np.concatenate([law.error(size) for size in SIZES])
    return (difficulty[None] >= errors[:, None]).astype(float), labels


LAW = Laws(np.array([0.02]), np.array([1.6]), np.array([0.5]))
NAMES = ("ant", "bee", "wasp", "fly")


def made(correct: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Forecast | None:
    groups = np.arange(len(labels)) if groups is None else groups
    return forecast(SIZES.tolist(), correct, labels, groups, [50, 50, 50, 50], NAMES)


def test_twice_the_images_gain_what_the_law_says() -> None:
    true = float((LAW.error(200) - LAW.error(400))[0])
    inside, gains = 0, []
    for seed in range(30):
        found = made(*outcomes(400, seed, LAW))
        assert found is not None
        gain, low, high = found.gain
        inside += low <= true <= high
        gains.append(gain)
    assert np.mean(gains) == pytest.approx(true, abs=0.006)
    assert inside >= 25
    assert found.doubled.num_images == 400
    assert [point.num_images for point in found.measured] == SIZES.tolist()
    assert found.curve[0].num_images == 40
    assert found.curve[-1].num_images == pytest.approx(800)
    assert all(point.low <= point.accuracy <= point.high for point in (*found.measured, *found.curve))


def test_the_class_with_the_errors_comes_first() -> None:
    found = made(*outcomes(400, 0, LAW, hard=2))
    assert found is not None
    first, *others = found.classes
    assert first.name == "wasp"
    assert first.gain > 3 * max(each.gain for each in others)
    assert sum(each.gain for each in found.classes) < 2 * found.gain[0]


def test_duplicates_widen_the_interval() -> None:
    correct, labels = outcomes(100, 3, LAW)
    once = made(correct, labels)
    again = made(np.tile(correct, 4), np.tile(labels, 4), np.tile(np.arange(100), 4))
    apart = made(np.tile(correct, 4), np.tile(labels, 4))
    assert once is not None
    assert again is not None
    assert apart is not None
    assert again.gain == pytest.approx(once.gain)
    assert apart.measured[0].high - apart.measured[0].low < 0.7 * (again.measured[0].high - again.measured[0].low)


def test_without_errors_there_is_no_forecast() -> None:
    correct, labels = np.ones((4, 200)), np.arange(200) % 4
    assert made(correct, labels) is None
    correct[:, : LEAST_ERRORS - 1] = 0
    assert made(correct, labels) is None
    correct[:, LEAST_ERRORS - 1] = 0
    assert made(correct, labels) is not None
