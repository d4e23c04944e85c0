"""Class weights, and the decision to use them."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.policy.class_weights import balanced_weights, imbalance, judge_class_weights

LABELS = np.array([0] * 90 + [1] * 10)


def right(of_first: int, of_second: int) -> np.ndarray:
    """So many right of the ninety, and of the ten."""
    return np.concatenate([np.arange(90) < of_first, np.arange(10) < of_second])


def test_balanced_weights_let_classes_count_the_same_and_images_one_on_average() -> None:
    weights = balanced_weights([90, 10])
    assert weights.tolist() == pytest.approx([100 / 180, 5])
    assert weights @ [90, 10] == pytest.approx(100)
    assert balanced_weights([30, 0, 10]).tolist() == pytest.approx([2 / 3, 0, 2])


def test_imbalance_is_of_the_classes_that_have_images() -> None:
    assert imbalance([30, 0, 10]) == 3
    assert imbalance([]) == imbalance([5]) == 1


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ((88, 2), (87, 8), "balanced"),  # the small class gains much, the large one loses next to nothing
        ((88, 2), (60, 8), "none"),  # too dear: plain accuracy falls
        ((88, 7), (88, 7), "none"),
        ((88, 7), (88, 8), "none"),  # one image is no more than one standard error
        ((88, 8), (90, 2), "none"),
    ],
)
def test_weights_must_pay_and_not_cost(before: tuple[int, int], after: tuple[int, int], kind: str) -> None:
    finding = judge_class_weights(LABELS, right(*before), right(*after), np.arange(100))
    assert finding.kind == kind
    assert finding.reason.values == {
        "macro_gain": finding.macro_gain,
        "macro_error": finding.macro_error,
        "accuracy_gain": finding.accuracy_gain,
        "accuracy_error": finding.accuracy_error,
    }


def test_the_figures_are_paired_by_image_and_by_class() -> None:
    finding = judge_class_weights(LABELS, right(88, 2), right(87, 8), np.arange(100))
    # The ninety: one of them lost. The ten: six gained.
    assert finding.macro_gain == pytest.approx((-1 / 90 + 0.6) / 2)
    variances = (1 / 90 - 1 / 90**2) * 90 / 89 / 90 + (0.6 - 0.36) * 10 / 9 / 10
    assert finding.macro_error == pytest.approx(np.sqrt(variances * 100 / 99) / 2)
    assert finding.accuracy_gain == pytest.approx(0.05)


def test_near_duplicates_count_as_one_image() -> None:
    labels, groups = np.repeat(LABELS, 4), np.repeat(np.arange(100), 4)
    alone = judge_class_weights(LABELS, right(88, 2), right(87, 8), np.arange(100))
    four = judge_class_weights(labels, np.repeat(right(88, 2), 4), np.repeat(right(87, 8), 4), groups)
    assert four.macro_gain == pytest.approx(alone.macro_gain)
    assert four.macro_error == pytest.approx(alone.macro_error, rel=0.05)
    assert four.accuracy_error == pytest.approx(alone.accuracy_error)


def test_a_class_of_one_image_has_no_variance_and_does_no_harm() -> None:
    finding = judge_class_weights(
        np.array([0, 0, 1]), np.array([True, True, False]), np.array([True, True, True]), np.arange(3)
    )
    assert finding.macro_gain == pytest.approx(0.5)
    assert finding.macro_error == 0
