"""The probe: solved to its optimum, scored on held-out images, deterministic."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from transferapp.errors import TrainingError
from transferapp.training import probe as probe_module
from transferapp.training.probe import (
    L2_PATH,
    PRIOR_ROWS,
    LinearProbe,
    cross_validate,
    fit_probe,
    log_softmax,
    moments,
    stratified_folds,
)


def blobs(
    n: int = 120, d: int = 8, classes: int = 3, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features around one center a class, of unlike scales and offsets as a network's are."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    features = rng.normal(size=(classes, d))[labels] + spread * rng.normal(size=(n, d))
    return (features * rng.uniform(0.1, 9, d) + rng.normal(size=d)).astype(np.float32), labels


def objective(probe: LinearProbe, features: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    losses = -log_softmax(probe.logits(features).astype(float))[np.arange(len(labels)), labels]
    return float(losses @ weight / weight.sum() + probe.l2 / 2 * np.square(probe.kernel.astype(float)).sum())


def steepest(probe: LinearProbe, features: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """The largest component of the objective's gradient, worked out in double precision."""
    x = (features.astype(float) - probe.mean) / probe.std
    errors = softmax(x @ probe.kernel.astype(float) + probe.bias, axis=1) - np.eye(len(probe.bias))[labels]
    errors *= (weight / weight.sum())[:, None]
    return max(np.abs(x.T @ errors + probe.l2 * probe.kernel).max(), np.abs(errors.sum(axis=0)).max())


@pytest.mark.parametrize("shape", [(120, 8), (30, 60)])  # more images than features, and fewer
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_vanishes_at_the_solution(shape: tuple[int, int], l2: float, weighted: bool) -> None:
    features, labels = blobs(*shape)
    weight = np.random.default_rng(1).random(len(labels)) if weighted else np.ones(len(labels))
    probe = fit_probe(features, labels, 3, l2, sample_weight=weight if weighted else None)
    assert steepest(probe, features, labels, weight) < 5e-5
    assert probe.kernel.shape == (shape[1], 3)
    assert {array.dtype for array in (probe.mean, probe.std, probe.kernel, probe.bias)} == {np.dtype(np.float32)}


def test_a_generic_minimizer_finds_no_better_solution() -> None:
    features, labels = blobs(40, 4)
    probe = fit_probe(features, labels, 3, 0.03)
    mean, std = moments(features)
    x = (features.astype(float) - mean) / std

    def loss(flat: np.ndarray) -> float:
        kernel, bias = flat[:12].reshape(4, 3), flat[12:]
        losses = -log_softmax(x @ kernel + bias)[np.arange(40), labels]
        return float(losses.mean() + 0.015 * (kernel**2).sum())

    best = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-8})
    assert objective(probe, features, labels, np.ones(40)) == pytest.approx(float(best.fun), abs=1e-6)
    np.testing.assert_allclose(probe.kernel, best.x[:12].reshape(4, 3), atol=2e-3)


def test_whole_weights_are_copies() -> None:
    features, labels = blobs(40, 5)
    times = np.random.default_rng(3).integers(1, 4, 40)
    copied, copied_labels = np.repeat(features, times, axis=0), np.repeat(labels, times)
    weighted = fit_probe(features, labels, 3, 0.1, sample_weight=times / times.mean())
    repeated = fit_probe(copied, copied_labels, 3, 0.1)
    # Moments are of the images as they come, so compare the objective and not the numbers.
    assert weighted.logits(features).argmax(axis=1).tolist() == repeated.logits(features).argmax(axis=1).tolist()


def test_the_span_of_few_images_gives_the_solution_of_all_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "PRIOR_ROWS", 0)  # it counts less among more rows
    features, labels = blobs(30, 60)
    padded = np.concatenate([features, np.zeros((30, 1), np.float32)], axis=1)
    narrow = fit_probe(features, labels, 3, 0.1)  # 30 images, 60 features: solved in their span
    tripled = np.repeat(features, 3, axis=0)  # 90 images with the same moments: solved in all 60 features
    wide = fit_probe(tripled, np.repeat(labels, 3), 3, 0.1)
    np.testing.assert_allclose(narrow.kernel, wide.kernel, atol=2e-4)
    np.testing.assert_allclose(narrow.bias, wide.bias, atol=1e-3)
    assert (fit_probe(padded, labels, 3, 0.1).kernel[-1] == 0).all()


def test_a_channel_that_seldom_responds_does_not_outweigh_all_others() -> None:
    features, labels = blobs(12, 8)
    rare = (1e-4 * labels[:, None] + np.zeros((12, 1))).astype(np.float32)
    probe = fit_probe(np.concatenate([features, rare], axis=1), labels, 3, 0.01)
    plain, responding = (np.concatenate([features, np.full((12, 1), value, np.float32)], axis=1) for value in (0, 1))
    assert np.abs(probe.logits(responding) - probe.logits(plain)).max() < 1


def test_variances_are_shrunk_less_the_more_rows_there_are() -> None:
    rng = np.random.default_rng(0)
    for count in (10, 100_000):
        features = rng.normal(size=(count, 3)).astype(np.float32) * np.array([0.01, 1, 100], np.float32)
        found, weight = np.square(moments(features)[1]), PRIOR_ROWS / (count + PRIOR_ROWS)
        variances = features.astype(float).var(axis=0)
        np.testing.assert_allclose(found, (1 - weight) * variances + weight * np.median(variances), rtol=1e-4)


def test_shifting_and_scaling_features_changes_nothing() -> None:
    features, labels = blobs()
    moved = features * np.float32(4) + np.float32(8)
    expected = fit_probe(features, labels, 3, 0.1).logits(features)
    np.testing.assert_allclose(fit_probe(moved, labels, 3, 0.1).logits(moved), expected, atol=5e-3)


def test_two_classes_are_opposite() -> None:
    features, labels = blobs(60, 5, classes=2)
    kernel = fit_probe(features, labels, 2, 0.1).kernel
    np.testing.assert_allclose(kernel[:, 0], -kernel[:, 1], atol=1e-4)


def test_a_class_without_images_is_hardly_ever_predicted() -> None:
    features, labels = blobs()
    probe = fit_probe(features, labels, 4, 0.01)
    assert softmax(probe.logits(features), axis=1)[:, 3].max() < 0.01


def test_constant_features_are_left_out_and_cause_no_alarm() -> None:
    features, labels = blobs()
    features[:, 2] = 0
    features[:, 5] = 1e6
    with np.errstate(all="raise"):
        probe = fit_probe(features, labels, 3, 0.1)
    assert np.abs(probe.kernel[[2, 5]]).max() < 1e-6
    assert np.isfinite(probe.logits(features)).all()


def test_equal_images_give_the_frequencies_of_the_labels() -> None:
    labels = np.array([0, 0, 0, 1])
    probe = fit_probe(np.ones((4, 6), np.float32), labels, 2, 0.1)
    np.testing.assert_allclose(softmax(probe.logits(np.ones((1, 6))), axis=1), [[0.75, 0.25]], atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features, labels = blobs()
    features[7, 3] = value
    for work in (lambda: fit_probe(features, labels, 3, 0.1), lambda: cross_validate(features, labels, 3)):
        with pytest.raises(TrainingError, match="NaN or infinite") as caught, np.errstate(all="ignore"):
            work()
        assert caught.value.exit_code == 6


# Folds


@pytest.mark.parametrize("counts", [[10, 10, 10], [1, 1, 1], [7, 3, 1, 12], [2] * 30])
def test_folds_are_stratified_and_even(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = stratified_folds(labels, 5, seed=0)
    for label, count in enumerate(counts):
        spread = np.bincount(folds[labels == label], minlength=5)
        assert spread.max() - spread.min() <= 1, (label, count)
    whole = np.bincount(folds, minlength=5)
    assert whole.max() - whole.min() <= 1
    assert np.array_equal(folds, stratified_folds(labels, 5, seed=0))


def test_another_seed_deals_other_folds() -> None:
    labels = np.repeat(np.arange(3), 20)
    assert (stratified_folds(labels, 5, 0) != stratified_folds(labels, 5, 1)).any()


# Cross-validation


def slow_cross_validation(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float, seed: int = 0
) -> np.ndarray:
    """Held-out logits at one strength: each fold's probe by itself, on features scaled over all images."""
    folds = stratified_folds(labels, 5, seed)
    mean, std = moments(features)
    scaled = ((features - mean) / std).astype(np.float32)
    logits = np.empty((len(labels), classes))
    for fold in range(5):
        train = folds != fold
        x, y = scaled[train].astype(float), labels[train]

        def loss(flat: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            kernel, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
            z = log_softmax(x @ kernel + bias)
            errors = (np.exp(z) - np.eye(classes)[y]) / len(y)
            value = -z[np.arange(len(y)), y].mean() + l2 / 2 * (kernel**2).sum()
            return float(value), np.concatenate([(x.T @ errors + l2 * kernel).ravel(), errors.sum(axis=0)])

        start = np.zeros((x.shape[1] + 1) * classes)
        flat = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-7}).x
        logits[~train] = scaled[~train] @ flat[:-classes].reshape(-1, classes) + flat[-classes:]
    return logits


@pytest.mark.parametrize("shape", [(90, 7), (40, 70)])
def test_held_out_losses_are_those_of_probes_solved_one_by_one(shape: tuple[int, int]) -> None:
    features, labels = blobs(*shape, spread=1.5)
    found = cross_validate(features, labels, 3)
    for l2, loss in list(zip(L2_PATH, found.losses, strict=False))[::3]:
        reference = slow_cross_validation(features, labels, 3, l2)
        assert loss == pytest.approx(-log_softmax(reference)[np.arange(len(labels)), labels].mean(), abs=1e-3)
    best = slow_cross_validation(features, labels, 3, found.l2)
    np.testing.assert_allclose(softmax(found.logits, axis=1), softmax(best, axis=1), atol=5e-3)
    assert found.loss == min(found.losses)
    assert found.correct.tolist() == (found.logits.argmax(axis=1) == labels).tolist()
    assert found.accuracy == found.correct.mean()


@pytest.mark.parametrize(("n", "d", "classes"), [(200, 30, 4), (100, 300, 2)])
def test_labels_without_meaning_are_guessed_by_chance_alone(n: int, d: int, classes: int) -> None:
    accuracies, losses = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(n) % classes)
        found = cross_validate(rng.normal(size=(n, d)).astype(np.float32), labels, classes)
        accuracies.append(found.accuracy)
        losses.append(found.loss)
    spread = np.sqrt(1 / classes * (1 - 1 / classes) / (6 * n))
    assert abs(np.mean(accuracies) - 1 / classes) < 4 * spread
    assert np.mean(losses) > 0.97 * np.log(classes)


def test_easy_classes_are_separated_with_little_penalty() -> None:
    features, labels = blobs(spread=0.1)
    found = cross_validate(features, labels, 3)
    assert found.accuracy == 1
    assert found.l2 < 1e-2


def test_views_train_and_the_first_one_is_scored() -> None:
    features, labels = blobs(60, 10, spread=2.0)
    rng = np.random.default_rng(5)
    near = features[:, None] + rng.normal(size=(60, 3, 10)).astype(np.float32) * 0.01
    with_copies = cross_validate(features, labels, 3, extra=near)
    without = cross_validate(features, labels, 3)
    assert with_copies.logits.shape == (60, 3)
    assert with_copies.loss == pytest.approx(without.loss, abs=0.02)


def test_no_view_of_a_held_out_image_is_trained_on() -> None:
    # Labels without meaning, and views that give each image away: whoever trains on a view knows the image's label.
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(80) % 2)
    features = rng.normal(size=(80, 200)).astype(np.float32)
    views = np.repeat(features[:, None], 3, axis=1)
    assert cross_validate(features, labels, 2, extra=views).accuracy < 0.7


def test_classes_of_a_single_image_and_of_two_do_not_break_it() -> None:
    features, _ = blobs(14, 5)
    labels = np.array([0] * 10 + [1, 2, 3, 3])
    found = cross_validate(features, labels, 4)
    assert np.isfinite(found.loss)
    assert found.logits.shape == (14, 4)
    alone = cross_validate(features[:2], np.array([0, 1]), 2)
    assert alone.correct.tolist() == [False, False]


def test_more_classes_than_go_side_by_side_are_solved_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(90, 7, spread=1.5)
    together = cross_validate(features, labels, 3)
    monkeypatch.setattr(probe_module, "_MAX_COLUMNS", 7)  # two folds at a time
    apart = cross_validate(features, labels, 3)
    np.testing.assert_allclose(apart.losses, together.losses, atol=1e-3)
    assert apart.l2 == together.l2


def test_the_path_goes_from_strong_to_weak_and_stops_when_it_only_gets_worse() -> None:
    rng = np.random.default_rng(0)
    found = cross_validate(rng.normal(size=(60, 40)).astype(np.float32), np.arange(60) % 2, 2)
    assert list(L2_PATH) == sorted(L2_PATH, reverse=True)
    assert len(found.losses) < len(L2_PATH)
    assert found.l2 in L2_PATH[:3]


def test_the_same_data_give_the_same_bits() -> None:
    features, labels = blobs(100, 150)
    first, second = (cross_validate(features, labels, 3) for _ in range(2))
    assert np.array_equal(first.logits, second.logits)
    assert first.losses == second.losses
    one, two = (fit_probe(features, labels, 3, 0.1) for _ in range(2))
    assert np.array_equal(one.kernel, two.kernel)


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(5000, 6)  # three blocks of rows
    kernels = []
    for threads in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        kernels.append(fit_probe(features, labels, 3, 0.01).kernel)
    assert np.array_equal(*kernels)


def test_log_softmax_by_hand() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(np.log([[1.0, 3.0]]))), [[0.25, 0.75]])
    np.testing.assert_allclose(log_softmax(np.array([[1000.0, 0.0]])), [[0, -1000]])


# Groups and weights


def test_images_of_a_group_share_a_fold_and_the_others_stay_where_they_were() -> None:
    labels = np.repeat([0, 1], 30)
    plain = stratified_folds(labels, 5, seed=1)
    groups = np.arange(60)
    groups[[7, 41, 52]] = 7
    grouped = stratified_folds(labels, 5, seed=1, groups=groups)
    assert grouped[7] == grouped[41] == grouped[52] == plain[7]
    others = np.setdiff1d(np.arange(60), [41, 52])
    np.testing.assert_array_equal(grouped[others], plain[others])
    np.testing.assert_array_equal(stratified_folds(labels, 5, 1, np.zeros(60, int)), plain)


def test_copies_are_not_known_from_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.normal(size=(60, 40)), 2, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    alone = cross_validate(noise, labels, 2, path=(1e-2,))
    together = cross_validate(noise, labels, 2, path=(1e-2,), groups=np.repeat(np.arange(60), 2))
    assert alone.accuracy > 0.8, "each image's copy gives its label away"
    assert together.accuracy < 0.65


def test_class_weights_are_repeated_images() -> None:
    rng = np.random.default_rng(2)
    rows, labels = rng.normal(size=(80, 5)).astype(np.float32), np.repeat([0, 1], [60, 20])
    rows[:, 0] += labels
    weights = np.array([1.0, 3.0])
    # The same moments in both: a weight counts in the loss alone.
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    standard = ((rows - mean) / std).astype(np.float32)
    weighted = fit_probe(standard, labels, 2, 0.1, sample_weight=weights[labels])
    repeats = np.where(labels == 1, 3, 1)
    repeated = fit_probe(np.repeat(standard, repeats, axis=0), np.repeat(labels, repeats), 2, 0.1)
    own = weighted.logits(standard)
    assert (own.argmax(axis=1) == 1).sum() > (
        fit_probe(standard, labels, 2, 0.1).logits(standard).argmax(axis=1) == 1
    ).sum()
    assert np.mean(own.argmax(axis=1) == repeated.logits(standard).argmax(axis=1)) > 0.95


def test_equal_class_weights_change_nothing() -> None:
    rng = np.random.default_rng(3)
    rows, labels = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    plain, equal = cross_validate(rows, labels, 3), cross_validate(rows, labels, 3, class_weights=np.ones(3))
    np.testing.assert_array_equal(plain.logits, equal.logits)
    assert plain.losses == equal.losses


# scikit-learn's solution of the same problem


@pytest.mark.parametrize(
    ("n", "num_features", "classes", "l2"), [(80, 6, 3, 0.1), (200, 12, 2, 1e-3), (40, 90, 5, 1e-2), (300, 20, 10, 1.0)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_is_that_of_scikit_learn(
    n: int, num_features: int, classes: int, l2: float, weighted: bool
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(n)
    labels = np.arange(n) % classes
    features = (rng.normal(size=(classes, num_features))[labels] + 2 * rng.normal(size=(n, num_features))).astype("f4")
    weight = rng.uniform(0.2, 1.8, n) if weighted else np.ones(n)
    weight *= n / weight.sum()
    probe = fit_probe(features, labels, classes, l2, sample_weight=weight)

    rows = (features.astype(np.float64) - probe.mean) / probe.std
    # It minimizes C · sum of losses + ||w||² / 2. With two classes it has one column w where ours are -w/2 and w/2, which have
    # half its penalty: the same problem has twice the C.
    strength = (2 if classes == 2 else 1) / (n * l2)
    theirs = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=20_000)
    theirs.fit(rows, labels, sample_weight=weight)
    kernel, bias = theirs.coef_.T, theirs.intercept_
    if classes == 2:
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2

    def objective(kernel: np.ndarray, bias: np.ndarray) -> float:
        losses = -log_softmax(rows @ kernel + bias)[np.arange(n), labels]
        return float((weight * losses).mean() + l2 / 2 * (kernel**2).sum())

    ours = objective(probe.kernel.astype(np.float64), probe.bias.astype(np.float64))
    assert ours == pytest.approx(objective(kernel, bias), abs=1e-6)
    fresh = rng.normal(size=(500, num_features)).astype("f4") * 2
    expected = theirs.predict((fresh.astype(np.float64) - probe.mean) / probe.std)
    assert np.mean(probe.logits(fresh).argmax(axis=1) == expected) >= 0.998
