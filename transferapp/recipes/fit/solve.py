"""Solve the head on what the measurement chose, calibrate it, and measure it on images that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.config import FitConfig
from transferapp.data.dataset import SPLITS, Dataset
from transferapp.evaluation.metrics import Metrics, fit_temperature
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.recipes.fit.measure import Measurement, measured_sample
from transferapp.recipes.fit.random_views import ViewChoice, random_rows
from transferapp.system.progress import Progress
from transferapp.training.probe import LinearProbe, fit_probe


@dataclass(frozen=True)
class Solved:
    """The trained head and how good it is.

    Attributes:
        probe: Solved on training and validation images together: what ships.
        temperature: Calibrated on out-of-fold predictions.
        validation: Figures of the same recipe solved on the training images alone.
        test: Figures of what ships; None where no image was kept for that.
        test_probabilities: Shape (n, num_classes); what `test` was computed from.
        views: Random views of each image that it was solved on, beside the center view.
        held_out: The classifier that `validation` is of, which has not seen the validation images; None without them.
    """

    probe: LinearProbe
    temperature: float
    validation: Metrics | None
    test: Metrics | None
    test_probabilities: np.ndarray
    views: int = 0
    held_out: LinearProbe | None = None


def solve(measurement: Measurement, choice: ViewChoice, config: FitConfig, progress: Progress) -> Solved:
    """Solve the classifier, calibrate it, and measure it on images that it has not seen."""
    chosen, dataset = measurement.chosen, measurement.dataset
    num_classes = len(dataset.class_names)
    train, val, test = (dataset.part(split) for split in SPLITS)
    temperature = fit_temperature(choice.validation.logits, measured_sample(train).labels)

    def center(part: Dataset, label: str) -> np.ndarray:
        with progress.task(f"{chosen.spec.name}: {len(part)} {label} images", len(part)) as advance:
            return chosen.features(chosen.store.collect(part.records, [CENTER], advance)[:, 0])

    def solve_on(part: Dataset) -> LinearProbe:
        features = center(part, "training")[:, None]
        if choice.views:
            extra = random_rows(chosen, part, choice.views, config.seed, progress)
            features = np.concatenate([features, extra], axis=1)
        labels = np.repeat(part.labels, features.shape[1])
        weights = measurement.weighting.of(labels)
        rows = features.reshape(len(labels), -1)
        return fit_probe(rows, labels, num_classes, choice.validation.l2, sample_weight=weights)

    def figures(probe: LinearProbe, part: Dataset, label: str) -> tuple[Metrics | None, np.ndarray]:
        if not len(part):
            return None, np.empty((0, num_classes), np.float32)
        probabilities = softmax(probe.logits(center(part, label)) / temperature, axis=1)
        return measure_scores(probabilities, part.labels, dataset.class_names), probabilities

    held_out = solve_on(train) if len(val) else None
    validation, _ = figures(held_out, val, "validation") if held_out else (None, None)
    probe = solve_on(dataset.part("train", "val"))
    test_metrics, probabilities = figures(probe, test, "test")
    return Solved(probe, temperature, validation, test_metrics, probabilities, choice.views, held_out)
