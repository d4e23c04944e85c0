"""Split-conformal calibration of prediction sets (Vovk et al., "Algorithmic learning in a random world", 2005)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv

from transferapp.bundle.prediction_sets import in_set, masses_above
from transferapp.evaluation.metrics import wilson_interval


@dataclass(frozen=True)
class PredictionSets:
    """Calibrated prediction sets and their figures.

    Attributes:
        coverage: Promised share of images whose set has the right class.
        threshold: Largest score of a class in a set, in [0, 1].
        num_held_out: Images that calibrate it.
        coverage_interval: 95 % interval of the true coverage, given how many calibrate it; a set that holds a single class
            can exceed it.
        num_test: Test images; 0 without.
        num_covered: Of them, those whose set has the right class.
        covered_interval: 95 % Wilson interval of that share; None without test images.
        mean_size: Mean number of classes in a set, over the test images or otherwise over the held-out ones.
    """

    coverage: float
    threshold: float
    num_held_out: int
    coverage_interval: tuple[float, float]
    mean_size: float
    num_test: int = 0
    num_covered: int = 0
    covered_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def conformal_rank(num_images: int, coverage: float) -> int:
    """Return the rank, from 1, of the score that is the threshold; above `num_images` where they are too few."""
    return math.ceil((num_images + 1) * coverage - 1e-9)


def conformal_threshold(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> float | None:
    """Return the threshold of sets with a coverage, with the correction for a finite number of images.

    Args:
        probabilities: Of images that the classifier was not trained on: float, shape (n, num_classes).
        labels: int, shape (n,).
        coverage: In (0, 1).

    Returns:
        A number in [0, 1]; None where the images are too few to promise the coverage.
    """
    rank = conformal_rank(len(labels), coverage)
    if rank > len(labels):
        return None
    scores = masses_above(probabilities)[np.arange(len(labels)), labels]
    return float(np.partition(scores, rank - 1)[rank - 1])


def calibrate_sets(
    probabilities: np.ndarray,
    labels: np.ndarray,
    coverage: float,
    test_probabilities: np.ndarray,
    test_labels: np.ndarray,
) -> PredictionSets | None:
    """Calibrate prediction sets on held-out images and measure them on test images.

    Args:
        probabilities: Of the held-out images: float, shape (n, num_classes).
        labels: int, shape (n,).
        coverage: In (0, 1).
        test_probabilities: float, shape (t, num_classes); t may be 0.
        test_labels: int, shape (t,).

    Returns:
        None where the held-out images are too few to promise the coverage.
    """
    threshold = conformal_threshold(probabilities, labels, coverage)
    if threshold is None:
        return None
    rank = conformal_rank(len(labels), coverage)
    low, high = betaincinv(rank, len(labels) + 1 - rank, (0.025, 0.975))  # quantiles of the beta distribution
    calibrated = coverage, threshold, len(labels), (float(low), float(high))
    if not len(test_labels):
        return PredictionSets(*calibrated, float(in_set(probabilities, threshold).sum(axis=1).mean()))
    sets = in_set(test_probabilities, threshold)
    covered = int(sets[np.arange(len(test_labels)), test_labels].sum())
    return PredictionSets(
        *calibrated,
        float(sets.sum(axis=1).mean()),
        len(test_labels),
        covered,
        wilson_interval(covered, len(test_labels)),
    )
