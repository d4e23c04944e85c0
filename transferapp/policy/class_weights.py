"""Class weights: equal influence of small and large classes in training, where cross-validation shows a gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transferapp.policy.choose import standard_error
from transferapp.policy.reasons import Reason

CLASS_WEIGHT_CHOICES = ("auto", "none", "balanced")

WORTH_TRYING = 1.5
"""Ratio of the largest class to the smallest from which weights are tried: below it, they change next to nothing."""

Kind = Literal["none", "balanced"]


@dataclass(frozen=True)
class WeightsFinding:
    """Outcome of `judge_class_weights`.

    Attributes:
        kind: Weights to train with.
        reason: Explanation.
        macro_gain: Gain in balanced accuracy (mean recall of the classes); None where weights were not tried.
        macro_error: Standard error of that gain, paired by image.
        accuracy_gain, accuracy_error: The same for plain accuracy.
    """

    kind: Kind
    reason: Reason
    macro_gain: float | None = None
    macro_error: float | None = None
    accuracy_gain: float | None = None
    accuracy_error: float | None = None


def balanced_weights(counts: Sequence[int]) -> np.ndarray:
    """Return a weight for each class: all classes count the same, and the mean over all images is 1.

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
    """Return the ratio of the largest class to the smallest that has images; 1 where no class has any."""
    sizes = [count for count in counts if count]
    return max(sizes) / min(sizes) if sizes else 1.0


def judge_class_weights(
    labels: np.ndarray, plain: np.ndarray, balanced: np.ndarray, groups: np.ndarray
) -> WeightsFinding:
    """Use weights where balanced accuracy gains more than one standard error and plain accuracy loses at most one.

    Args:
        labels: int, shape (n,).
        plain: bool, shape (n,): held-out predictions of the classifier trained without weights that are correct.
        balanced: The same with weights.
        groups: int, shape (n,): images of one number are near-duplicates or of one group.
    """
    change = balanced.astype(np.float64) - plain.astype(np.float64)
    counts = np.bincount(labels)
    present = counts > 0
    means = np.bincount(labels, change) / np.maximum(counts, 1)
    # The mean of the classes' means is a mean over images that count by the size of their class. A class of n images has lost
    # one degree of freedom to its mean.
    shares = len(labels) / present.sum() / np.sqrt(np.maximum(counts * (counts - 1), 1))
    macro, macro_error = float(means[present].mean()), standard_error((change - means[labels]) * shares[labels], groups)
    gain, error = float(change.mean()), standard_error(change, groups)
    kind: Kind = "balanced" if macro > macro_error and gain >= -error else "none"
    if kind == "balanced":
        outcome = "so they are used"
    elif macro <= macro_error:
        outcome = "no gain beyond one standard error, so they are not used"
    else:
        outcome = "which costs too much plain accuracy, so they are not used"
    text = (
        f"Class weights change balanced accuracy by {100 * macro:+.1f} ± {100 * macro_error:.1f} points and plain accuracy by "
        f"{100 * gain:+.1f} ± {100 * error:.1f} points ({len(labels):,} images, cross-validated), {outcome}."
    )
    values = {"macro_gain": macro, "macro_error": macro_error, "accuracy_gain": gain, "accuracy_error": error}
    return WeightsFinding(kind, Reason("classes", text, values), macro, macro_error, gain, error)
