"""Choice among candidates: accuracy, then loss; a tie keeps the linear classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from transferapp.policy.choose import Blend, cannot_win, choose, merit


@dataclass(frozen=True)
class Figures:
    """A candidate as far as the choice looks at it."""

    name: str
    accuracy: float | None = None
    loss: float | None = None

    @property
    def correct(self) -> np.ndarray | None:
        """So many images that a percent of them is a clear difference."""
        return None if self.accuracy is None else np.arange(10_000) < 10_000 * self.accuracy


SOLVED, IMAGES = Figures("solved", 0.8, 0.5), np.arange(10_000)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([], "solved"),
        ([Figures("worse", 0.7, 0.1)], "solved"),
        ([Figures("tie", 0.8, 0.1)], "solved"),  # a smaller loss does not decide a tie with the linear classifier
        ([Figures("better", 0.81, 0.9)], "better"),
        ([Figures("better", 0.81, 0.9), Figures("best", 0.9, 0.9)], "best"),
        ([Figures("first", 0.9, 0.4), Figures("smaller loss", 0.9, 0.3)], "smaller loss"),
        ([Figures("first", 0.9, 0.3), Figures("same", 0.9, 0.3)], "first"),
        ([Figures("untrained")], "solved"),
        ([Figures("untrained"), Figures("better", 0.81, 0.9)], "better"),
        ([Figures("NaN", 0.9, math.nan)], "solved"),
        ([Figures("infinite", 0.9, math.inf)], "solved"),
        ([Figures("NaN", 0.9, math.nan), Figures("better", 0.81, 0.9)], "better"),
    ],
)
def test_the_most_accurate_candidate_ships_if_it_beats_the_solved_one(others: list[Figures], chosen: str) -> None:
    assert choose([SOLVED, *others], IMAGES).name == chosen


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([Figures("worse", 0.3, 2.0)], "worse"),
        ([Figures("worse", 0.3, 2.0), Figures("less so", 0.4, 2.0)], "less so"),
        ([Figures("NaN", 0.9, math.nan), Figures("worse", 0.3, 2.0)], "worse"),
        ([Figures("untrained"), Figures("worse", 0.3, 2.0)], "worse"),
        ([Figures("untrained")], "solved"),
        ([], "solved"),
    ],
)
def test_insisting_passes_over_the_solved_one_where_anything_was_trained(others: list[Figures], chosen: str) -> None:
    assert choose([SOLVED, *others], IMAGES, insist=True).name == chosen


def test_without_figures_of_the_solved_one_a_trained_candidate_ships() -> None:
    assert choose([Figures("solved"), Figures("trained", 0.1, 3.0)], IMAGES).name == "trained"
    assert choose([Figures("solved"), Figures("untrained")], IMAGES).name == "solved"


def test_candidates_without_a_finite_loss_come_last() -> None:
    order = [(None, None), (0.9, math.nan), (0.0, 5.0), (0.5, 0.7), (0.5, 0.6), (0.6, 0.9)]
    assert sorted(order, key=lambda figures: merit(*figures)) == order


@pytest.mark.parametrize(
    ("best", "share", "expected"),
    [(0.70, 0.5, True), (0.70, 0.4, False), (0.73, 0.9, False), (0.85, 1.0, False)],
    ids=["clearly behind", "too soon to tell", "within two standard errors", "ahead"],
)
def test_a_run_far_behind_is_given_up_from_half_its_epochs(best: float, share: float, expected: bool) -> None:
    assert cannot_win(best, 0.8, 100, share) is expected  # a standard error is four points


def test_a_single_image_is_never_far_behind() -> None:
    assert not cannot_win(0.98, 1.0, 50, 0.9)
    assert cannot_win(0.94, 1.0, 50, 0.9)


@dataclass(frozen=True, eq=False)
class Answers:
    """A candidate that is right on some of 100 validation images."""

    name: str
    correct: np.ndarray
    loss: float | None = 0.5

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def answers(name: str, right: int, start: int = 0) -> Answers:
    """Right on `right` of 100 images, from `start` on."""
    return Answers(name, np.isin(np.arange(100), (np.arange(right) + start) % 100))


@pytest.mark.parametrize(
    ("tuned", "blend", "chosen"),
    [
        ((80, 10), (86, 3), "blend"),  # neither is clearly better, and the average is, by more than a standard error
        ((80, 10), (82, 5), "solved"),  # by less than one
        ((80, 0), (80, 0), "solved"),  # they err on the same images
        ((86, 0), (85, 0), "blend"),  # the tuned one is clearly better, but may only look so
        ((95, 0), (92, 0), "tuned"),  # it leads by far
        ((60, 10), (86, 3), "solved"),  # it is far behind
    ],
)
def test_the_average_ships_where_the_two_are_about_as_good(
    tuned: tuple[int, int], blend: tuple[int, int], chosen: str
) -> None:
    solved, network, average = answers("solved", 80), answers("tuned", *tuned), answers("blend", *blend)
    images = np.arange(100)
    assert choose([solved, network], images, blend=Blend(average, network)).name == chosen
    assert choose([solved, network], images, insist=True, blend=Blend(average, network)).name == "tuned"


def test_a_trained_head_is_not_passed_over_for_the_average_of_another_network() -> None:
    solved, network, average = answers("solved", 80), answers("tuned", 80, 10), answers("blend", 86, 3)
    images = np.arange(100)
    assert choose([solved, answers("head", 82), network], images, blend=Blend(average, network)).name == "blend"
    assert choose([solved, answers("head", 90), network], images, blend=Blend(average, network)).name == "head"
    far_behind = answers("tuned", 60, 10)
    assert choose([solved, answers("head", 82), far_behind], images, blend=Blend(average, far_behind)).name == "solved"


def test_a_network_that_clearly_leads_its_average_ships_alone() -> None:
    images = np.arange(1000)
    solved, network, average = (Answers(name, images < right) for name, right in (("s", 800), ("t", 812), ("b", 807)))
    assert choose([solved, network], images, blend=Blend(average, network)).name == "t"
    average = Answers("b", images < 810)
    assert choose([solved, network], images, blend=Blend(average, network)).name == "b"


def test_few_images_do_not_let_a_worse_average_ship() -> None:
    images = np.arange(10)
    solved, network, average = (Answers(name, images < right) for name, right in (("s", 8), ("t", 7), ("b", 6)))
    assert choose([solved, network], images, blend=Blend(average, network)).name == "s"
    assert choose([solved, network], np.zeros(10, int), blend=Blend(Answers("b", images < 9), network)).name == "s"
