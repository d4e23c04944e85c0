"""Prediction sets: scores by hand, and sets that are never empty."""

from __future__ import annotations

import numpy as np

from transferapp.bundle.prediction_sets import in_set, masses_above

PROBABILITIES = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], np.float32)


def test_the_score_of_a_class_is_the_mass_of_those_above() -> None:
    np.testing.assert_allclose(masses_above(PROBABILITIES), [[0.8, 0.0, 0.5], [0.0, 1.0, 1.0]], atol=1e-6)


def test_equal_classes_count_in_label_order() -> None:
    np.testing.assert_allclose(masses_above(np.full((1, 4), 0.25)), [[0, 0.25, 0.5, 0.75]])


def test_a_set_has_every_class_up_to_the_threshold() -> None:
    assert in_set(PROBABILITIES, 0.5).tolist() == [[False, True, True], [True, False, False]]
    assert in_set(PROBABILITIES, 0.49).tolist() == [[False, True, False], [True, False, False]]
    assert in_set(PROBABILITIES, 1.0).all()


def test_no_set_is_empty_and_it_grows_with_the_threshold() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), 200).astype(np.float32)
    sizes = np.stack([in_set(probabilities, threshold).sum(axis=1) for threshold in (0, 0.3, 0.6, 0.9)])
    assert (sizes[0] == 1).all()
    assert (np.diff(sizes, axis=0) >= 0).all()
    most = in_set(probabilities, 0.0).argmax(axis=1)
    np.testing.assert_array_equal(most, probabilities.argmax(axis=1))
