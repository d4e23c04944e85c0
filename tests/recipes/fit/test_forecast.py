"""The learning curve of a linear classifier, on features that are drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from transferapp.backbones.stages import Tap
from transferapp.data.dataset import Dataset, Record
from transferapp.recipes.fit.forecast import PARTS, SCORED_AT_MOST, learning_curve
from transferapp.training.probe import cross_validate

MEMBERS = [(Tap("top"), 0.01, 1.0)]


def sample(count: int, classes: int = 4) -> Dataset:
    names = tuple("abcdefgh"[:classes])
    records = [Record(f"{i}.png", f"{i}.png", i % classes, "train", f"{i:064x}") for i in range(count)]
    return Dataset("here", names, tuple(records))


def rows_of(dataset: Dataset, seed: int = 0) -> np.ndarray:
    """Features in which a class is a direction among noise, so that more images help."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(len(dataset.class_names), 60))
    return (0.22 * directions[dataset.labels] + rng.normal(size=(len(dataset), 60))).astype(np.float32)


TRUNK: Any = SimpleNamespace(features=lambda rows, taps: rows)


def test_more_images_are_right_more_often_and_each_image_is_scored_without_itself() -> None:
    data = sample(240)
    rows = rows_of(data)
    whole = cross_validate(rows, data.labels, 4)
    sizes, correct, scored = learning_curve(TRUNK, rows, data, MEMBERS, whole.correct)
    assert scored.all()
    np.testing.assert_allclose(sizes, [*(part * 192 for part in PARTS), 192])
    accuracies = correct.mean(axis=1)
    assert accuracies[0] + 0.03 < accuracies[1] < accuracies[-1]
    np.testing.assert_array_equal(correct[-1], whole.correct)
    # Random labels cannot be classified, unless an image is scored by a classifier that has seen it.
    shuffled = Dataset("here", data.class_names, tuple(np.random.default_rng(1).permutation(np.array(data.records))))
    chance = learning_curve(TRUNK, rows, shuffled, MEMBERS, whole.correct)[1][:-1]
    assert abs(chance.mean() - 0.25) < 0.06


def test_of_many_images_some_folds_are_scored() -> None:
    data = sample(2 * SCORED_AT_MOST)
    rows = rows_of(data)[:, :4]
    _, correct, scored = learning_curve(TRUNK, rows, data, MEMBERS, np.ones(len(data), bool))
    assert 0 < scored.sum() <= SCORED_AT_MOST
    assert correct.shape == (len(PARTS) + 1, scored.sum())


def test_it_is_the_same_each_time() -> None:
    data = sample(80)
    rows, right = rows_of(data), np.ones(80, bool)
    first, second = (learning_curve(TRUNK, rows, data, MEMBERS, right, seed=7)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
