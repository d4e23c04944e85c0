"""Confident learning: a case worked by hand, and labels that were made wrong."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.recipes.label_doctor import find_label_errors


def test_a_case_worked_by_hand() -> None:
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.8 + 0.4) / 2 = 0.6.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1])
    found = find_label_errors(probabilities, labels)
    assert found.suspected.tolist() == [False, False, True, False, True]
    assert found.order.tolist() == [2, 4, 1, 3, 0]  # margins -0.8, -0.2; then 0.6 and 0.6, and 0.8
    assert found.suggested.tolist() == [1, 1, 1, 0, 0]
    assert found.confidence.tolist() == pytest.approx([0.1, 0.2, 0.9, 0.2, 0.6])


def test_a_class_that_the_classifier_is_never_sure_of_is_held_to_a_lower_threshold() -> None:
    sure = np.tile([0.98, 0.02, 0.0], (10, 1))
    vague = np.tile([0.35, 0.25, 0.4], (10, 1))
    odd = np.array([[0.5, 0.05, 0.45]])  # of class 0 by the plain maximum, of class 2 by its own standard
    labels = np.array([0] * 10 + [2] * 10 + [1])
    found = find_label_errors(np.vstack([sure, vague, odd]), labels)
    assert found.suspected.tolist() == [False] * 20 + [True]
    assert found.suggested[-1] == 0, "though the suggestion is the most probable other class"


def test_absent_classes_and_no_confidence_leave_the_labels_alone() -> None:
    probabilities = np.full((6, 3), 1 / 3)
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = find_label_errors(probabilities, labels)
    assert sorted(found.order.tolist()) == list(range(6))
    assert np.isfinite(found.confidence).all()


@pytest.mark.parametrize("seed", range(3))
def test_labels_that_were_made_wrong_come_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, 1000)
    logits = rng.normal(size=(1000, 5))
    logits[np.arange(1000), truth] += 4
    labels = truth.copy()
    wrong = rng.choice(1000, 50, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 5, 50)) % 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = find_label_errors(probabilities, labels)
    assert len(set(found.order[:100].tolist()) & set(wrong.tolist())) >= 47
    assert set(np.flatnonzero(found.suspected).tolist()) <= set(wrong.tolist()), "no correct label is suspected"
    assert found.suspected.sum() >= 25
