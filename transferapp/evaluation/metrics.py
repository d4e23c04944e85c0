"""Metrics and temperature calibration of a classifier, from its probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from transferapp.policy.choose import standard_error
from transferapp.training.probe import log_softmax

_CALIBRATION_BINS = 10


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class; precision, recall and F1 in [0, 1], and 0 where the class was never predicted."""

    name: str
    num_images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Metrics:
    """Metrics over a set of images.

    Attributes:
        num_images: Images.
        accuracy: Share whose most probable class is correct.
        accuracy_interval: Its 95 % Wilson interval; near-duplicates and groups count as fewer images (see `effective_size`).
        top5_accuracy: Share whose class is among the five most probable.
        loss: Mean negative log-likelihood in nats.
        macro_recall: Mean recall of the classes, also called balanced accuracy.
        macro_f1: Mean F1 of the classes.
        calibration_error: Expected gap between confidence and accuracy, over ten bins (ECE; Naeini et al., 2015).
        classes: Metrics of each class, in label order.
        confusion: int, [true][predicted].
    """

    num_images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5_accuracy: float
    loss: float
    macro_recall: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "num_images": self.num_images,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "macro_recall": self.macro_recall,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
            "per_class": {c.name: {k: v for k, v in vars(c).items() if k != "name"} for c in self.classes},
            "confusion": [list(row) for row in self.confusion],
        }


def measure(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, groups: np.ndarray | None = None
) -> Metrics:
    """Compute the metrics.

    Args:
        probabilities: float, shape (n, num_classes), n of at least 1; rows sum to 1.
        labels: int, shape (n,).
        class_names: Names in label order.
        groups: int, shape (n,): images of one number are near-duplicates or of one group; None for each by itself.
    """
    n, num_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hits = np.diag(confusion)
    support, claimed = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(claimed, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    correct = predicted == labels
    accuracy = float(correct.mean())
    trials = effective_size(correct, groups) if groups is not None else float(n)
    # The rank of a class is the number of more probable classes, so that ties do not depend on the sort.
    own = probabilities[np.arange(n), labels]
    top5 = float(((probabilities > own[:, None]).sum(axis=1) < 5).mean())
    loss = float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())
    present = support > 0
    return Metrics(
        num_images=n,
        accuracy=accuracy,
        accuracy_interval=wilson_interval(accuracy * trials, trials),
        top5_accuracy=top5,
        loss=loss,
        macro_recall=float(recall[present].mean()),
        macro_f1=float(f1[present].mean()),
        calibration_error=_calibration_error(probabilities.max(axis=1), correct),
        classes=tuple(
            ClassMetrics(name, int(support[i]), float(precision[i]), float(recall[i]), float(f1[i]))
            for i, name in enumerate(class_names)
        ),
        confusion=tuple(tuple(int(x) for x in row) for row in confusion),
    )


def effective_size(correct: np.ndarray, groups: np.ndarray) -> float:
    """Return the number of independent images whose accuracy would be as uncertain as that of these (Kish, 1965).

    It is the number of images over the design effect: the variance of the accuracy with groups over that without.

    Args:
        correct: bool, shape (n,).
        groups: int, shape (n,): images of one number belong together.

    Returns:
        In [1, n]. Where all images are right, or all wrong, the variances say nothing, and images of one group count as one.
    """
    n, sizes = len(correct), np.unique(groups, return_counts=True)[1]
    as_one = n**2 / float(sizes @ sizes)
    if correct.all() or not correct.any() or len(sizes) < 2:
        return as_one
    alone, grouped = (standard_error(correct.astype(float), each) for each in (np.arange(n), groups))
    return float(n) if grouped <= alone else n * (alone / grouped) ** 2


def wilson_interval(successes: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """Return the confidence interval of a proportion, valid near 0 and 1 and for few trials (Wilson, 1927)."""
    share = successes / trials
    center = share + z * z / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The interval contains the share; rounding must not exclude it at 0 and 1.
    return min(share, max(0.0, (center - margin) / scale)), max(share, min(1.0, (center + margin) / scale))


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = [
        abs(confidence[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean()
        for b in range(_CALIBRATION_BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature that divides logits so that probabilities match frequencies (Guo et al., 2017).

    The labels are smoothed by 1 / (n + 2), as in Platt scaling (1999): that n images are all classified correctly does not show
    that the next one is.

    Args:
        logits: float, shape (n, num_classes), of images that the classifier was not trained on; or (members, n, num_classes)
            of several classifiers whose probabilities are averaged.
        labels: int, shape (n,).

    Returns:
        A number in [0.2, 5]; 1 leaves the logits unchanged.
    """
    rows, smoothing = np.arange(len(labels)), 1 / (len(labels) + 2)
    members = logits.reshape(-1, *logits.shape[-2:])

    def loss(log_temperature: float) -> float:
        scaled = [log_softmax(each / math.exp(log_temperature)) for each in members]
        by_class = logsumexp(scaled, axis=0) - math.log(len(members))
        return float(-((1 - smoothing) * by_class[rows, labels] + smoothing * by_class.mean(axis=1)).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.2), math.log(5.0)), method="bounded")
    return math.exp(float(found.x))
