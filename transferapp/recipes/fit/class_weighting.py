"""Weights by class, chosen for the classifier at the cut: cross-validated with and without, where classes differ in size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from transferapp.policy.class_weights import (
    WORTH_TRYING,
    WeightsFinding,
    balanced_weights,
    imbalance,
    judge_class_weights,
)
from transferapp.policy.reasons import Reason
from transferapp.training.probe import CrossValidation, cross_validate

_EVEN = 1.05
"""Classes are equal, for what is printed, where the largest is no more than this many times the smallest."""


@dataclass(frozen=True)
class Weighting:
    """How much each class counts in training.

    Attributes:
        weights: float64, shape (num_classes,), mean 1 over the training images; None where all images count the same.
        finding: What was measured, and why this was chosen.
        validation: Cross-validation of the classifier with these weights.
        imbalance: The largest class of the training images over the smallest.
    """

    weights: np.ndarray | None
    finding: WeightsFinding
    validation: CrossValidation
    imbalance: float

    def of(self, labels: np.ndarray) -> np.ndarray | None:
        """The weight of each image: shape as `labels`; None where all count the same."""
        return None if self.weights is None else self.weights[labels]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        weights = None if self.weights is None else [round(float(weight), 4) for weight in self.weights]
        return {**asdict(self.finding), "imbalance": self.imbalance, "weights": weights}


def weigh_classes(
    features: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int],
    plain: CrossValidation,
    wanted: str,
    *,
    groups: np.ndarray,
    seed: int,
) -> Weighting:
    """Choose how much each class counts.

    Args:
        features: float32, shape (n, num_features): the images that the decision is measured on.
        labels: Their classes: int, shape (n,).
        counts: Training images of each class.
        plain: Cross-validation of the same images without weights; with them, the same strengths are tried.
        wanted: `auto`, `none` or `balanced`.
        groups: Which of the images stay together in cross-validation; shape (n,).
        seed: Seeds the folds.
    """
    ratio = imbalance(counts)
    if wanted == "none":
        return Weighting(
            None,
            WeightsFinding("none", Reason("classes", "--class-weights none turns class weights off.")),
            plain,
            ratio,
        )
    if wanted == "auto" and ratio < WORTH_TRYING:
        if ratio < _EVEN:
            text = "The classes have about as many images each, so class weights are not needed."
        else:
            text = f"The largest class has {ratio:.1f} times the images of the smallest, too few for class weights to matter."
        return Weighting(None, WeightsFinding("none", Reason("classes", text, {"imbalance": ratio})), plain, ratio)
    weights = balanced_weights(counts)
    weighed = cross_validate(
        features, labels, len(counts), seed=seed, path=plain.path, groups=groups, class_weights=weights
    )
    finding = judge_class_weights(labels, plain.correct, weighed.correct)
    if wanted == "balanced":
        set_by = Reason("classes", "--class-weights balanced turns class weights on.", finding.reason.values)
        finding = replace(finding, kind="balanced", reason=set_by)
    if finding.kind == "none":
        return Weighting(None, finding, plain, ratio)
    return Weighting(weights, finding, weighed, ratio)
