"""The solved candidate: a linear classifier on frozen features, solved by L-BFGS, calibrated and measured."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.evaluation.metrics import fit_temperature, measure
from transferapp.recipes.fit.candidate import SOLVED, Candidate, Classifier
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, measured_sample
from transferapp.recipes.fit.random_views import ViewChoice, random_rows
from transferapp.system.progress import Progress
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.probe import LinearProbe, fit_probe


def solve(measurement: Measurement, views: ViewChoice, config: FitConfig, progress: Progress) -> Candidate:
    """Solve the linear classifier at the cut.

    The temperature comes from out-of-fold predictions. The validation figures are those of the same recipe solved on the
    training images alone; the classifier that ships is solved on training and validation images together.
    """
    chosen, dataset = measurement.chosen, measurement.dataset
    train, val = dataset.part("train"), dataset.part("val")
    temperature = fit_temperature(views.validation.logits, measured_sample(train).labels)

    def solve_on(part: Dataset) -> tuple[LinearProbe, Classifier]:
        features = center_features(chosen, part, "training", progress)[:, None]
        if views.views:
            extra = random_rows(chosen, part, views.views, config.seed, progress)
            features = np.concatenate([features, extra], axis=1)
        labels = np.repeat(part.labels, features.shape[1])
        rows = features.reshape(len(labels), -1)
        probe = fit_probe(
            rows,
            labels,
            len(dataset.class_names),
            views.validation.l2,
            sample_weight=measurement.weighting.of(labels),
        )
        head = Head.of(probe, HeadSpec(l2=probe.l2))
        return probe, Classifier(chosen.cut.name, head, temperature, chosen.cut.name)

    held_out = metrics = None
    if len(val):
        held_out_probe, held_out = solve_on(train)
        logits = held_out_probe.logits(center_features(chosen, val, "validation", progress))
        metrics = measure(softmax(logits / temperature, axis=1), val.labels, dataset.class_names)
    probe, classifier = solve_on(dataset.part("train", "val"))
    return Candidate(
        SOLVED,
        chosen.spec.name,
        chosen.cut.name,
        head_only=True,
        classifier=classifier,
        held_out=held_out,
        metrics=metrics,
        steps=probe.iterations,
    )


def center_features(backbone: ProbedBackbone, part: Dataset, label: str, progress: Progress) -> np.ndarray:
    """Return the features at the cut of the center views: float32, shape (n, channels).

    Args:
        backbone: Has the feature store.
        part: The images.
        label: The word for them in the progress line.
        progress: Receives progress updates.
    """
    with progress.task(f"{backbone.spec.name}: {len(part)} {label} images", len(part)) as advance:
        return backbone.features(backbone.store.collect(part.records, [CENTER], advance)[:, 0])
