"""Accuracy of the exported network on changed test images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transferapp.backbones.engine import OpenVINOEngine
from transferapp.backbones.feature_store import center_pixels
from transferapp.data.dataset import Record
from transferapp.evaluation.robustness import CONDITIONS, Robustness, robustness
from transferapp.recipes.fit.export import Exported
from transferapp.recipes.fit.report import Fitted
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores, in_order

MEASURED_AT_MOST = 100
"""Test images that are changed. That many take about six seconds on two cores, and show a drop of ten points."""

MEASURED_AT_LEAST = 20


def measure_robustness(fitted: Fitted, exported: Exported, progress: Progress) -> Robustness | None:
    """Change the center views of test images, and classify them with the network as it is served.

    Args:
        fitted: Has the images.
        exported: The network.
        progress: Receives progress updates.

    Returns:
        None with fewer than `MEASURED_AT_LEAST` test images.
    """
    test = fitted.measurement.dataset.part("test").spread(MEASURED_AT_MOST)
    if len(test) < MEASURED_AT_LEAST:
        return None
    workers, backbone = cpu_cores(), fitted.backbone
    engine = OpenVINOEngine(exported.converted, precision=exported.precision, streams=workers)

    def predicted(numbered: tuple[int, Record]) -> np.ndarray:
        seed, record = numbered
        pixels = center_pixels(record, backbone.trunk.image_size, backbone.geometry)
        views = [pixels, *(condition.apply(pixels, seed) for condition in CONDITIONS)]
        return np.asarray(engine(np.stack(views)).argmax(axis=1))

    labels = []
    with (
        progress.task(f"changing {len(test)} test images", len(test)) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for found in in_order(pool, predicted, enumerate(test.records), 2 * workers):
            labels.append(found)
            advance(len(labels))
    right = np.stack(labels) == test.labels[:, None]
    return robustness(right[:, 0], list(right[:, 1:].T), test.groups())
