"""Learning curve of the linear classifier, on parts of the cached features, and the forecast from it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import numpy as np

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.evaluation.learning_curve import Forecast, forecast
from transferapp.recipes.fit.measure import Measurement, measured_sample
from transferapp.recipes.fit.solve import ViewChoice, solved_members
from transferapp.system.threads import on_all_cores
from transferapp.training.probe import cross_validation_folds, score_parts

PARTS = (0.25, 0.5, 0.71)
"""Parts of the training images that classifiers are solved on, beside all of them."""

SCORED_AT_MOST = 1_000
"""Images that the classifiers are scored on; of more, some folds are left out, and each part is drawn once instead of twice."""

LEAST_OF_A_CLASS = 8
"""Fewest images of the median class: a quarter of them are two."""


def forecast_accuracy(measurement: Measurement, views: ViewChoice, config: FitConfig) -> Forecast | None:
    """Solve the linear classifier on parts of the training images, and forecast its accuracy with more.

    Returns:
        None where the classes are too small, or the errors too few to fit a law to.
    """
    chosen, dataset = measurement.chosen, measurement.dataset
    sample = measured_sample(dataset.part("train"))
    if np.median(sample.counts()) < LEAST_OF_A_CLASS:
        return None
    rows = chosen.store.collect(sample.records, [CENTER])[:, 0]
    sizes, correct, scored = learning_curve(
        chosen.trunk,
        rows,
        sample,
        solved_members(measurement, views),
        chosen.mixture.correct if measurement.plan.mixture else views.validation.correct,
        sample_weight=measurement.weighting.of(sample.labels),
        seed=config.seed,
    )
    labels, groups = sample.labels[scored], sample.groups()[scored]
    return forecast(sizes, correct, labels, groups, dataset.part("train", "val").counts(), dataset.class_names)


def learning_curve(
    trunk: Trunk,
    rows: np.ndarray,
    sample: Dataset,
    members: Sequence[tuple[Tap, float, float]],
    correct: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Solve a linear classifier on parts of some images, and score it on the folds that it has not seen.

    The classifiers see center views, with the strengths and the weights of the one that ships; a smaller part has a stronger L2
    penalty in proportion, as the same prior has.

    Args:
        trunk: Of the backbone.
        rows: Rows of the trunk: float32, shape (n, row_size).
        sample: The images.
        members: The taps that the classifier reads, each with its L2 strength and its weight in the mixture.
        correct: bool, shape (n,): whether each image is classified right without its fold by all the others.
        sample_weight: float, shape (n,), weight of each image in training; None for equal weights.
        seed: Seed of the folds and the parts.

    Returns:
        (sizes, correct, scored): training images of each part, fewest first; float64, shape (num_sizes, num_scored), share of
        the classifiers of a size that are right on an image; bool, shape (n,), which images are scored.
    """
    labels, num_classes = sample.labels, len(sample.class_names)
    folds = cross_validation_folds(labels, seed, sample.groups())
    num_folds = int(folds.max()) + 1
    held_out = range(max(1, min(num_folds, SCORED_AT_MOST * num_folds // len(labels))))
    scored = np.isin(folds, held_out)
    repeats = range(1 if len(labels) > SCORED_AT_MOST else 2)
    weight = np.ones(len(labels)) if sample_weight is None else sample_weight
    drawn = [np.zeros((len(labels), len(repeats) * len(held_out))) for _ in PARTS]
    for part, weights in zip(PARTS, drawn, strict=True):
        for repeat in repeats:
            for fold in held_out:
                chosen = _stratified(
                    np.flatnonzero(folds != fold), labels, part, np.random.default_rng([seed, repeat, fold])
                )
                weights[chosen, repeat * len(held_out) + fold] = weight[chosen]
    asked = np.where(scored, folds + len(held_out) * np.array(repeats)[:, None], -1)

    def score(member: tuple[Tap, float, float]) -> np.ndarray:
        tap, l2, share = member
        parts = [(weights, l2 / part) for part, weights in zip(PARTS, drawn, strict=True)]
        scores = score_parts(trunk.features(rows, [tap]), labels, num_classes, parts, asked)
        return np.float32(share) * np.stack(scores)

    logits = functools.reduce(operator.iadd, on_all_cores(score, list(reversed(members))))
    right = (logits.argmax(axis=3) == labels).mean(axis=1)[:, scored]
    all_others = len(labels) * (1 - 1 / num_folds)
    return [part * all_others for part in (*PARTS, 1.0)], np.concatenate([right, correct[None, scored]]), scored


def _stratified(positions: np.ndarray, labels: np.ndarray, part: float, rng: np.random.Generator) -> np.ndarray:
    """Return a part of the positions, with at least one of each class."""
    drawn = []
    for label in np.unique(labels[positions]):
        members = rng.permutation(positions[labels[positions] == label])
        drawn.append(members[: max(1, round(part * len(members)))])
    return np.sort(np.concatenate(drawn))
