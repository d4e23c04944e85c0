"""Robustness: accuracy on images that are blurred, dark, compressed, rotated, noisy, covered or coarse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.images.changes import CONDITIONS
from transferapp.policy.choose import paired_gain


@dataclass(frozen=True)
class ConditionFigures:
    """Accuracy under one condition.

    Attributes:
        name, strength, detail: Of the condition.
        accuracy: In [0, 1].
        drop: Accuracy lost against the unchanged images.
        standard_error: Of `drop`, paired by image.
    """

    name: str
    strength: str
    detail: str
    accuracy: float
    drop: float
    standard_error: float


@dataclass(frozen=True)
class Robustness:
    """Accuracy under all conditions.

    Attributes:
        num_images: Test images that were changed.
        accuracy: On them unchanged, in [0, 1].
        conditions: In the order of `CONDITIONS`.
    """

    num_images: int
    accuracy: float
    conditions: tuple[ConditionFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def robustness(correct: np.ndarray, changed: Sequence[np.ndarray], groups: np.ndarray) -> Robustness:
    """Return the figures of all conditions.

    Args:
        correct: bool, shape (n,): whether each unchanged image is classified right.
        changed: The same under each of `CONDITIONS`.
        groups: int, shape (n,): images of one number, such as near-duplicates, count as one in standard errors.
    """
    figures = []
    for condition, right in zip(CONDITIONS, changed, strict=True):
        drop, error = paired_gain(correct, right, groups)
        figures.append(
            ConditionFigures(condition.name, condition.strength, condition.detail, float(right.mean()), drop, error)
        )
    return Robustness(len(correct), float(correct.mean()), tuple(figures))
