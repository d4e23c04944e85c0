"""Calibration of novelty on held-out images, and by leaving one out."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.bundle.novelty import LEAST_HELD_OUT, NEIGHBORS
from transferapp.evaluation.novelty import (
    MOST_IMAGES,
    MOST_NUMBERS,
    NoveltyFigures,
    calibrate_novelty,
    images_kept,
    measure_novelty,
)


def draw(count: int, seed: int, shift: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)) + shift


def test_leaving_one_out_refuses_as_many_new_images_as_promised() -> None:
    shares = []
    for seed in range(40):
        novelty = calibrate_novelty(draw(99, seed), groups=np.arange(99))
        assert novelty is not None
        figures = measure_novelty(novelty, draw(200, 1000 + seed))
        shares.append(figures.num_refused / 200)
    assert np.mean(shares) == pytest.approx(0.05, abs=0.012)


def test_duplicates_do_not_make_held_out_images_look_familiar() -> None:
    once = draw(60, 0)
    twice, groups = once.repeat(2, axis=0), np.arange(60).repeat(2)
    careful, careless = calibrate_novelty(twice, groups=groups), calibrate_novelty(twice, groups=np.arange(120))
    assert careful is not None
    assert careless is not None
    assert (careful.held_out < careless.held_out).mean() > 0.9


def test_held_out_images_calibrate_trained_features() -> None:
    novelty = calibrate_novelty(draw(80, 0), held_out=draw(30, 1))
    assert novelty is not None
    assert (len(novelty.features), len(novelty.held_out)) == (80, 30)
    np.testing.assert_allclose(novelty.held_out, np.sort(novelty.similarity(draw(30, 1))))
    foreign = measure_novelty(novelty, draw(50, 2, shift=-2.0))
    assert (foreign.num_test, foreign.num_refused) == (50, 50)


@pytest.mark.parametrize(
    ("groups", "held_out"),
    [
        (np.arange(LEAST_HELD_OUT - 1), None),
        (np.arange(40) % NEIGHBORS, None),
        (None, draw(LEAST_HELD_OUT - 1, 1)),
    ],
    ids=["few images", "few groups", "few held out"],
)
def test_too_few_images_say_nothing(groups: np.ndarray | None, held_out: np.ndarray | None) -> None:
    features = draw(40 if groups is None else len(groups), 0)
    assert calibrate_novelty(features, groups=groups, held_out=held_out) is None


def test_without_test_images_there_are_counts_alone() -> None:
    novelty = calibrate_novelty(draw(50, 0), groups=np.arange(50))
    assert novelty is not None
    assert measure_novelty(novelty, np.empty((0, 6))) == NoveltyFigures(50, 50)


def test_the_file_has_a_largest_size() -> None:
    assert images_kept(10) == MOST_IMAGES
    assert images_kept(5_000) * 5_000 <= MOST_NUMBERS
    assert images_kept(10**9) > NEIGHBORS
