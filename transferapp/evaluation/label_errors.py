"""Label errors by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068).

Each image is predicted by a classifier that was not trained on it. Where the probability of another class than the given one
reaches the mean probability of the images labeled with that class, either the prediction or the label is wrong; with images
that a pretrained network understands it is mostly the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6
"""Tolerance, so that a probability equal to the mean of its class reaches it."""


@dataclass(frozen=True)
class LabelErrors:
    """Outcome of `find_label_errors`, for n images.

    Attributes:
        order: int64, shape (n,): images, the most suspicious label first.
        suspected: bool, shape (n,): whether the label counts as wrong.
        suggested: int64, shape (n,): most probable class other than the given one.
        confidence: float64, shape (n,): probability of that class, in [0, 1].
    """

    order: np.ndarray
    suspected: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Compare labels with the predictions of classifiers that were not trained on them.

    A label is suspected where, among the classes whose probability reaches the mean of the images labeled so, another than the
    given one is the most probable. Suspected images come first; both parts are ordered by the normalized margin: the
    probability of the given class minus that of the best other one.

    Args:
        probabilities: float, shape (n, num_classes): out-of-fold; rows sum to 1.
        labels: int, shape (n,).
    """
    n, num_classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=num_classes)
    # No probability reaches the threshold of a class without images.
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - _ROUNDING, probabilities, -1.0)
    believed = confident.argmax(axis=1)
    counted = confident.max(axis=1) >= 0
    others = probabilities.copy()
    others[np.arange(n), labels] = -1.0
    suggested = others.argmax(axis=1)
    confidence = others.max(axis=1)
    suspected = counted & (believed != labels)
    order = np.lexsort((own - confidence, ~suspected))
    return LabelErrors(order, suspected, suggested, confidence.astype(np.float64))
