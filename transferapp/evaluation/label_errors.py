"""Which labels are probably wrong: confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068).

A classifier that has not seen an image says what it is. Where it is sure of another class than the given one, by the measure
of how sure it usually is of that class, one of the two is wrong, and with images that a pretrained network understands it is
mostly the label. Counting those gives an estimate of how many labels are wrong, from one class to another; the ranking says
which. The published method, in numpy: nothing of it needs more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6
"""A probability that is its class's mean, as in a class whose images are all alike, counts as reaching it."""


@dataclass(frozen=True)
class LabelErrors:
    """Outcome of `find_label_errors`, for n images.

    Attributes:
        order: int64, shape (n,): the images, the most suspicious label first.
        suspected: bool, shape (n,): whether the label counts as wrong.
        suggested: int64, shape (n,): the class that the image most probably shows, other than the given one.
        confidence: float64, shape (n,): how probable that class is, in [0, 1].
        joint: float64, shape (num_classes, num_classes): estimated share of images by given and true class; sums to 1.
    """

    order: np.ndarray
    suspected: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    joint: np.ndarray


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Compare labels with what a classifier says that was not trained on them.

    An image is suspected where the confident joint puts it off the diagonal: among the classes whose probability is at least
    the mean of that of images labeled so, another than the given one is the most probable. Suspected images come first,
    each part ordered by the normalized margin: the probability of the given class less that of the best other one.

    Args:
        probabilities: float, shape (n, num_classes): out-of-fold; rows sum to 1.
        labels: int, shape (n,).
    """
    n, num_classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=num_classes)
    # A class without images has no threshold that anything could reach.
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - _ROUNDING, probabilities, -1.0)
    believed = confident.argmax(axis=1)
    counted = confident.max(axis=1) >= 0
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (labels[counted], believed[counted]), 1)
    others = probabilities.copy()
    others[np.arange(n), labels] = -1.0
    suggested = others.argmax(axis=1)
    confidence = others.max(axis=1)
    suspected = counted & (believed != labels)
    order = np.lexsort((own - confidence, ~suspected))
    return LabelErrors(order, suspected, suggested, confidence.astype(np.float64), _calibrated(joint, counts))


def _calibrated(joint: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The confident joint scaled so that every given class has the share of images that it has."""
    joint = joint + np.diag((joint.sum(axis=1) == 0) & (counts > 0))  # nothing was confident: believe the labels
    rows = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1) * counts[:, None]
    result: np.ndarray = rows / max(rows.sum(), 1)
    return result
