"""Calibration of novelty: training images to compare with, and the similarities of held-out images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.bundle.novelty import LEAST_HELD_OUT, NEIGHBORS, REFUSED, Novelty, directions, is_known
from transferapp.evaluation.metrics import wilson_interval

MOST_NUMBERS = 5_000_000
"""Most numbers of training features in a bundle: 10 MB, which a request reads in about 2 ms."""

MOST_IMAGES = 4_000
"""Most training images among them; more change the 5 % threshold by less than its own uncertainty."""


@dataclass(frozen=True)
class NoveltyFigures:
    """Figures of a novelty score.

    Attributes:
        num_images: Training images that an image is compared with.
        num_held_out: Held-out images that calibrate the score.
        num_test: Test images; 0 without.
        num_refused: Of them, those called unknown.
        refused_interval: 95 % Wilson interval of that share; None without test images.
    """

    num_images: int
    num_held_out: int
    num_test: int = 0
    num_refused: int = 0
    refused_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**asdict(self), "neighbors": NEIGHBORS, "share": REFUSED}


def images_kept(num_features: int) -> int:
    """Return how many training images a bundle keeps features of."""
    return max(NEIGHBORS + 1, min(MOST_IMAGES, MOST_NUMBERS // num_features))


def calibrate_novelty(
    features: np.ndarray, *, groups: np.ndarray | None = None, held_out: np.ndarray | None = None
) -> Novelty | None:
    """Calibrate the novelty score.

    Args:
        features: Of training images: float, shape (n, num_features).
        groups: Of the same images, int, shape (n,), where the features were not trained: each image then calibrates the score
            against the images of the other groups.
        held_out: Features of images that the features were not trained on; used in place of `groups`.

    Returns:
        None where fewer than `LEAST_HELD_OUT` images calibrate it, or too few would be compared with.
    """
    kept = directions(features).astype(np.float16)
    uncalibrated = Novelty(kept, np.empty(0, np.float32))
    if groups is not None:
        if len(np.unique(groups)) <= NEIGHBORS:
            return None
        similarities = uncalibrated.similarity(features, groups)
    else:
        assert held_out is not None
        similarities = uncalibrated.similarity(held_out) if len(kept) >= NEIGHBORS else np.empty(0)
    if len(similarities) < LEAST_HELD_OUT:
        return None
    return Novelty(kept, np.sort(similarities).astype(np.float32))


def measure_novelty(novelty: Novelty, test: np.ndarray) -> NoveltyFigures:
    """Return the figures of a novelty score on test images.

    Args:
        novelty: The calibrated score.
        test: Features of the test images: float, shape (n, num_features); n may be 0.
    """
    counts = len(novelty.features), len(novelty.held_out)
    if not len(test):
        return NoveltyFigures(*counts)
    refused = sum(not is_known(score) for score in novelty.score(test))
    return NoveltyFigures(*counts, len(test), refused, wilson_interval(refused, len(test)))
