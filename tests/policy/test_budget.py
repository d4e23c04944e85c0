"""What a time budget allows, worked out by hand."""

from __future__ import annotations

import math

import pytest

from transferapp.policy.budget import Cost, Outlook, affordable, usual_epochs


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (math.inf, Outlook(8, 8)),
        (96.0, Outlook(8, 8)),  # 8 views of 10 s, 8 epochs of 2 s
        (95.9, Outlook(7, 7)),
        (36.0, Outlook(3, 3)),
        (12.0, Outlook(1, 1)),
        (11.9, Outlook(0, 0)),
        (0.0, Outlook(0, 0)),
        (-5.0, Outlook(0, 0)),
    ],
)
def test_each_epoch_brings_a_view_of_its_own(seconds: float, expected: Outlook) -> None:
    assert affordable(Cost(epoch=2.0, view=10.0), seconds, 8, 8) == expected


def test_views_are_seen_again_when_there_are_no_more() -> None:
    cost = Cost(epoch=1.0, view=10.0)
    assert affordable(cost, 100.0, 60, 8) == Outlook(20, 8)
    assert affordable(cost, 1000.0, 60, 8) == Outlook(60, 8)


def test_without_a_trunk_there_are_no_views() -> None:
    assert affordable(Cost(epoch=10.0), 45.0, 8, 0) == Outlook(4, 0)


def test_what_is_spent_in_any_case_comes_first() -> None:
    assert affordable(Cost(epoch=10.0, fixed=20.0), 45.0, 8, 0) == Outlook(2, 0)


@pytest.mark.parametrize(
    ("num_train", "batch_size", "epochs"),
    [(8_000, 64, 8), (2_432, 64, 8), (2_368, 64, 9), (800, 64, 24), (800, 32, 12), (200, 64, 40), (0, 64, 40)],
)
def test_few_pictures_are_passed_over_more_often(num_train: int, batch_size: int, epochs: int) -> None:
    assert usual_epochs(num_train, batch_size) == epochs
