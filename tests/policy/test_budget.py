"""Time budgets: batch sizes, epochs and views, worked out by hand."""

from __future__ import annotations

import math

import pytest

from transferapp.policy.budget import (
    FINE_TUNED_FROM,
    Affordable,
    Cost,
    affordable,
    default_budget,
    least_epochs,
    usual_batch_size,
    usual_epochs,
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (math.inf, Affordable(8, 8)),
        (96.0, Affordable(8, 8)),  # 8 views of 10 s, 8 epochs of 2 s
        (95.9, Affordable(7, 7)),
        (36.0, Affordable(3, 3)),
        (12.0, Affordable(1, 1)),
        (11.9, Affordable(0, 0)),
        (0.0, Affordable(0, 0)),
        (-5.0, Affordable(0, 0)),
    ],
)
def test_each_epoch_brings_a_view_of_its_own(seconds: float, expected: Affordable) -> None:
    assert affordable(Cost(epoch=2.0, view=10.0), seconds, 8, 8) == expected


def test_views_are_seen_again_when_there_are_no_more() -> None:
    cost = Cost(epoch=1.0, view=10.0)
    assert affordable(cost, 100.0, 60, 8) == Affordable(20, 8)
    assert affordable(cost, 1000.0, 60, 8) == Affordable(60, 8)


def test_without_a_trunk_there_are_no_views() -> None:
    assert affordable(Cost(epoch=10.0), 45.0, 8, 0) == Affordable(4, 0)


def test_what_is_spent_in_any_case_comes_first() -> None:
    assert affordable(Cost(epoch=10.0, fixed=20.0), 45.0, 8, 0) == Affordable(2, 0)


@pytest.mark.parametrize(
    ("num_train", "batch_size", "epochs"),
    [(8_000, 64, 8), (2_432, 64, 8), (2_368, 64, 9), (800, 64, 24), (800, 32, 12), (200, 64, 40), (0, 64, 40)],
)
def test_few_images_are_passed_over_more_often(num_train: int, batch_size: int, epochs: int) -> None:
    assert usual_epochs(num_train, batch_size) == epochs


@pytest.mark.parametrize(
    ("num_train", "batch_size"),
    [(0, 16), (200, 16), (1_280, 16), (3_199, 16), (3_200, 32), (6_399, 32), (6_400, 64), (1_000_000, 64)],
)
def test_few_images_are_taken_in_small_batches(num_train: int, batch_size: int) -> None:
    assert usual_batch_size(num_train) == batch_size


@pytest.mark.parametrize(
    ("wanted", "num_train", "batch_size", "least"),
    [(8, 12_000, 64, 3), (8, 1_280, 16, 3), (15, 1_280, 64, 8), (20, 228, 16, 10), (2, 228, 16, 2), (40, 0, 16, 40)],
)
def test_half_of_the_steps_that_training_takes_are_the_least_to_be_started(
    wanted: int, num_train: int, batch_size: int, least: int
) -> None:
    assert least_epochs(wanted, num_train, batch_size) == least


@pytest.mark.parametrize(
    ("size", "similarity", "num_images", "tune", "seconds"),
    [
        ("large", "similar", 5_000, "auto", 600.0),
        ("large", "different", 5_000, "auto", 600.0),
        ("large", "different", 40, "auto", 600.0),  # the user may call any set large
        ("small", "similar", 900, "auto", 0.0),
        ("small", "similar", 100, "auto", 0.0),
        ("small", "different", 900, "auto", 120.0),
        ("small", "different", FINE_TUNED_FROM, "auto", 120.0),
        ("small", "different", FINE_TUNED_FROM - 1, "auto", 0.0),
        ("small", "different", 900, "none", 120.0),  # nothing is proposed with `none`, whatever the time
        ("small", "similar", 100, "last", 600.0),  # what the user asks for gets time
        ("small", "different", 100, "all", 600.0),
    ],
)
def test_the_default_budget(size: str, similarity: str, num_images: int, tune: str, seconds: float) -> None:
    assert default_budget(size, similarity, num_images, tune) == seconds


def test_small_different_sets_are_fine_tuned_from_200_images() -> None:
    assert FINE_TUNED_FROM == 200
