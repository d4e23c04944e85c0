"""Accuracy of the exported network on changed test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transferapp.backbones.engine import OpenVINOEngine
from transferapp.backbones.feature_store import CENTER, CHANGED_VIEWS, center_pixels, changed_pixels
from transferapp.data.dataset import Record
from transferapp.evaluation.robustness import Robustness, robustness
from transferapp.recipes.fit.export import Exported, frozen_classifier
from transferapp.recipes.fit.report import Fitted
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores, in_order

MEASURED_AT_MOST = 60
"""Test images that are changed. That many take three seconds or so on two cores, and show a drop of ten points."""

MEASURED_AT_LEAST = 20

_VIEWS = (CENTER, *CHANGED_VIEWS)


def measure_robustness(fitted: Fitted, exported: Exported, progress: Progress) -> Robustness | None:
    """Change the center views of test images, and classify them.

    On a frozen backbone the features of changed images are cached as all features are, so that the next fit on these images,
    or an update, has them already. A fine-tuned network is run as it is served.

    Args:
        fitted: Has the images.
        exported: The network.
        progress: Receives progress updates.

    Returns:
        None with fewer than `MEASURED_AT_LEAST` test images.
    """
    test = fitted.measurement.dataset.part("test").drawn(MEASURED_AT_MOST)
    if len(test) < MEASURED_AT_LEAST:
        return None
    classifier, backbone = fitted.classifier, fitted.backbone
    count = len(test) * len(_VIEWS)
    with progress.task(f"{backbone.spec.name}: {len(test)} test images and their changes", count) as advance:
        if classifier.frozen and classifier.pooled:
            rows = backbone.store.collect(test.records, _VIEWS, advance)
            predict = frozen_classifier(classifier)
            features = backbone.trunk.features(rows, classifier.taps)
            predicted = predict(features.reshape(count, -1)).argmax(axis=1).reshape(rows.shape[:2])
        else:
            predicted = _run_changed(fitted, exported, test.records, advance)
    right = predicted == test.labels[:, None]
    return robustness(right[:, 0], list(right[:, 1:].T), test.groups())


def _run_changed(
    fitted: Fitted, exported: Exported, records: Sequence[Record], advance: Callable[[int], None]
) -> np.ndarray:
    """Return the most probable class of each view of each image, by the served network: int, shape (n, views)."""
    workers, backbone = cpu_cores(), fitted.backbone
    engine = OpenVINOEngine(exported.converted, precision=exported.precision, streams=workers)

    def predicted(record: Record) -> np.ndarray:
        center = center_pixels(record, backbone.trunk.image_size, backbone.geometry)
        views = [changed_pixels(center, name, record.sha256) for name in _VIEWS]
        return np.asarray(engine(np.stack(views)).argmax(axis=1))

    labels: list[np.ndarray] = []
    with ThreadPoolExecutor(workers) as pool:
        for found in in_order(pool, predicted, records, 2 * workers):
            labels.append(found)
            advance(len(labels) * len(_VIEWS))
    return np.stack(labels)
