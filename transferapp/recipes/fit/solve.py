"""The solved candidate: a linear classifier on frozen features, solved by L-BFGS, calibrated and measured."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.stages import Tap
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.evaluation.metrics import fit_temperature, measure
from transferapp.recipes.fit.candidate import SOLVED, Candidate, Classifier
from transferapp.recipes.fit.measure import Measurement, measured_sample
from transferapp.recipes.fit.random_views import ViewChoice, random_rows
from transferapp.system.progress import Progress
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.mixture import combine
from transferapp.training.probe import LinearProbe, fit_probe


def solve(measurement: Measurement, views: ViewChoice, config: FitConfig, progress: Progress) -> Candidate:
    """Solve the linear classifier at the cut, or the mixture of stages where the plan asks for one.

    The temperature comes from out-of-fold predictions. The validation figures are those of the same recipe solved on the
    training images alone; the classifier that ships is solved on training and validation images together.
    """
    chosen, dataset = measurement.chosen, measurement.dataset
    train, val = dataset.part("train"), dataset.part("val")
    members = _members(measurement, views)
    logits = chosen.mixture.logits if measurement.plan.mixture else views.validation.logits
    temperature = fit_temperature(logits, measured_sample(train).labels)
    taps = tuple(tap for tap, _, _ in members)

    def rows_of(part: Dataset, label: str) -> np.ndarray:
        with progress.task(f"{chosen.spec.name}: {len(part)} {label} images", len(part)) as advance:
            return chosen.store.collect(part.records, [CENTER], advance)

    def solve_on(part: Dataset) -> tuple[LinearProbe, Classifier]:
        rows = rows_of(part, "training")
        if views.views:
            rows = np.concatenate([rows, random_rows(chosen, part, views.views, config.seed, progress)], axis=1)
        labels = np.repeat(part.labels, rows.shape[1])
        rows = rows.reshape(len(labels), -1)
        weights = measurement.weighting.of(labels)
        probes = [
            fit_probe(chosen.trunk.features(rows, [tap]), labels, len(dataset.class_names), l2, sample_weight=weights)
            for tap, l2, _ in members
        ]
        probe = combine(probes, [weight for _, _, weight in members])
        return probe, Classifier(taps, Head.of(probe, HeadSpec(l2=probe.l2)), temperature, measurement.plan.cut)

    held_out = metrics = correct = None
    if len(val):
        held_out_probe, held_out = solve_on(train)
        features = chosen.trunk.features(rows_of(val, "validation")[:, 0], taps)
        probabilities = softmax(held_out_probe.logits(features) / temperature, axis=1)
        metrics = measure(probabilities, val.labels, dataset.class_names)
        correct = probabilities.argmax(axis=1) == val.labels
    probe, classifier = solve_on(dataset.part("train", "val"))
    return Candidate(
        SOLVED,
        chosen.spec.name,
        "mixture" if measurement.plan.mixture else chosen.cut.name,
        head_only=True,
        classifier=classifier,
        held_out=held_out,
        metrics=metrics,
        correct=correct,
        steps=probe.iterations,
    )


def _members(measurement: Measurement, views: ViewChoice) -> list[tuple[Tap, float, float]]:
    """Return the taps that the classifier reads, each with its L2 strength and its weight in the mixture."""
    chosen = measurement.chosen
    if not measurement.plan.mixture:
        return [(Tap(chosen.cut.name), views.validation.l2, 1.0)]
    return [
        (tap, validation.l2, float(weight))
        for (tap, validation), weight in zip(chosen.members, chosen.mixture.weights, strict=True)
        if weight
    ]
