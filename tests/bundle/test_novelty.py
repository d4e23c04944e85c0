"""The novelty score: similarities by hand, its calibration, and files that are not one."""

from __future__ import annotations

import io

import numpy as np
import pytest

from transferapp.bundle.novelty import LEAST_HELD_OUT, NEIGHBORS, Novelty, directions, is_known

HELD_OUT = np.linspace(0.1, 0.9, 19, dtype=np.float32)


def directions_2d(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def score_of(features: np.ndarray, held_out: np.ndarray = HELD_OUT) -> Novelty:
    return Novelty(directions(features).astype(np.float16), held_out)


def test_the_similarity_is_the_mean_cosine_to_the_nearest_images() -> None:
    novelty = score_of(directions_2d(0, 10, 20, 30, 40, 170, 180))
    asked = 7 * directions_2d(20)
    expected = np.cos(np.deg2rad([20, 10, 0, 10, 20])).mean()
    assert novelty.similarity(asked) == pytest.approx(expected, abs=1e-3)


def test_fewer_training_images_than_neighbors_are_all_compared() -> None:
    novelty = score_of(directions_2d(0, 60))
    assert novelty.similarity(directions_2d(0)) == pytest.approx(0.75, abs=1e-3)


def test_an_image_is_not_compared_with_its_own_group() -> None:
    features = directions_2d(0, 0, 40, 50, 60, 70, 80)
    groups = np.array([0, 0, 2, 3, 4, 5, 6])
    found = score_of(features).similarity(features, groups)
    assert found[0] == found[1] == pytest.approx(np.cos(np.deg2rad([40, 50, 60, 70, 80])).mean(), abs=1e-3)


def test_blocks_of_rows_give_what_one_row_gives() -> None:
    rng = np.random.default_rng(0)
    novelty, asked = score_of(rng.normal(size=(40, 8))), rng.normal(size=(1100, 8))
    one_by_one = np.concatenate([novelty.similarity(asked[i : i + 1]) for i in range(len(asked))])
    np.testing.assert_allclose(novelty.similarity(asked), one_by_one, atol=1e-6)


def test_the_score_is_the_share_of_held_out_images_at_least_as_similar() -> None:
    features = np.ones((NEIGHBORS, 2))
    held_out = np.sort(np.array([0.2, 0.4, 0.6, 0.8] * 5, np.float32))
    novelty = score_of(features, held_out)
    angles = np.rad2deg(np.arccos([0.9, 0.7, 0.5, 0.3, 0.1])) + 45
    np.testing.assert_allclose(novelty.score(directions_2d(*angles)), np.array([0, 5, 10, 15, 20]) / 21)


def test_one_in_twenty_held_out_images_is_the_limit() -> None:
    assert is_known(18 / 20)
    assert not is_known(19 / 20)  # 19 held-out images, all of them more similar
    assert not is_known(0.999)
    assert is_known(0.0)


def test_new_images_of_the_distribution_are_refused_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    refused = []
    for _ in range(60):
        bank, held_out, new = (rng.normal(size=(n, 6)) + 2 for n in (80, 60, 200))
        similarities = score_of(bank).similarity(held_out)
        novelty = score_of(bank, np.sort(similarities).astype(np.float32))
        refused.append(np.mean([not is_known(score) for score in novelty.score(new)]))
    assert np.mean(refused) == pytest.approx(3 / 61, abs=0.012)


def test_zero_features_are_not_divided_by_zero() -> None:
    novelty = score_of(directions_2d(0, 10, 20, 30, 40))
    assert not is_known(novelty.score(np.zeros((1, 2)))[0])


def test_it_is_read_as_it_was_written() -> None:
    novelty = score_of(np.random.default_rng(2).normal(size=(30, 4)))
    read = Novelty.from_bytes(novelty.to_bytes())
    np.testing.assert_array_equal(read.features, novelty.features)
    np.testing.assert_array_equal(read.held_out, novelty.held_out)
    assert (read.features.dtype, read.held_out.dtype) == (np.float16, np.float32)


def saved(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


GOOD = {"features": np.eye(3, dtype=np.float16), "held_out": HELD_OUT}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip file",
        saved(**GOOD)[:-40],
        saved(features=GOOD["features"]),
        saved(**{**GOOD, "features": np.eye(3, dtype=np.float32)}),
        saved(**{**GOOD, "features": np.ones(3, np.float16)}),
        saved(**{**GOOD, "features": np.full((3, 3), np.nan, np.float16)}),
        saved(**{**GOOD, "features": np.empty((0, 3), np.float16)}),
        saved(**{**GOOD, "held_out": HELD_OUT[::-1]}),
        saved(**{**GOOD, "held_out": HELD_OUT[: LEAST_HELD_OUT - 1]}),
        saved(**{**GOOD, "held_out": np.full(19, np.inf, np.float32)}),
        saved(**{**GOOD, "features": np.array([{}], dtype=object)}),
    ],
    ids=range(12),
)
def test_what_is_not_a_novelty_score_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"features|similarities|two arrays|pickle"):
        Novelty.from_bytes(data)
