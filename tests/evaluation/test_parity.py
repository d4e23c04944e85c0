"""Differences between the probabilities of Keras and of the served network, and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.evaluation.parity import MAX_DIFFERENCE, MIN_AGREEMENT, compare

REFERENCE = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])


def shifted(by: float, rows: int = 4) -> np.ndarray:
    """The reference with `by` moved from the first class to the second in that many rows."""
    moved = REFERENCE.copy()
    moved[:rows] += np.array([-by, by])
    return moved


def test_figures_are_those_worked_out_by_hand() -> None:
    served = REFERENCE + np.array([[0.0, 0.0], [0.02, -0.02], [-0.21, 0.21], [0.01, -0.01]])
    parity = compare(REFERENCE, served, "bf16")
    assert (parity.precision, parity.num_images) == ("bf16", 4)
    assert parity.max_difference == pytest.approx(0.21)
    assert parity.mean_difference == pytest.approx((0.02 + 0.21 + 0.01) * 2 / 8)
    assert parity.agreement == 0.75  # the third image changes its class
    assert parity.to_json() == {
        "precision": "bf16",
        "num_images": 4,
        "max_difference": parity.max_difference,
        "mean_difference": parity.mean_difference,
        "agreement": 0.75,
    }


def test_the_same_probabilities_are_acceptable_at_any_precision() -> None:
    for precision in MAX_DIFFERENCE:
        parity = compare(REFERENCE, REFERENCE.copy(), precision)
        assert (parity.max_difference, parity.mean_difference, parity.agreement) == (0, 0, 1)
        assert parity.acceptable


@pytest.mark.parametrize("precision", MAX_DIFFERENCE)
def test_a_difference_is_acceptable_up_to_the_limit_of_its_precision(precision: str) -> None:
    limit = MAX_DIFFERENCE[precision]
    assert compare(REFERENCE, shifted(0.9 * limit, rows=1), precision).acceptable
    assert not compare(REFERENCE, shifted(1.1 * limit, rows=1), precision).acceptable


def test_full_precision_is_held_to_more_than_half() -> None:
    served = shifted(0.01, rows=1)
    assert compare(REFERENCE, served, "bf16").acceptable
    assert not compare(REFERENCE, served, "f32").acceptable


@pytest.mark.parametrize(("changed", "acceptable"), [(0, True), (1, True), (2, True), (3, False)])
def test_few_images_may_change_their_class(changed: int, acceptable: bool) -> None:
    reference = np.tile([0.5001, 0.4999], (100, 1))
    served = reference.copy()
    served[:changed] = [0.4999, 0.5001]
    parity = compare(reference, served, "f32")
    assert parity.agreement == pytest.approx(1 - changed / 100)
    assert (parity.agreement >= MIN_AGREEMENT) == acceptable == parity.acceptable


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_never_acceptable(bad: float) -> None:
    served = REFERENCE.copy()
    served[3, 1] = bad
    for precision in MAX_DIFFERENCE:
        assert not compare(REFERENCE, served, precision).acceptable
        assert not compare(served, REFERENCE, precision).acceptable
        assert not compare(served, served, precision).acceptable, "wrong on both sides is no agreement"
