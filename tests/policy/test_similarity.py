"""D worked out by hand, against a slow reference, and on random labels; the decision at its thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferapp.policy.similarity import (
    BY_CHANCE,
    SIMILAR_BELOW,
    StageScore,
    judge_similarity,
    label_divergence,
    winning_margin,
)


def slow_divergence(probabilities: np.ndarray, labels: list[int], num_folds: int, prior: float) -> float:
    """D as its definition reads, one number at a time."""
    num_classes, n, num_source = max(labels) + 1, len(labels), probabilities.shape[1]
    fold_of = {}
    dealt = 0
    for label in range(num_classes):
        for image in range(n):
            if labels[image] == label:
                fold_of[image] = dealt % num_folds
                dealt += 1
    total = 0.0
    for image in range(n):
        others = [i for i in range(n) if fold_of[i] != fold_of[image]]
        base = [
            (sum(labels[i] == label for i in others) + 1 / num_classes) / (len(others) + 1)
            for label in range(num_classes)
        ]
        likelihood = 0.0
        for source in range(num_source):
            seen = [prior * base[label] for label in range(num_classes)]
            for i in others:
                seen[labels[i]] += probabilities[i, source]
            likelihood += probabilities[image, source] * seen[labels[image]] / sum(seen)
        total -= math.log(likelihood)
    shares = [labels.count(label) / n for label in range(num_classes)]
    entropy = -sum(share * math.log(share) for share in shares if share)
    return total / n / entropy


def softmax_rows(rng: np.random.Generator, n: int, num_source: int, sharpness: float = 2.0) -> np.ndarray:
    logits = np.exp(sharpness * rng.normal(size=(n, num_source)))
    return logits / logits.sum(axis=1, keepdims=True)


def test_a_case_worked_by_hand() -> None:
    # Four images, two labels, two source classes that name the label outright; two folds of one image a label each.
    # Base: (1 + 1/2) / (2 + 1) = 1/2 each. Table of a source class: its one image and half a prior on its label,
    # half a prior on the other: (1.5, 0.5) / 2. Every image gets 3/4; entropy is ln 2.
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    divergence = label_divergence(probabilities, np.array([0, 0, 1, 1]), num_folds=2)
    assert divergence == pytest.approx(math.log(4 / 3) / math.log(2), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=18),
    st.integers(2, 5),
    st.integers(1, 6),
    st.floats(0.1, 3.0),
    st.integers(0, 1000),
)
def test_it_is_what_its_definition_says(
    labels: list[int], num_folds: int, num_source: int, prior: float, seed: int
) -> None:
    if len(set(labels)) < 2:
        labels[:2] = [0, 1]
    probabilities = softmax_rows(np.random.default_rng(seed), len(labels), num_source)
    fast = label_divergence(probabilities, np.array(labels), num_folds=num_folds, prior=prior)
    assert fast == pytest.approx(slow_divergence(probabilities, labels, num_folds, prior), rel=1e-9)


def test_source_classes_that_name_the_label_bring_it_near_0_with_many_images() -> None:
    labels = np.repeat(np.arange(10), 200)
    found = [label_divergence(np.eye(1000)[7 * labels[::step]], labels[::step]) for step in (20, 4, 1)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01


def test_source_classes_that_say_nothing_leave_it_at_1() -> None:
    labels = np.repeat(np.arange(10), 200)
    assert label_divergence(np.full((2000, 1000), 1e-3), labels) == pytest.approx(1, abs=1e-3)
    assert label_divergence(softmax_rows(np.random.default_rng(0), 2000, 1000), labels) == pytest.approx(1, abs=0.05)


def test_a_stronger_prior_pulls_towards_knowing_nothing() -> None:
    labels = np.repeat(np.arange(4), 20)
    found = [label_divergence(np.eye(50)[labels], labels, prior=prior) for prior in (0.1, 1.0, 10.0, 1e6)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("n", "num_classes"), [(20, 20), (40, 20), (100, 50), (60, 10), (360, 100)])
@pytest.mark.parametrize("sharpness", [0.5, 2.0, 8.0])
def test_labels_without_meaning_never_look_similar_by_chance(n: int, num_classes: int, sharpness: float) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(n) % num_classes)
        assert label_divergence(softmax_rows(rng, n, 1000, sharpness), labels) >= 0.9


def test_classes_of_one_image_each_are_scored_and_not_forgotten() -> None:
    # Nothing can be learned of a class whose only image is held out: worse than knowing nothing.
    labels = np.arange(6)
    assert label_divergence(np.eye(6), labels) > 1
    assert label_divergence(np.eye(6), labels) == label_divergence(np.eye(6), labels)


def test_one_label_alone_has_nothing_to_tell_apart() -> None:
    assert label_divergence(np.full((5, 3), 1 / 3), np.zeros(5, dtype=int)) == 0


def test_the_order_of_source_classes_and_of_labels_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(5), 10))
    probabilities = softmax_rows(rng, 50, 40)
    found = label_divergence(probabilities, labels)
    assert label_divergence(probabilities[:, rng.permutation(40)], labels) == pytest.approx(found, rel=1e-12)
    # Labels decide which fold a left-over falls into; ten a class leave none.
    assert label_divergence(probabilities, 4 - labels) == pytest.approx(found, rel=1e-12)


def score(stage: str, accuracy: float, gain: float = 0.0, standard_error: float = 0.01) -> StageScore:
    return StageScore(stage, accuracy, 1.0, gain, standard_error)


TOP = score("top", 0.9, 0.0, 0.0)


@pytest.mark.parametrize(
    ("divergence", "similarity"),
    [
        (0.0, "similar"),
        (math.nextafter(SIMILAR_BELOW, 0), "similar"),
        (SIMILAR_BELOW, "different"),
        (1.2, "different"),
    ],
)
def test_the_border_of_d(divergence: float, similarity: str) -> None:
    finding = judge_similarity(divergence, [score("block3", 0.8, -0.1), TOP])
    assert finding.similarity == similarity
    assert finding.divergence == divergence
    assert [reason.topic for reason in finding.reasons] == ["similarity", "similarity"]
    assert finding.reasons[0].values == {"divergence": divergence, "similar_below": SIMILAR_BELOW}
    assert (finding.reasons[1].values["stage"], finding.reasons[1].values["accuracy"]) == ("top", 0.9)


def test_the_threshold_is_that_of_the_design() -> None:
    assert SIMILAR_BELOW == 0.55


def test_an_earlier_stage_that_is_clearly_ahead_overrules_a_low_d() -> None:
    finding = judge_similarity(0.2, [score("block3", 0.94, 0.04, 0.02), TOP])
    assert finding.similarity == "different"
    assert finding.earlier_stage_wins
    assert finding.reasons[1].values == vars(score("block3", 0.94, 0.04, 0.02))


@pytest.mark.parametrize("gain", [0.0, 0.01, 0.02, 0.03])
def test_an_earlier_stage_that_is_ahead_by_chance_is_a_tie(gain: float) -> None:
    finding = judge_similarity(0.2, [score("block3", 0.9 + gain, gain, 0.02), TOP])
    assert finding.similarity == "similar"
    assert not finding.earlier_stage_wins
    assert finding.reasons[1].values["gain_over_top"] == gain


def test_the_best_of_more_stages_must_be_further_ahead() -> None:
    others = [score(f"block{i}", 0.8, -0.1, 0.02) for i in range(4)]
    ahead = score("block5", 0.94, 0.04, 0.02)
    assert judge_similarity(0.2, [ahead, TOP]).earlier_stage_wins
    assert not judge_similarity(0.2, [*others, ahead, TOP]).earlier_stage_wins


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_best_of_stages_that_are_no_better_wins_in_one_of_twenty_cases(count: int) -> None:
    ahead = np.random.default_rng(0).normal(size=(20_000, count)).max(axis=1)
    assert (ahead > winning_margin(count)).mean() == pytest.approx(BY_CHANCE, abs=0.005)


def test_the_earliest_of_equal_stages_speaks_and_a_single_stage_has_no_second_opinion() -> None:
    tied = judge_similarity(0.2, [score("block2", 0.95, 0.05), score("block3", 0.95, 0.05), TOP])
    assert tied.reasons[1].values["stage"] == "block2"
    assert judge_similarity(0.2, [TOP]).similarity == "similar"


def test_images_of_one_group_are_held_out_together() -> None:
    """Six near-duplicates of each of ten scenes with arbitrary labels: a table that has seen five of them knows the sixth."""
    rng = np.random.default_rng(0)
    scenes, labels = rng.dirichlet(np.full(100, 0.01), 60), rng.integers(0, 3, 60)
    probabilities, labels, groups = np.repeat(scenes, 6, axis=0), np.repeat(labels, 6), np.repeat(np.arange(60), 6)
    assert label_divergence(probabilities, labels) < 0.6
    assert label_divergence(probabilities, labels, folds=groups % 5) > 0.9
