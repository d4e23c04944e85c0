"""Did the test ask what had been learned by heart? Test images of which copies were trained on, and the figures without them.

Splits that are made here have no such images, as far as signatures can tell. Those that data come with often have: the naive
figure and the honest one then stand side by side. The network's own features look once more, for crops and turns that
signatures miss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.backbones.feature_store import CENTER
from transferapp.data.dataset import Dataset
from transferapp.data.duplicates import similar_rows
from transferapp.data.findings import Alike, Shared, member, shared_kinds
from transferapp.evaluation.metrics import Metrics
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.recipes.fit.measure import Measurement
from transferapp.recipes.fit.solve import Solved
from transferapp.system.progress import Progress

COMPARED_AT_MOST = 2_000_000_000
"""Pairs of a test image and one that was learned from, up to which their features are compared: half a minute or so."""

LISTED = 24
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Leaks:
    """What the test images share with those that were learned from.

    Attributes:
        shared: By bytes, by signature, or by group.
        num_alike: Further test images that look like one that was learned from, to the network; None where not compared.
        alike: Some of those pairs, the test image first.
        honest: Figures over the test images that share nothing; None where all do, or none does.
    """

    shared: Shared
    num_alike: int | None
    alike: tuple[Alike, ...]
    honest: Metrics | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        return {**asdict(self), "honest": self.honest.to_json() if self.honest else None}


def find_leaks(measurement: Measurement, solved: Solved, progress: Progress) -> Leaks | None:
    """Compare the test images with those that were learned from; None where there is no test split.

    Args:
        measurement: Has the images and their features.
        solved: Has the probabilities that the test figures are from.
        progress: Who is told.
    """
    dataset = measurement.dataset
    test, learned = dataset.part("test"), dataset.part("train", "val")
    if not len(test):
        return None
    kinds = shared_kinds(dataset, "test", ("train", "val"))
    counted = Counter(kinds)
    shared = Shared("test", ("train", "val"), len(test), counted["exact"], counted["near"], counted["group"])
    pairs = None
    if len(test) * len(learned) <= COMPARED_AT_MOST:
        with progress.task("comparing the test images with those that were learned from", 0):
            pairs = similar_rows(_top_features(measurement, test), _top_features(measurement, learned))
    beyond = [(i, j, cosine) for i, j, cosine in pairs or () if kinds[i] is None]
    alike = {i for i, _, _ in beyond}
    clean = np.array([kind is None and i not in alike for i, kind in enumerate(kinds)])
    honest = None
    if clean.any() and not clean.all():
        honest = measure_scores(solved.test_probabilities[clean], test.labels[clean], dataset.class_names)
    nearest: dict[int, tuple[int, int, float]] = {}
    for pair in beyond:
        nearest.setdefault(pair[0], pair)
    return Leaks(
        shared,
        None if pairs is None else len(alike),
        tuple(
            Alike(member(test, i), member(learned, j), round(cosine, 4))
            for i, j, cosine in list(nearest.values())[:LISTED]
        ),
        honest,
    )


def _top_features(measurement: Measurement, part: Dataset) -> np.ndarray:
    """The last stage's features of the center views: float32, shape (n, channels).

    They are cached by now, but for a backbone that was tuned for want of time for the chosen one.
    """
    chosen = measurement.chosen
    columns = chosen.trunk.row_slices[chosen.trunk.top.index]
    rows, positions = chosen.store.locate(part.records, [CENTER])
    features = np.empty((len(part), columns.stop - columns.start), np.float32)
    for start in range(0, len(part), _ROWS_AT_ONCE):
        features[start : start + _ROWS_AT_ONCE] = rows[positions[start : start + _ROWS_AT_ONCE, 0]][:, columns]
    return features
