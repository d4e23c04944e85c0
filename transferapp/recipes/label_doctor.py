"""The label doctor: which images are probably labeled wrongly, for a person to look at and decide."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.bundle.format import read_bundle
from transferapp.config import FitConfig, make_config
from transferapp.data.dataset import Dataset
from transferapp.data.label_fixes import FIX_COLUMNS
from transferapp.data.options import SourceOptions
from transferapp.errors import DataError
from transferapp.evaluation.metrics import fit_temperature
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Progress, Silent
from transferapp.training.probe import CrossValidation, cross_validate

LISTED_SHARE = 0.1
"""Share of the images that are listed at least: a tenth, the most suspicious, whatever the estimate of how many are wrong."""


@dataclass(frozen=True)
class Diagnosis:
    """Result of the label doctor.

    Attributes:
        dataset: Audited; the given labels are in it.
        errors: The ranking.
        accuracy: Of the out-of-fold predictions against the given labels, in [0, 1].
        backbone, stage: Source of the features behind the predictions.
    """

    dataset: Dataset
    errors: LabelErrors
    accuracy: float
    backbone: str
    stage: str

    @property
    def num_suspected(self) -> int:
        return int(self.errors.suspected.sum())

    @property
    def listed(self) -> list[int]:
        """Positions of the listed images, the most suspicious first: all suspects, and at least a tenth of all images."""
        count = max(self.num_suspected, round(LISTED_SHARE * len(self.dataset)))
        return [int(position) for position in self.errors.order[:count]]

    def rows(self) -> list[dict[str, Any]]:
        """Return a dictionary for each listed image: the columns of the CSV, and whether it is suspected."""
        names, errors = self.dataset.class_names, self.errors
        return [
            {
                "path": self.dataset.records[i].name,
                "given_label": names[self.dataset.records[i].label],
                "suggested_label": names[errors.suggested[i]],
                "confidence": round(float(errors.confidence[i]), 4),
                "fix": "",
                "suspected": bool(errors.suspected[i]),
            }
            for i in self.listed
        ]

    def to_csv(self) -> str:
        """Return the list as CSV, to be filled in for `fit --label-fixes`."""
        table = io.StringIO()
        writer = csv.DictWriter(table, FIX_COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows())
        return table.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "data": self.dataset.origin,
            "num_images": len(self.dataset),
            "num_suspected": self.num_suspected,
            "accuracy": self.accuracy,
            "backbone": self.backbone,
            "stage": self.stage,
            "images": self.rows(),
        }


def diagnose(
    data: str,
    bundle: Path | None = None,
    *,
    source: SourceOptions | None = None,
    label_fixes: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Rank the images by how probably their label is wrong.

    Every image is judged by a linear classifier on frozen features that saw neither it nor a copy of it.

    Args:
        data: What `--data` names. Splits that the data came with are put together.
        bundle: Bundle whose backbone and cut give the features; None for the default backbone, at the best stage.
        source: Columns and places that the user named.
        label_fixes: Corrections made so far: the path of a CSV, or nothing.
        seed: Seeds the folds.
        progress: Receives progress updates.

    Raises:
        DataError: The images cannot be used, or a class has too few to hold any back.
        BundleError: There is no usable bundle.
    """
    progress = progress or Silent()
    config, cut = _settings(data, bundle, source or SourceOptions(), label_fixes)
    seen = featurize(config, progress)
    return judge_labels(seen, cut, seed, progress)


def judge_labels(seen: Featurized, cut: str | None, seed: int, progress: Progress) -> Diagnosis:
    """Rank the images by their features: the second half of `diagnose`.

    Args:
        seen: Images and features.
        cut: The stage to judge by; None for the one that does best.
        seed: Seeds the folds.
        progress: Receives progress updates.
    """
    dataset, trunk = seen.dataset, seen.trunk
    assert trunk is not None
    labels, num_classes = dataset.labels, len(dataset.class_names)
    groups = dataset.groups()
    if min(len({groups[i] for i in np.flatnonzero(labels == label)}) for label in range(num_classes)) < 2:
        raise DataError(
            f"A class in {dataset.origin} has nothing but copies of one image, so none can be held back",
            expected="at least two different images in every class",
        )
    stages = [stage for stage in trunk.stages if cut in (None, stage.name)]
    best: tuple[CrossValidation, str] | None = None
    with progress.task(f"{trunk.name}: judging every image by the others", len(stages)) as advance:
        for done, stage in enumerate(stages, start=1):
            features = seen.rows[:, trunk.row_slices[stage.index]]
            found = cross_validate(features, labels, num_classes, seed=seed, groups=groups)
            if best is None or found.loss < best[0].loss:
                best = found, stage.name
            advance(done)
    assert best is not None
    validation, stage_name = best
    probabilities = softmax(validation.logits / fit_temperature(validation.logits, labels), axis=1)
    return Diagnosis(dataset, find_label_errors(probabilities, labels), validation.accuracy, trunk.name, stage_name)


def _settings(data: str, bundle: Path | None, source: SourceOptions, label_fixes: str) -> tuple[FitConfig, str | None]:
    """Return the settings for computing features, and the cut of the bundle."""
    values: dict[str, Any] = {**asdict(source), "data": data, "label_fixes": label_fixes, "backbone": DEFAULT_BACKBONE}
    if bundle is None:
        return make_config(values), None
    manifest = read_bundle(bundle).manifest
    backbone, config = manifest.get("backbone"), manifest.get("config") or {}
    if not isinstance(backbone, dict) or not backbone.get("name") or not backbone.get("cut"):
        raise DataError(
            f"{bundle} does not say what its features are from, as ensembles do not",
            hint="Name a bundle that `transferapp fit` wrote, or leave out --bundle",
        )
    named = config.get("backbone", "auto")
    values["backbone"] = backbone["name"] if named == "auto" else named
    values |= {name: config[name] for name in ("weights", "image_size", "engine", "precision") if name in config}
    return make_config(values), str(backbone["cut"])


_ROUNDING = 1e-6
"""Tolerance, so that a probability equal to the mean of its class reaches it."""


@dataclass(frozen=True)
class LabelErrors:
    """Outcome of `find_label_errors`, for n images.

    Attributes:
        order: int64, shape (n,): images, the most suspicious label first.
        suspected: bool, shape (n,): whether the label counts as wrong.
        suggested: int64, shape (n,): most probable class other than the given one.
        confidence: float64, shape (n,): probability of that class, in [0, 1].
    """

    order: np.ndarray
    suspected: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Compare labels with the predictions of classifiers that were not trained on them.

    A label is suspected where, among the classes whose probability reaches the mean of the images labeled so, another than the
    given one is the most probable. Suspected images come first; both parts are ordered by the normalized margin: the
    probability of the given class minus that of the best other one.

    Args:
        probabilities: float, shape (n, num_classes): out-of-fold; rows sum to 1.
        labels: int, shape (n,).
    """
    n, num_classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=num_classes)
    # No probability reaches the threshold of a class without images.
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - _ROUNDING, probabilities, -1.0)
    believed = confident.argmax(axis=1)
    counted = confident.max(axis=1) >= 0
    others = probabilities.copy()
    others[np.arange(n), labels] = -1.0
    suggested = others.argmax(axis=1)
    confidence = others.max(axis=1)
    suspected = counted & (believed != labels)
    order = np.lexsort((own - confidence, ~suspected))
    return LabelErrors(order, suspected, suggested, confidence.astype(np.float64))
