"""Weights by class: chosen by cross-validation, where classes differ in size."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.policy.class_weights import balanced_weights
from transferapp.recipes.fit.measure import Weighting, weigh_classes
from transferapp.training.probe import cross_validate


def blobs(counts: tuple[int, ...], distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(size=(len(labels), 6)).astype(np.float32)
    rows[:, 0] += distance * labels
    return rows, labels


def weighed(counts: tuple[int, ...], distance: float, wanted: str = "auto") -> Weighting:
    rows, labels = blobs(counts, distance)
    plain = cross_validate(rows, labels, len(counts), seed=3)
    return weigh_classes(rows, labels, counts, plain, wanted, groups=np.arange(len(labels)), seed=3)


def test_classes_of_one_size_are_not_tried_with_weights() -> None:
    found = weighed((60, 50), 1.5)
    assert found.weights is None
    assert found.of(np.array([0, 1])) is None
    assert found.finding.reason.values == {"imbalance": pytest.approx(1.2)}
    assert found.finding.macro_gain is None


def test_what_cross_validation_says_is_done() -> None:
    rows, labels = blobs((400, 25), 1.7)
    found = weighed((400, 25), 1.7)
    plain = cross_validate(rows, labels, 2, seed=3)
    weights = balanced_weights((400, 25))
    with_weights = cross_validate(rows, labels, 2, seed=3, class_weights=weights)
    recalls = [[v.correct[labels == k].mean() for k in (0, 1)] for v in (plain, with_weights)]
    assert found.finding.macro_gain == pytest.approx(np.mean(recalls[1]) - np.mean(recalls[0]))
    assert recalls[1][1] > recalls[0][1], "weights help the small class"
    assert found.finding.kind == "none", "but here the large one loses too much"
    np.testing.assert_array_equal(found.validation.logits, plain.logits)


def test_settings_overrule_the_measurement() -> None:
    found = weighed((400, 25), 1.7, "balanced")
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, balanced_weights((400, 25)))
    assert found.of(np.array([1, 0, 1])) is not None
    assert "--class-weights" in found.finding.reason.text
    document = found.to_json()
    assert document["weights"] == pytest.approx([425 / 800, 8.5], abs=1e-4)
    assert document["imbalance"] == 16
    none = weighed((400, 25), 1.7, "none")
    assert none.weights is None
    assert "--class-weights" in none.finding.reason.text


def test_a_strength_that_was_chosen_holds_with_weights_too() -> None:
    rows, labels = blobs((60, 20), 1.7)
    plain = cross_validate(rows, labels, 2, seed=3, path=(0.03,))
    found = weigh_classes(rows, labels, (60, 20), plain, "balanced", groups=np.arange(80), seed=3)
    assert found.weights is not None
    assert (found.validation.l2, found.validation.path) == (0.03, (0.03,))
