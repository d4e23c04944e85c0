"""Prediction sets: the classes of an image that contain the right one at a promised coverage.

The score of a class is the total probability of the classes above it, as in adaptive prediction sets (Romano et al.,
"Classification with valid and adaptive coverage", 2020) without their random part: the most probable class has score 0, so
that no set is empty.
"""

from __future__ import annotations

import numpy as np


def masses_above(probabilities: np.ndarray) -> np.ndarray:
    """Return the total probability of the more probable classes, for every class; equal classes count in label order.

    Args:
        probabilities: float, shape (n, num_classes).

    Returns:
        float64, shape (n, num_classes), in [0, 1); 0 for the most probable class.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = np.zeros_like(ranked)
    np.cumsum(ranked[:, :-1], axis=1, out=before[:, 1:])
    masses = np.empty_like(before)
    np.put_along_axis(masses, order, before, axis=1)
    return masses


def in_set(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return which classes are in the set of each image: bool, shaped as `probabilities`.

    Args:
        probabilities: float, shape (n, num_classes).
        threshold: Largest score of a class in the set, in [0, 1], from calibration on held-out images.
    """
    held: np.ndarray = masses_above(probabilities) <= threshold
    return held
