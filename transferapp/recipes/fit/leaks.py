"""Overlap between the test images and those trained on, and the test figures without it.

Splits made by a fit have no overlap as far as signatures and features can tell; splits that data come with often have. The
features of the network that ships are compared here, because they find crops and turns that signatures miss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.backbones.feature_store import CENTER
from transferapp.data.audit import Overlap, SimilarPair, member, overlap_kinds
from transferapp.data.dataset import Dataset
from transferapp.data.near_duplicates import similar_rows, too_uniform
from transferapp.evaluation.metrics import Metrics
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone
from transferapp.system.progress import Progress

COMPARED_AT_MOST = 2_000_000_000
"""Pairs of a test image and one that was trained on, up to which their features are compared: half a minute or so."""

LISTED = 24
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Leaks:
    """Overlap between the test images and those trained on.

    Attributes:
        overlap: By bytes, by signature, or by group.
        num_similar: Further test images that look like one that was trained on, to the network; None where not compared.
        uniform: Whether the images are too uniform to be compared by features.
        similar: Some of those pairs, the test image first.
        honest: Figures over the test images that share nothing; None where all do, or none does.
    """

    overlap: Overlap
    num_similar: int | None
    uniform: bool
    similar: tuple[SimilarPair, ...]
    honest: Metrics | None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**asdict(self), "honest": self.honest.to_json() if self.honest else None}


def find_leaks(
    measurement: Measurement, backbone: ProbedBackbone, test_probabilities: np.ndarray, progress: Progress
) -> Leaks | None:
    """Compare the test images with the training and validation images; return None where there is no test split.

    Args:
        measurement: Has the images.
        backbone: Has their features.
        test_probabilities: Predictions on the test images: float, shape (n, num_classes).
        progress: Receives progress updates.
    """
    dataset = measurement.dataset
    test, learned = dataset.part("test"), dataset.part("train", "val")
    if not len(test):
        return None
    kinds = overlap_kinds(dataset, "test", ("train", "val"))
    counted = Counter(kinds)
    overlap = Overlap("test", ("train", "val"), len(test), counted["exact"], counted["near"], counted["group"])
    pairs, uniform = None, False
    if len(test) * len(learned) <= COMPARED_AT_MOST:
        with progress.task("comparing the test images with the training images", 0):
            features = _top_features(backbone, learned)
            uniform = too_uniform(features, learned.labels)
            pairs = None if uniform else similar_rows(_top_features(backbone, test), features)
    beyond = [(i, j, cosine) for i, j, cosine in pairs or () if kinds[i] is None]
    similar = {i for i, _, _ in beyond}
    clean = np.array([kind is None and i not in similar for i, kind in enumerate(kinds)])
    honest = None
    if clean.any() and not clean.all():
        honest = measure_scores(
            test_probabilities[clean], test.labels[clean], dataset.class_names, groups=test.groups()[clean]
        )
    nearest: dict[int, tuple[int, int, float]] = {}
    for pair in beyond:
        nearest.setdefault(pair[0], pair)
    return Leaks(
        overlap,
        None if pairs is None else len(similar),
        uniform,
        tuple(
            SimilarPair(member(test, i), member(learned, j), round(cosine, 4))
            for i, j, cosine in list(nearest.values())[:LISTED]
        ),
        honest,
    )


def _top_features(backbone: ProbedBackbone, part: Dataset) -> np.ndarray:
    """Return the last stage's features of the center views: float32, shape (n, channels)."""
    columns = backbone.trunk.row_slices[backbone.trunk.top.index]
    rows, positions = backbone.store.locate(part.records, [CENTER])
    features = np.empty((len(part), columns.stop - columns.start), np.float32)
    for start in range(0, len(part), _ROWS_AT_ONCE):
        features[start : start + _ROWS_AT_ONCE] = rows[positions[start : start + _ROWS_AT_ONCE, 0]][:, columns]
    return features
