"""Calibration on held-out images: the novelty score and the prediction sets of a bundle.

Features that were not trained are compared by leaving one image out: each training image against the others, without its
near-duplicates. Those of a fine-tuned network fit its training images, so the validation images calibrate it. Prediction sets
are calibrated on cross-validated probabilities of the training images where the classifier is the solved one (Vovk,
"Cross-conformal predictors", 2015), and otherwise on the validation images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.bundle.novelty import Novelty
from transferapp.data.dataset import Dataset
from transferapp.evaluation.novelty import (
    MOST_IMAGES,
    NoveltyFigures,
    calibrate_novelty,
    images_kept,
    measure_novelty,
)
from transferapp.evaluation.prediction_sets import PredictionSets, calibrate_sets
from transferapp.recipes.fit.candidate import SOLVED
from transferapp.recipes.fit.export import Exported, frozen_classifier, run_exported
from transferapp.recipes.fit.measure import measured_sample
from transferapp.system.progress import Progress

if TYPE_CHECKING:
    from transferapp.recipes.fit.report import Fitted


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Novelty score and prediction sets of a bundle, beside its probabilities.

    Attributes:
        novelty: The novelty score; None where there are too few held-out images.
        figures: Its figures; None where `novelty` is.
        sets: The prediction sets; None where there are too few held-out images to promise the coverage.
    """

    novelty: Novelty | None = None
    figures: NoveltyFigures | None = None
    sets: PredictionSets | None = None


def calibrate(
    fitted: Fitted, exported: Exported, test_probabilities: np.ndarray, coverage: float, progress: Progress
) -> Calibrated:
    """Calibrate novelty and prediction sets on held-out images, and measure them on the test images.

    Args:
        fitted: The candidates and the one that ships.
        exported: The network that is served.
        test_probabilities: On the test images: float, shape (n, num_classes).
        coverage: Share of images whose prediction set shall have the right class.
        progress: Receives progress updates.
    """
    dataset, frozen = fitted.measurement.dataset, fitted.classifier.frozen
    known = (dataset.part("train", "val") if frozen else dataset.part("train")).spread(
        images_kept(exported.num_features)
    )
    validation, test = (dataset.part(split).spread(MOST_IMAGES) for split in ("val", "test"))
    # In one run, because a network that was trained is compiled for it.
    together = dataset.with_records((*known.records, *validation.records, *test.records))
    probabilities, features = _outputs(fitted, exported, together, progress)
    ends = np.cumsum([len(known), len(validation)])
    known_features, validation_features, test_features = np.split(features, ends)
    if fitted.winner.name == SOLVED:
        held_out, labels = _cross_validated(fitted)
    elif fitted.classifier.linear and fitted.winner.probabilities is not None:
        held_out, labels = fitted.winner.probabilities, dataset.part("val").labels
    elif fitted.winner.held_out is not None and len(validation):
        held_out, labels = frozen_classifier(fitted.winner.held_out)(validation_features), validation.labels
    else:
        held_out, labels = np.split(probabilities, ends)[1], validation.labels
    sets = calibrate_sets(held_out, labels, coverage, test_probabilities, dataset.part("test").labels)
    if frozen:
        novelty = calibrate_novelty(known_features, groups=known.groups())
    else:
        novelty = calibrate_novelty(known_features, held_out=validation_features)
    return Calibrated(novelty, measure_novelty(novelty, test_features) if novelty else None, sets)


def _cross_validated(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-validated probabilities of the solved classifier, and the labels of these images."""
    measurement = fitted.measurement
    logits = measurement.chosen.mixture.logits if measurement.plan.mixture else fitted.views.validation.logits
    labels = measured_sample(measurement.dataset.part("train")).labels
    return softmax(logits / fitted.classifier.temperature, axis=1), labels


def _outputs(fitted: Fitted, exported: Exported, part: Dataset, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities and the features of the center views of some images, both float32."""
    classifier, backbone = fitted.classifier, fitted.backbone
    if classifier.frozen and classifier.pooled:
        rows = backbone.store.collect(part.records, [CENTER])[:, 0]
        features = backbone.trunk.features(rows, classifier.taps)
        return frozen_classifier(classifier)(features), features
    with progress.task(f"{backbone.spec.name}: {len(part)} images", len(part)) as advance:
        probabilities, features = run_exported(
            exported, part.records, backbone.trunk.image_size, backbone.geometry, advance
        )
    return probabilities, features
