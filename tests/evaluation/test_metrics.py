"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import norm

from transferapp.evaluation.metrics import effective_size, fit_temperature, measure, wilson_interval

NAMES = ("cat", "dog", "fox")
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],  # cat, said cat
        [0.4, 0.5, 0.1],  # cat, said dog
        [0.1, 0.8, 0.1],  # dog, said dog
        [0.2, 0.6, 0.2],  # dog, said dog
        [0.6, 0.1, 0.3],  # dog, said cat
    ]
)
LABELS = np.array([0, 0, 1, 1, 1])


def test_a_confusion_worked_by_hand() -> None:
    metrics = measure(PROBABILITIES, LABELS, NAMES)
    assert metrics.num_images == 5
    assert metrics.confusion == ((1, 1, 0), (1, 2, 0), (0, 0, 0))
    assert metrics.accuracy == pytest.approx(3 / 5)
    assert metrics.loss == pytest.approx(
        -(math.log(0.7) + math.log(0.4) + math.log(0.8) + math.log(0.6) + math.log(0.1)) / 5
    )
    cat, dog, fox = metrics.classes
    assert (cat.name, cat.num_images, cat.precision, cat.recall, cat.f1) == ("cat", 2, 0.5, 0.5, 0.5)
    assert (dog.num_images, dog.precision, dog.recall, dog.f1) == (3, 2 / 3, 2 / 3, pytest.approx(2 / 3))
    assert (fox.num_images, fox.precision, fox.recall, fox.f1) == (0, 0, 0, 0)
    assert metrics.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)  # the fox, of which there is none, is left out


def test_a_class_said_but_absent_costs_the_others_and_a_class_never_said_has_no_precision() -> None:
    metrics = measure(np.array([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]]), np.array([0, 2]), NAMES)
    cat, _, fox = metrics.classes
    assert (cat.precision, cat.recall, cat.f1) == (0, 0, 0)
    assert (fox.precision, fox.recall, fox.f1) == (0.5, 1, pytest.approx(2 / 3))
    assert metrics.macro_f1 == pytest.approx(1 / 3)


def test_calibration_error_worked_by_hand() -> None:
    # Confidences .7 .5 .8 .6 .6: bin 7 holds one right, bin 5 one wrong, bin 8 one right, bin 6 one right and one wrong.
    expected = (abs(0.7 - 1) + abs(0.5 - 0) + abs(0.8 - 1) + 2 * abs(0.6 - 0.5)) / 5
    assert measure(PROBABILITIES, LABELS, NAMES).calibration_error == pytest.approx(expected)


def test_a_sure_and_right_classifier_is_calibrated() -> None:
    metrics = measure(np.eye(3)[LABELS], LABELS, NAMES)
    assert (metrics.accuracy, metrics.calibration_error, metrics.macro_f1) == (1, 0, 1)
    assert metrics.loss == 0


def test_probability_0_for_the_truth_is_a_large_loss_and_not_an_infinite_one() -> None:
    metrics = measure(np.array([[1.0, 0.0]]), np.array([1]), NAMES[:2])
    assert 80 < metrics.loss < 100
    json.dumps(metrics.to_json(), allow_nan=False)


def test_top_5_counts_the_classes_above_and_so_no_sort_decides_ties() -> None:
    ranked = np.array([[0.3, 0.2, 0.15, 0.13, 0.12, 0.1]] * 6)
    assert measure(ranked, np.arange(6), list("abcdef")).top5_accuracy == pytest.approx(5 / 6)
    tied = np.full((1, 6), 1 / 6)
    assert measure(tied, np.array([5]), list("abcdef")).top5_accuracy == 1
    assert measure(PROBABILITIES, LABELS, NAMES).top5_accuracy == 1


def test_json_holds_what_the_command_line_promises() -> None:
    document = measure(PROBABILITIES, LABELS, NAMES).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {"accuracy", "top5_accuracy", "loss", "num_images", "per_class"} <= set(document)
    assert document["per_class"]["cat"] == {"num_images": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert document["confusion"] == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]


# Wilson's interval


def test_wilson_by_hand() -> None:
    # 8 of 10 at z = 1.96: center (0.8 + 0.19208) / 1.38416, margin 1.96 sqrt(0.016 + 0.009604) / 1.38416.
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.49016, abs=1e-5)
    assert high == pytest.approx(0.94332, abs=1e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 10) == (0, pytest.approx(1.96**2 / (10 + 1.96**2)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + 1.96**2)), 1)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_is_where_its_definition_says(case: tuple[int, int]) -> None:
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):  # the proportions that the observed share is 1.96 of their standard errors away from
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(share - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / trials), abs=1e-9)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    n, truth = 40, 0.9
    counts = np.arange(n + 1)
    chance = np.array([math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in counts])
    inside = np.array([low <= truth <= high for low, high in (wilson_interval(int(k), n) for k in counts)])
    assert 0.92 < chance[inside].sum() < 0.98
    assert norm.cdf(1.96) - norm.cdf(-1.96) == pytest.approx(0.95, abs=1e-3)


def test_near_duplicates_make_the_interval_wider() -> None:
    scores, labels = np.tile(PROBABILITIES, (12, 1)), np.tile(LABELS, 12)
    alone = measure(scores, labels, NAMES)
    repeated = [np.repeat(each, 3, axis=0) for each in (scores, labels)]
    counted = measure(*repeated, NAMES, groups=np.repeat(np.arange(len(labels)), 3))
    assert counted.accuracy_interval == pytest.approx(alone.accuracy_interval, abs=2e-3)
    assert measure(*repeated, NAMES).accuracy_interval[0] > alone.accuracy_interval[0] + 0.01
    assert measure(scores, labels, NAMES, groups=np.arange(len(labels))) == alone


def test_where_all_are_right_images_of_one_group_count_as_one() -> None:
    right = np.ones(12, bool)
    assert effective_size(right, np.arange(12)) == 12
    assert effective_size(right, np.repeat(np.arange(4), 3)) == 4
    assert effective_size(np.arange(12) < 3, np.zeros(12, int)) == 1
    assert effective_size(np.arange(12) < 3, np.arange(12)) == pytest.approx(12)
    assert effective_size(np.arange(12) % 2 == 0, np.arange(12) // 2) == 12, "never more than the images"


# Temperature


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_a_known_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # labels drawn from softmax(logits)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.03)


def test_the_temperature_is_where_a_grid_finds_the_least_loss() -> None:
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(200, 4))
    labels = rng.integers(0, 4, 200)
    labels[:140] = logits[:140].argmax(axis=1)

    def loss(temperature: float) -> float:
        logarithms = np.log(softmax(logits / temperature, axis=1))
        own, spread = logarithms[np.arange(200), labels].mean(), logarithms.mean()
        return -float((201 * own + spread) / 202)

    grid = np.exp(np.linspace(np.log(0.2), np.log(5), 2000))
    assert fit_temperature(logits, labels) == pytest.approx(min(grid, key=loss), rel=5e-3)


def test_the_temperature_stays_in_its_range() -> None:
    logits = np.array([[0.3, 0.0], [0.0, 0.3]])
    assert 0.2 <= fit_temperature(np.tile(logits, (5000, 1)), np.tile([0, 1], 5000)) < 0.21  # always right
    assert 4.9 < fit_temperature(10 * logits, np.array([1, 0])) <= 5.0  # always wrong


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_images_that_are_all_right_do_not_make_the_next_one_certain(count: int) -> None:
    """As sure as `count` right answers in a row allow, by the rule of succession, and not at the limit of the range."""
    labels = np.arange(count) % 2
    logits = np.where(labels[:, None] == [0, 1], 5.0, -5.0)
    sure = softmax(logits / fit_temperature(logits, labels), axis=1).max(axis=1)
    assert sure == pytest.approx(1 - 0.5 / (count + 2), abs=2e-4)
