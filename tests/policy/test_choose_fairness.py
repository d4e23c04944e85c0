"""The choice on validation images is fair: simulated trainings that are no better seldom win, real gains mostly do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from transferapp.policy.choose import Blend, choose, paired_gain, standard_error

EPOCHS, CANDIDATES, SOLVED_ACCURACY = 8, 2, 0.85


@dataclass(frozen=True, eq=False)
class Simulated:
    """A classifier as the choice looks at it."""

    correct: np.ndarray
    loss: float = 1.0

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def share_of_wins(gain: float, num_images: int, *, between_epochs: float, trials: int = 400) -> float:
    """Return how often a trained candidate is chosen whose every epoch is truly better by `gain`.

    An image is right where a margin is positive: the image's own, shared by all classifiers, plus a part of the classifier
    and a part of each epoch with raw and with averaged weights. A fit compares the best of all these.
    """
    rng = np.random.default_rng(0)
    total = np.sqrt(1 + 0.6**2 + between_epochs**2)
    wins = 0
    for _ in range(trials):
        image = rng.normal(size=num_images)

        def right(accuracy: float, own: np.ndarray, image: np.ndarray = image) -> np.ndarray:
            noise = between_epochs * rng.normal(size=num_images)
            return image + own + noise + ndtri(accuracy) * total > 0

        solved = Simulated(right(SOLVED_ACCURACY, 0.6 * rng.normal(size=num_images)))
        trained = []
        for _ in range(CANDIDATES):
            own = 0.6 * rng.normal(size=num_images)
            epochs = [Simulated(right(SOLVED_ACCURACY + gain, own)) for _ in range(2 * EPOCHS)]
            trained.append(max(epochs, key=lambda each: each.accuracy))
        wins += choose([solved, *trained], np.arange(num_images)) is not solved
    return wins / trials


@pytest.mark.parametrize("between_epochs", [0.15, 0.35])
@pytest.mark.parametrize("num_images", [60, 100, 400])
def test_no_better_candidates_win_in_at_most_a_fifth_of_the_cases(num_images: int, between_epochs: float) -> None:
    assert share_of_wins(0.0, num_images, between_epochs=between_epochs) <= 0.2


@pytest.mark.parametrize("between_epochs", [0.15, 0.35])
def test_a_gain_of_five_points_at_100_images_is_mostly_taken(between_epochs: float) -> None:
    assert share_of_wins(0.05, 100, between_epochs=between_epochs) >= 0.6
    assert share_of_wins(0.10, 100, between_epochs=between_epochs) >= 0.95


def true_gain_of_choices(gain: float, num_images: int, *, trials: int = 400) -> float:
    """Return how much more accurate what ships is than the linear classifier, where the average of both is a candidate.

    As above, with the margins of the two averaged: their own parts partly cancel, so the average of equal ones is better.
    """
    rng = np.random.default_rng(0)
    own_variance = 0.6**2 + 0.15**2
    total, of_average = np.sqrt(1 + own_variance), np.sqrt(1 + own_variance / 2)
    levels = [ndtri(SOLVED_ACCURACY) * total, ndtri(SOLVED_ACCURACY + gain) * total]
    average = float(ndtr(np.mean(levels) / of_average))
    gained = 0.0
    for _ in range(trials):
        image, *own = rng.normal(size=(3, num_images)) * np.array([[1], [0.6], [0.6]])

        def margins(index: int, image: np.ndarray = image, own: list[np.ndarray] = own) -> np.ndarray:
            return np.asarray(image + own[index] + 0.15 * rng.normal(size=num_images) + levels[index])

        linear = margins(0)
        epochs = [margins(1) for _ in range(2 * EPOCHS)]
        tuned = max(epochs, key=lambda each: (each > 0).mean())
        solved, trained, blended = (Simulated(each > 0) for each in (linear, tuned, (linear + tuned) / 2))
        chosen = choose([solved, trained], np.arange(num_images), blend=Blend(blended, trained))
        gained += {id(solved): 0.0, id(trained): gain, id(blended): average - SOLVED_ACCURACY}[id(chosen)]
    return gained / trials


def test_the_average_of_classifiers_that_are_as_good_is_taken_and_gains() -> None:
    assert true_gain_of_choices(0.0, 100) > 0.004
    assert true_gain_of_choices(0.0, 400) > 0.008


def test_the_average_with_a_worse_network_loses_little() -> None:
    assert true_gain_of_choices(-0.03, 100) > -0.001
    assert true_gain_of_choices(-0.08, 100) > -0.003


def test_gain_and_standard_error_are_paired_by_image() -> None:
    first, second = np.array([1, 1, 0, 1, 1], bool), np.array([1, 0, 0, 1, 0], bool)
    gain, error = paired_gain(first, second, np.arange(5))
    assert gain == pytest.approx(0.4)
    assert error == pytest.approx(np.std([0, 1, 0, 0, 1], ddof=1) / np.sqrt(5))
    assert paired_gain(first, first, np.arange(5)) == (0.0, 0.0)


def test_duplicates_of_an_image_count_as_one_image() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    alone = standard_error(values, np.arange(40))
    assert standard_error(np.repeat(values, 5), np.repeat(np.arange(40), 5)) == pytest.approx(alone)
    assert standard_error(np.repeat(values, 5), np.arange(200)) == pytest.approx(alone / np.sqrt(5), rel=0.02)
    assert standard_error(np.repeat(values, 5), np.repeat(7 * np.arange(40)[::-1], 5)) == pytest.approx(alone)


def test_the_error_with_groups_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), rng.integers(1, 8, 60))
    means, errors = [], []
    for _ in range(2000):
        values = rng.normal(size=60)[groups] + rng.normal(size=len(groups))
        means.append(values.mean())
        errors.append(standard_error(values, groups))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


def test_no_gain_is_beyond_the_error_of_a_single_group() -> None:
    right, wrong = np.ones(6, bool), np.zeros(6, bool)
    gain, error = paired_gain(right, wrong, np.zeros(6, int))
    assert error >= gain == 1
    solved, better = Simulated(wrong), Simulated(right)
    assert choose([solved, better], np.zeros(6, int)) is solved
    assert choose([solved, better], np.arange(6)) is better
