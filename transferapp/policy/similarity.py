"""Similarity of labels to ImageNet's classes, measured.

The measure is the divergence D: the loss of predicting the labels from nothing but the backbone's own 1000-class ImageNet
softmax, relative to predicting their frequencies. It is the log expected empirical prediction (LEEP; Nguyen et al., 2020,
arXiv:2002.12462) with two changes: the table P(label | ImageNet class) is estimated on other folds than those it is scored
on, and starts from a prior. Without them a small set with many classes looks similar by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri

from transferapp.policy.reasons import Reason

Similarity = Literal["similar", "different"]

SIMILAR_BELOW = 0.55
"""D below this means that ImageNet's classes already tell the labels apart. Halfway between the sets of everyday objects that
ImageNet contains (.24, .37) and the others (.78 and more) of `docs/decisions/0003-similarity.md`."""

BY_CHANCE = 0.05
"""Probability with which an earlier stage may overrule D although none is better. It turns the fine-tuning of the last stages
of a large set into that of the whole network, and so must not happen by chance."""

NUM_FOLDS = 5
PRIOR_STRENGTH = 1.0
"""Pseudo-images in every ImageNet class, with the labels' overall frequencies."""


@dataclass(frozen=True)
class StageScore:
    """Cross-validated score of a linear classifier on one stage.

    Attributes:
        stage: The stage's name.
        accuracy: Mean over the held-out images, in [0, 1].
        loss: Mean negative log-likelihood over them, in nats.
        gain_over_top: Accuracy less that of the last stage.
        standard_error: Of `gain_over_top`, paired by image.
    """

    stage: str
    accuracy: float
    loss: float
    gain_over_top: float
    standard_error: float


@dataclass(frozen=True)
class SimilarityFinding:
    """Outcome of `judge_similarity`.

    Attributes:
        similarity: Decision.
        divergence: D.
        earlier_stage_wins: Whether the best earlier stage beats the last by more than chance (see `winning_margin`).
        reasons: Two: one about D, one about the stages.
    """

    similarity: Similarity
    divergence: float
    earlier_stage_wins: bool
    reasons: tuple[Reason, ...]


def label_divergence(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    num_folds: int = NUM_FOLDS,
    prior: float = PRIOR_STRENGTH,
    folds: np.ndarray | None = None,
) -> float:
    """Compute D: the cross-fitted negative log-likelihood of the labels given the source softmax, over the labels' entropy.

    Args:
        probabilities: float, shape (n, num_source_classes), rows sum to 1: the backbone's ImageNet softmax.
        labels: int, shape (n,), from 0.
        num_folds: Each fold is scored by a table estimated on the others; at least 2.
        prior: Strength of the prior, in images a source class.
        folds: int, shape (n,), the fold of each image, where near-duplicates or groups must be held out together; None deals
            the images out evenly.

    Returns:
        Near 0 where the source classes determine the label, near 1 where they say nothing. Can exceed 1 by chance. 0 where
        all labels are the same.
    """
    num_classes = int(labels.max()) + 1
    onehot = np.eye(num_classes)[labels]
    marginal = onehot.mean(axis=0)
    entropy = -float(np.sum(marginal[marginal > 0] * np.log(marginal[marginal > 0])))
    if entropy == 0:
        return 0.0
    fold = folds
    if fold is None:
        # Deal the images out to the folds in turn, class after class: every class is spread as evenly as it can be, and the
        # left-overs of small classes do not all fall into one fold.
        fold = np.empty(len(labels), dtype=np.int64)
        fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % num_folds
    losses = np.empty(len(labels))
    for k in np.unique(fold):
        held_out = fold == k
        known, seen = probabilities[~held_out], onehot[~held_out]
        base = seen.mean(axis=0)
        base = (base * len(seen) + 1 / num_classes) / (len(seen) + 1)  # a class absent from a fold stays possible
        joint = known.T @ seen + prior * base
        conditional = joint / joint.sum(axis=1, keepdims=True)
        predicted = probabilities[held_out] @ conditional
        losses[held_out] = -np.log(predicted[np.arange(held_out.sum()), labels[held_out]])
    return float(losses.mean() / entropy)


def winning_margin(num_earlier: int) -> float:
    """Return the standard errors by which the best of several earlier stages must beat the last stage.

    The best of k stages that are no better exceeds this with a probability of at most `BY_CHANCE` (Šidák, 1967): 1.6 standard
    errors for one stage, 2.3 for five.
    """
    return float(ndtri((1 - BY_CHANCE) ** (1 / num_earlier)))


def judge_similarity(divergence: float, stages: Sequence[StageScore]) -> SimilarityFinding:
    """Decide between similar and different, from D and the accuracy of the stages.

    If a linear classifier on an earlier stage beats the one on the last stage by more than chance, the last layers are too
    specific to ImageNet for these labels, whatever D says.

    Args:
        divergence: From `label_divergence`.
        stages: Cross-validated scores, earliest stage first.
    """
    top = stages[-1]
    best = max(stages, key=lambda score: score.accuracy)
    earlier_wins = best is not top and best.gain_over_top > winning_margin(len(stages) - 1) * best.standard_error
    close = divergence < SIMILAR_BELOW
    measured = (
        f"D is {divergence:.2f}, {'below' if close else 'not below'} {SIMILAR_BELOW}: ImageNet's classes "
        f"{'already tell these labels apart' if close else 'say little about these labels'}."
    )
    gain = f"{100 * best.gain_over_top:+.1f} ± {100 * best.standard_error:.1f} points"
    if best is top:
        compared = f"No earlier stage does better than the last (cross-validated accuracy {top.accuracy:.3f})."
    elif earlier_wins:
        compared = (
            f"A linear classifier on {best.stage} differs from one on the last stage by {gain}: an earlier stage wins."
        )
    else:
        compared = f"A linear classifier on {best.stage} differs from one on the last stage by {gain}: a tie."
    reasons = (
        Reason("similarity", measured, {"divergence": divergence, "similar_below": SIMILAR_BELOW}),
        Reason("similarity", compared, vars(best)),
    )
    return SimilarityFinding(
        "similar" if close and not earlier_wins else "different", divergence, earlier_wins, reasons
    )
