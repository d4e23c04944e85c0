"""The mixture of stages: weights at the optimum, shrunk toward the best tap, cross-fitted, and combined into one layer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from transferapp.training.mixture import NEGLIGIBLE, combine, fit_weights, mix
from transferapp.training.probe import LinearProbe, stratified_folds


def noisy_logits(labels: np.ndarray, signal: float, seed: int, num_classes: int = 3) -> np.ndarray:
    """Logits of a classifier that knows the label more or less."""
    rng = np.random.default_rng(seed)
    return signal * np.eye(num_classes)[labels] + rng.normal(size=(len(labels), num_classes))


def loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, 400)


def test_the_weights_minimize_loss_and_penalty(labels: np.ndarray) -> None:
    stacked = np.stack([noisy_logits(labels, signal, seed) for seed, signal in enumerate((1.0, 1.4, 0.2))])
    ridge = 0.05
    weights = fit_weights(stacked, labels, ridge)
    best = np.argmin([loss(each, labels) for each in stacked])

    def objective(w: np.ndarray) -> float:
        return loss(np.tensordot(w, stacked, axes=1), labels) + ridge * np.square(w - np.eye(3)[best]).sum()

    at_optimum = objective(weights)
    rng = np.random.default_rng(1)
    for _ in range(200):
        other = np.maximum(weights + rng.normal(scale=0.05, size=3), 0)
        assert objective(other) >= at_optimum - 1e-9


def test_two_taps_that_know_different_things_do_better_together(labels: np.ndarray) -> None:
    logits = [noisy_logits(labels, 1.2, seed) for seed in (1, 2)]
    mixture = mix(logits, labels, stratified_folds(labels, 5, 0))
    assert mixture.loss < min(loss(each, labels) for each in logits) - 0.05
    assert (mixture.weights > 0.3).all()
    assert mixture.accuracy == np.mean(mixture.logits.argmax(axis=1) == labels)


def test_a_useless_tap_gets_no_weight_and_is_not_served(labels: np.ndarray) -> None:
    useless = -noisy_logits(labels, 2.0, 3)  # the more it says so, the less it is so
    weights = fit_weights(np.stack([noisy_logits(labels, 2.0, 1), useless]), labels)
    assert weights[1] == 0.0
    assert weights[0] > NEGLIGIBLE


def test_a_strong_penalty_leaves_the_best_tap_alone(labels: np.ndarray) -> None:
    stacked = np.stack([noisy_logits(labels, 1.0, 1), noisy_logits(labels, 2.0, 2)])
    weights = fit_weights(stacked, labels, ridge=1e4)
    np.testing.assert_allclose(weights, [0, 1], atol=NEGLIGIBLE)


def test_each_image_is_scored_by_weights_that_did_not_see_its_fold(labels: np.ndarray) -> None:
    logits = [noisy_logits(labels, signal, seed) for seed, signal in ((1, 1.0), (2, 0.7))]
    folds = stratified_folds(labels, 4, 0)
    mixture = mix(logits, labels, folds)
    stacked = np.stack(logits)
    for fold in range(4):
        seen = folds != fold
        weights = fit_weights(stacked[:, seen], labels[seen])
        np.testing.assert_allclose(mixture.logits[~seen], np.tensordot(weights, stacked[:, ~seen], axes=1), rtol=1e-5)


def test_the_cross_fitted_figure_is_not_optimistic() -> None:
    """Twenty taps of noise: weights fitted on the images that they are judged by would look better than guessing."""
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(20):
        labels = rng.integers(0, 2, 60)
        logits = [0.5 * rng.normal(size=(60, 2)) for _ in range(20)]
        excess.append(mix(logits, labels, stratified_folds(labels, 5, 0)).loss - np.log(2))
    assert np.mean(excess) > 0


def test_the_sum_of_classifiers_is_one_linear_layer_on_all_their_features() -> None:
    rng = np.random.default_rng(2)
    sizes = (4, 6)
    probes = [
        LinearProbe(
            rng.normal(size=n).astype("f4"),
            rng.uniform(0.5, 2, n).astype("f4"),
            rng.normal(size=(n, 3)).astype("f4"),
            rng.normal(size=3).astype("f4"),
            0.1,
            5,
        )
        for n in sizes
    ]
    features = [rng.normal(size=(7, n)).astype("f4") for n in sizes]
    expected = 0.3 * probes[0].logits(features[0]) + 0.9 * probes[1].logits(features[1])
    combined = combine(probes, [0.3, 0.9])
    np.testing.assert_allclose(combined.logits(np.concatenate(features, axis=1)), expected, rtol=1e-4, atol=1e-5)
    assert combined.iterations == 10


def test_images_count_by_their_weight(labels: np.ndarray) -> None:
    stacked = np.stack([noisy_logits(labels, signal, seed) for seed, signal in enumerate((1.0, 1.4))])
    twice = np.concatenate([stacked, stacked[:, labels == 0]], axis=1)
    expected = fit_weights(twice, np.concatenate([labels, labels[labels == 0]]))
    np.testing.assert_allclose(fit_weights(stacked, labels, sample_weight=1.0 + (labels == 0)), expected, atol=1e-3)
