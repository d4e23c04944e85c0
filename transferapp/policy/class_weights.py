"""Should small classes count as much as large ones in training? Only where cross-validation says that it pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CLASS_WEIGHT_CHOICES = ("auto", "none", "balanced")

WORTH_TRYING = 1.5
"""Largest class over the smallest from which weights are tried: below, they change next to nothing."""

Kind = Literal["none", "balanced"]


@dataclass(frozen=True)
class WeightsFinding:
    """Outcome of `judge_class_weights`.

    Attributes:
        kind: What to train with.
        reason: Why, in a sentence.
        macro_gain: Balanced accuracy (mean recall of the classes) with weights, less that without; None where not tried.
        macro_error: Its standard error, paired by image.
        accuracy_gain, accuracy_error: The same of plain accuracy.
    """

    kind: Kind
    reason: str
    macro_gain: float | None = None
    macro_error: float | None = None
    accuracy_gain: float | None = None
    accuracy_error: float | None = None


def balanced_weights(counts: Sequence[int]) -> np.ndarray:
    """A weight for each class by which all classes count the same, and the mean over all images is 1.

    Args:
        counts: Training images of each class.

    Returns:
        float64, shape (num_classes,); 0 for a class without images.
    """
    sizes = np.asarray(counts, dtype=np.float64)
    present = sizes > 0
    weights: np.ndarray = np.where(present, sizes.sum() / (present.sum() * np.maximum(sizes, 1)), 0.0)
    return weights


def imbalance(counts: Sequence[int]) -> float:
    """The largest class over the smallest that has images; 1 where there is none."""
    sizes = [count for count in counts if count]
    return max(sizes) / min(sizes) if sizes else 1.0


def judge_class_weights(labels: np.ndarray, plain: np.ndarray, balanced: np.ndarray) -> WeightsFinding:
    """Weights are used where balanced accuracy gains more than one standard error and plain accuracy loses no more than one.

    Args:
        labels: int, shape (n,).
        plain: bool, shape (n,): whether the classifier trained without weights was right, image held out.
        balanced: The same with weights.
    """
    change = balanced.astype(np.float64) - plain.astype(np.float64)
    by_class = [change[labels == label] for label in np.unique(labels)]
    macro = float(np.mean([part.mean() for part in by_class]))
    # Classes are independent samples: the variance of a mean of their means is the mean of theirs over their number.
    macro_error = float(np.sqrt(sum(_variance_of_mean(part) for part in by_class)) / len(by_class))
    gain, error = float(change.mean()), float(np.sqrt(_variance_of_mean(change)))
    said = (
        f"weights by class change balanced accuracy by {100 * macro:+.1f} ± {100 * macro_error:.1f} points and plain accuracy "
        f"by {100 * gain:+.1f} ± {100 * error:.1f}"
    )
    if macro > macro_error and gain >= -error:
        return WeightsFinding("balanced", f"{said}: they are used", macro, macro_error, gain, error)
    why = "no gain beyond one standard error" if macro <= macro_error else "too dear"
    return WeightsFinding("none", f"{said}: {why}, so they are not used", macro, macro_error, gain, error)


def _variance_of_mean(part: np.ndarray) -> float:
    return float(part.var(ddof=1) / len(part)) if len(part) > 1 else 0.0
