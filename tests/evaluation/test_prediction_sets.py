"""Calibration of prediction sets: the finite-sample correction, and coverage on fresh images."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.evaluation.prediction_sets import calibrate_sets, conformal_threshold


def noisy_images(count: int, seed: int, sharpness: float = 2.0, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return overconfident probabilities and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + sharpness * np.eye(classes)[labels] * rng.uniform(0, 1, (count, 1))
    powers = np.exp(3 * logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def test_the_threshold_is_the_corrected_quantile() -> None:
    # The right class is the second of two: its scores are the probabilities of the first.
    first = np.linspace(0.55, 0.95, 9)
    probabilities, labels = np.stack([first, 1 - first], axis=1), np.ones(9, int)
    assert conformal_threshold(probabilities, labels, 0.9) == pytest.approx(0.95)
    assert conformal_threshold(probabilities, labels, 0.8) == pytest.approx(0.90)
    assert conformal_threshold(probabilities, labels, 0.5) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("count", "coverage", "enough"), [(9, 0.9, True), (8, 0.9, False), (19, 0.95, True), (0, 0.5, False)]
)
def test_too_few_images_promise_nothing(count: int, coverage: float, enough: bool) -> None:
    probabilities, labels = noisy_images(count, 0)
    assert (conformal_threshold(probabilities, labels, coverage) is not None) == enough
    assert (calibrate_sets(probabilities, labels, coverage, *noisy_images(10, 1)) is not None) == enough


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_fresh_images_are_covered_as_promised(coverage: float) -> None:
    shares, sizes = [], []
    for seed in range(60):
        sets = calibrate_sets(*noisy_images(99, seed), coverage, *noisy_images(400, 1000 + seed))
        assert sets is not None
        shares.append(sets.num_covered / sets.num_test)
        sizes.append(sets.mean_size)
    assert np.mean(shares) == pytest.approx(coverage, abs=0.012)
    assert 1 < np.mean(sizes) < 6


def test_a_classifier_that_is_always_right_has_sets_of_one_class() -> None:
    labels = np.arange(60) % 3
    probabilities = np.eye(3)[labels] * 0.9 + 0.1 / 3
    sets = calibrate_sets(probabilities, labels, 0.9, probabilities, labels)
    assert sets is not None
    assert (sets.threshold, sets.mean_size, sets.num_covered) == (0.0, 1.0, 60)


def test_the_true_coverage_is_bounded_by_the_number_of_images() -> None:
    few = calibrate_sets(*noisy_images(50, 0), 0.9, *noisy_images(10, 1))
    many = calibrate_sets(*noisy_images(2000, 0), 0.9, *noisy_images(10, 1))
    assert few is not None
    assert many is not None
    assert few.coverage_interval[0] < many.coverage_interval[0] < 0.9 < many.coverage_interval[1]
    assert many.coverage_interval == pytest.approx((0.887, 0.913), abs=0.002)


def test_without_test_images_the_size_is_that_on_held_out_images() -> None:
    probabilities, labels = noisy_images(99, 0)
    sets = calibrate_sets(probabilities, labels, 0.9, probabilities[:0], labels[:0])
    assert sets is not None
    assert (sets.num_test, sets.covered_interval) == (0, None)
    assert sets.mean_size > 1
