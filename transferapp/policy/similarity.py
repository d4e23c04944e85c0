"""Are these labels close to what ImageNet taught the network, or far from it? Measured, not asked.

The measure is the divergence D: how badly the labels are predicted from nothing but the backbone's own 1000-class ImageNet
softmax, in units of knowing nothing. It is the log expected empirical prediction (LEEP; Nguyen et al., 2020,
arXiv:2002.12462) with two changes: the table P(label | ImageNet class) is estimated on other folds than those it is scored
on, and starts from a prior. Without them a small set with many classes looks similar by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Similarity = Literal["similar", "different"]

SIMILAR_BELOW = 0.55
"""D under this: ImageNet's classes already tell these labels apart. Halfway between the photo sets of things that ImageNet
knows (.24, .37) and the others (.78 and more) of `docs/decisions/0003-similarity.md`."""

NUM_FOLDS = 5
PRIOR_STRENGTH = 1.0
"""Pseudo-images that every ImageNet class starts with, spread over the labels as the labels are spread overall."""


@dataclass(frozen=True)
class StageScore:
    """How well a linear probe on one stage does, cross-validated.

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

    @property
    def beats_top(self) -> bool:
        """Whether it does better than the last stage by more than one standard error.

        One image more is a gain of exactly one standard error, so what is equal but for rounding counts as equal.
        """
        return self.gain_over_top > self.standard_error and not math.isclose(self.gain_over_top, self.standard_error)


@dataclass(frozen=True)
class SimilarityFinding:
    """Outcome of `judge_similarity`.

    Attributes:
        similarity: The verdict.
        divergence: D.
        earlier_stage_wins: Whether a probe on an earlier stage beats the last stage's beyond one standard error.
        reasons: The sentences that explain it: one on D, one on the probes.
    """

    similarity: Similarity
    divergence: float
    earlier_stage_wins: bool
    reasons: tuple[str, ...]


def label_divergence(
    probabilities: np.ndarray, labels: np.ndarray, *, num_folds: int = NUM_FOLDS, prior: float = PRIOR_STRENGTH
) -> float:
    """D: cross-fitted negative log-likelihood of the labels given the source softmax, over the labels' entropy.

    Args:
        probabilities: float, shape (n, num_source_classes), rows sum to 1: the backbone's ImageNet softmax.
        labels: int, shape (n,), from 0.
        num_folds: Each fold is scored by a table estimated on the others; at least 2.
        prior: Strength of the prior, in images a source class.

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
    # Deal the images out to the folds in turn, class after class: every class is spread as evenly as it can be, and the
    # left-overs of small classes do not all fall into one fold.
    fold = np.empty(len(labels), dtype=np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % num_folds
    losses = np.empty(len(labels))
    for k in range(min(num_folds, len(labels))):
        held_out = fold == k
        known, seen = probabilities[~held_out], onehot[~held_out]
        base = seen.mean(axis=0)
        base = (base * len(seen) + 1 / num_classes) / (len(seen) + 1)  # a class absent from a fold stays possible
        joint = known.T @ seen + prior * base
        conditional = joint / joint.sum(axis=1, keepdims=True)
        predicted = probabilities[held_out] @ conditional
        losses[held_out] = -np.log(predicted[np.arange(held_out.sum()), labels[held_out]])
    return float(losses.mean() / entropy)


def judge_similarity(divergence: float, stages: Sequence[StageScore]) -> SimilarityFinding:
    """Similar or different, from D and, as a second opinion, from the probes.

    If a probe on an earlier stage beats the one on the last stage by more than one standard error, the last layers carry
    knowledge of ImageNet that does not serve these labels, whatever D says.

    Args:
        divergence: From `label_divergence`.
        stages: Cross-validated probes, earliest stage first.
    """
    top = stages[-1]
    best = max(stages, key=lambda score: score.accuracy)
    earlier_wins = best is not top and best.beats_top
    similar = divergence < SIMILAR_BELOW
    first = f"D = {divergence:.2f}, {'below' if similar else 'from'} {SIMILAR_BELOW}: ImageNet's classes " + (
        "already tell these labels apart" if similar else "say little about these labels"
    )
    gain = f"{100 * best.gain_over_top:+.1f} ± {100 * best.standard_error:.1f} points"
    if best is top:
        second = f"second opinion: no earlier stage does better than the last ({top.accuracy:.3f} cross-validated)"
    elif earlier_wins:
        second = f"second opinion: a probe on {best.stage} beats the last stage by {gain}, more than one standard error"
    else:
        second = f"second opinion: {best.stage} leads the last stage by {gain}, within one standard error: a tie"
    verdict: Similarity = "similar" if similar and not earlier_wins else "different"
    return SimilarityFinding(verdict, divergence, earlier_wins, (first, second))
