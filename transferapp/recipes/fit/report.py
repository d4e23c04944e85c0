"""Manifest, tables and report of a bundle, put together from the results of a fit."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferapp.backbones.feature_store import center_pixels
from transferapp.backbones.registry import weights_fingerprint
from transferapp.backbones.stages import stage_named
from transferapp.config import FitConfig
from transferapp.data.dataset import SPLITS, Dataset, Record
from transferapp.data.options import Source
from transferapp.errors import ImageError
from transferapp.evaluation.metrics import Metrics, measure
from transferapp.evaluation.report.fit_report import render_report
from transferapp.evaluation.report.pages import Thumbnail, names_shown, thumbnail, thumbnails
from transferapp.evaluation.test_time_views import CropChoice
from transferapp.images.changes import CONDITIONS
from transferapp.images.views import SHORT_SIDE, short_side_to_decode
from transferapp.policy.plan import Plan
from transferapp.recipes.fit.calibration import Calibrated
from transferapp.recipes.fit.candidate import SOLVED, Candidate, Classifier
from transferapp.recipes.fit.export import Exported
from transferapp.recipes.fit.leaks import Leaks
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone
from transferapp.recipes.fit.solve import ViewChoice
from transferapp.system.backend import configured_backend
from transferapp.system.hardware import detect
from transferapp.training.settings import Epoch

MISTAKES_SHOWN = 24
SAMPLES_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Fitted:
    """The candidates of a fit and the one that ships.

    Attributes:
        measurement: All that was known before training.
        views: The random views that the linear classifier was solved on.
        candidates: The linear classifier first, then the candidates trained beside it.
        winner: The one that ships.
        plan: The plan, as it was carried out.
        manifest: Entries to put into the manifest beside the usual ones, or instead of them.
        files: Further text files of the bundle, by name.
    """

    measurement: Measurement
    views: ViewChoice
    candidates: tuple[Candidate, ...]
    winner: Candidate
    plan: Plan
    manifest: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def classifier(self) -> Classifier:
        """The weights that ship."""
        assert self.winner.classifier is not None
        return self.winner.classifier

    @property
    def backbone(self) -> ProbedBackbone:
        """The backbone that the winner stands on."""
        return self.measurement.backbone(self.winner.backbone)

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Backbones that there was no time to tune, where the winner stands on a cheaper one."""
        names = list(dict.fromkeys(candidate.backbone for candidate in self.candidates))
        return tuple(names[: names.index(self.winner.backbone)])


@dataclass(frozen=True, eq=False)
class Tested:
    """Figures of the exported network.

    Attributes:
        probabilities: On the test images: float, shape (n, num_classes).
        metrics: Figures on the test images; None where no image was kept for that.
        leaks: Overlap of test and training images; None without test images.
        crops: The number of crops that the bundle averages, and the measurement behind it.
        calibrated: The novelty score and the prediction sets.
    """

    probabilities: np.ndarray
    metrics: Metrics | None
    leaks: Leaks | None
    crops: CropChoice
    calibrated: Calibrated


def describe(fitted: Fitted, exported: Exported, tested: Tested, config: FitConfig) -> dict[str, Any]:
    """Return the manifest of the bundle, without checksums and times."""
    measurement, backbone, winner = fitted.measurement, fitted.backbone, fitted.winner
    dataset, random_views = measurement.dataset, backbone.store.random_views
    height, width = backbone.trunk.image_size
    weights = Path(config.weights) if config.weights else None
    # The network runs up to the last of the stages that its head reads.
    stage = max(
        (stage_named(backbone.trunk.stages, tap.stage) for tap in fitted.classifier.taps), key=lambda s: s.index
    )
    return {
        "name": config.bundle_path.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "class_names": list(dataset.class_names),
        "input": {
            "image_size": [height, width],
            "color": "RGB",
            "dtype": "uint8",
            "range": [0, 255],
            "short_side": short_side_to_decode(SHORT_SIDE, (height, width)),
            "geometry": backbone.geometry,
            "resample": "bicubic",
            "sample_bits": dataset.sample_bits,
            "default_views": tested.crops.views,
        },
        "backbone": {
            "name": backbone.spec.name,
            "source": backbone.spec.source,
            "parameters": backbone.spec.parameters,
            "weights_sha256": weights_fingerprint(backbone.spec, weights),
            "image_size": [height, width],
            "cut": stage.name,
            "cut_shape": list(stage.shape),
        },
        "head": _head(fitted),
        "color": random_views.pca.to_json() if random_views.pca else None,
        "plan": fitted.plan.to_json(),
        "candidates": candidates_json(fitted.candidates, winner),
        "backbones": [
            backbone_json(each, each is backbone, each.spec.name in fitted.passed_over)
            for each in measurement.backbones
        ],
        "views_tried": [asdict(tried) for tried in fitted.views.tried],
        "views_reason": fitted.views.reason,
        "test_views": tested.crops.to_json(),
        "data": {
            "origin": dataset.origin,
            "sources": [source.to_json() for source in dataset.sources or (Source(config.data, config.source),)],
            "fingerprint": dataset.fingerprint(),
            "counts": {
                split: dict(zip(dataset.class_names, dataset.part(split).counts(), strict=True)) for split in SPLITS
            },
            "ignored": [asdict(item) for item in dataset.ignored],
            "given_splits": list(dataset.given_splits),
            "findings": measurement.findings.to_json(),
        },
        "geometry": measurement.geometry.to_json(),
        "class_weights": measurement.weighting.to_json(),
        "leaks": tested.leaks.to_json() if tested.leaks else None,
        "metrics": {
            "validation": winner.metrics.to_json() if winner.metrics else None,
            "test": tested.metrics.to_json() if tested.metrics else None,
        },
        "novelty": tested.calibrated.figures.to_json() if tested.calibrated.figures else None,
        "prediction_sets": tested.calibrated.sets.to_json() if tested.calibrated.sets else None,
        "parity": {precision: figures.to_json() for precision, figures in exported.parity.items()},
        "parity_before": exported.archive is not None,
        "precision": {"served": exported.precision},
        "config": config.to_json(),
        "hardware": {**detect(config.training_precision).to_json(), "backend": configured_backend()},
        "versions": library_versions(),
        **fitted.manifest,
    }


def _head(fitted: Fitted) -> dict[str, Any]:
    winner, classifier = fitted.winner, fitted.classifier
    spec = classifier.head.spec
    solved = winner.name == SOLVED
    kind = "averaged" if classifier.linear else "trained" if winner.head_only else "fine-tuned"
    return {
        "kind": "linear" if solved else kind,
        "description": spec.describe(),
        "form": spec.to_json(),
        "l2": spec.l2,
        "iterations": winner.steps if solved else 0,
        "temperature": classifier.temperature,
        "train_views": fitted.views.views,
    }


def backbone_json(backbone: ProbedBackbone, chosen: bool, passed_over: bool = False) -> dict[str, Any]:
    """Return a probed backbone as a plain dictionary; `passed_over` as in `Fitted`."""
    return {
        "backbone": backbone.spec.name,
        "cut": backbone.plan.cut,
        "mixture": dict(backbone.plan.mixture),
        "accuracy": backbone.accuracy,
        "loss": backbone.loss,
        "milliseconds": round(backbone.milliseconds, 1),
        "chosen": chosen,
        "passed_over": passed_over,
        "stages": [
            {**asdict(score), "shape": list(stage.shape)}
            for stage, score in zip(backbone.trunk.stages, backbone.scores, strict=True)
        ],
    }


def candidates_json(candidates: Sequence[Candidate], winner: Candidate) -> list[dict[str, Any]]:
    """Return the compared candidates as plain dictionaries; an empty list where nothing was trained beside the solved one.

    A loss that is NaN or infinite becomes None, because JSON has no word for it.
    """
    if len(candidates) == 1:
        return []
    several = len({candidate.backbone for candidate in candidates}) > 1
    return [
        {
            "name": f"{candidate.backbone}: {candidate.name}" if several else candidate.name,
            "cut": candidate.cut,
            "head_only": candidate.head_only and candidate is not candidates[0],
            "accuracy": candidate.accuracy,
            "loss": _finite(candidate.loss),
            "seconds": candidate.seconds,
            "planned_epochs": candidate.planned_epochs,
            "epochs": candidate.epochs,
            "learning_rate": candidate.learning_rate,
            "backbone_learning_rate": candidate.backbone_learning_rate,
            "reason": candidate_reason(candidate, candidates, winner),
            "chosen": candidate is winner,
            "averaged": candidate.classifier is not None and candidate.classifier.linear is not None,
            "history": [{name: _finite(value) for name, value in vars(epoch).items()} for epoch in candidate.history],
            "findings": [{**vars(finding), "evidence": dict(finding.evidence)} for finding in candidate.findings],
        }
        for candidate in candidates
    ]


def candidate_reason(candidate: Candidate, candidates: Sequence[Candidate], winner: Candidate) -> str:
    """Return the sentence on a candidate: why the linear classifier ships, or what training gained against it."""
    solved, *others = candidates
    if candidate is solved:
        if winner is not solved:
            return ""
        if any(other.classifier for other in others):
            return "nothing that was trained is clearly better on the validation images"
        too_short = all(other.no_time for other in others)
        return "nothing else could be trained" + (" in the time there was" if too_short else "")
    notes = list(candidate.notes)
    if candidate.accuracy is not None and solved.accuracy is not None:
        gain = f"{100 * (candidate.accuracy - solved.accuracy):+.1f} points against the linear classifier"
        notes = [f"{gain} ({notes[0]})" if notes else gain, *notes[1:]]
    return "; ".join(notes)


def _finite(value: Any) -> Any:
    return value if value is None or math.isfinite(value) else None


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a bundle computes."""
    found = {}
    for package in ("transferapp", "tensorflow", "jax", "keras", "openvino", "numpy", "scipy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def history_table(fitted: Fitted) -> str:
    """Return the history of the fit as CSV: every epoch of every candidate, or of a linear classifier the search for its L2.

    A convex problem has no epochs to show; its table lists the loss at each strength, stage by stage.
    """
    if len(fitted.candidates) > 1:
        return _epochs_table(fitted.candidates)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["stage", "l2", "cross_validated_loss", "best"])
    backbone, measurement = fitted.backbone, fitted.measurement
    solved = [(stage.name, measurement.validation(backbone, stage)) for stage in backbone.trunk.stages]
    if fitted.plan.mixture:
        solved = [(tap.describe(), found) for tap, found in backbone.members]
    for name, validation in solved:
        for l2, loss in zip(validation.path, validation.losses, strict=False):
            writer.writerow([name, f"{l2:.6g}", f"{loss:.6f}", int(l2 == validation.l2)])
    return table.getvalue()


def _epochs_table(candidates: Sequence[Candidate]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = [each.name for each in fields(Epoch)]
    writer.writerow(["candidate", *names])
    for candidate in candidates:
        for epoch in candidate.history:
            values = [getattr(epoch, name) for name in names]
            writer.writerow([candidate.name, *("" if v is None else f"{v:.6g}" for v in values)])
    return table.getvalue()


def split_table(dataset: Dataset, probabilities: np.ndarray) -> str:
    """Return the split of every image as CSV, by the SHA-256 of its content, and the prediction for each test image.

    Args:
        dataset: Audited and split.
        probabilities: On the test images: float, shape (n, num_classes).
    """
    predictions = iter(probabilities.argmax(axis=1).tolist() if len(probabilities) else ())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["sha256", "split", "class_name", "name", "prediction"])
    for record in dataset.records:
        prediction = dataset.class_names[next(predictions)] if record.split == "test" else ""
        writer.writerow([record.sha256, record.split, dataset.class_names[record.label], record.name, prediction])
    return table.getvalue()


def test_metrics(probabilities: np.ndarray, dataset: Dataset) -> Metrics | None:
    """Return the figures on the test images; None without test images."""
    test = dataset.part("test")
    return measure(probabilities, test.labels, dataset.class_names, groups=test.groups()) if len(test) else None


def report_page(manifest: Mapping[str, Any], dataset: Dataset, probabilities: np.ndarray) -> str:
    """Return the report, one HTML page: the manifest for people, with thumbnails.

    Args:
        manifest: From `describe`.
        dataset: Has the images.
        probabilities: On the test images: float, shape (n, num_classes).
    """
    samples, mistakes = _gallery(dataset, probabilities, whole=manifest["input"]["geometry"] != "crop")
    copies = thumbnails(dataset.records, names_shown(manifest["data"]["findings"], manifest["leaks"]))
    changed = _changed(dataset, manifest)
    return render_report(manifest, samples=samples, mistakes=mistakes, copies=copies, changed=changed)


def _changed(dataset: Dataset, manifest: Mapping[str, Any]) -> list[str]:
    """Return a test image under each of the conditions whose accuracy was measured, as thumbnails."""
    if not manifest.get("robustness"):
        return []
    record, (height, width) = dataset.part("test").records[0], manifest["input"]["image_size"]
    try:
        pixels = center_pixels(record, (height, width), manifest["input"]["geometry"])
    except ImageError:
        return []
    return [thumbnail(Image.fromarray(condition.apply(pixels, np.random.default_rng(0)))) for condition in CONDITIONS]


def _gallery(dataset: Dataset, probabilities: np.ndarray, *, whole: bool) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """Return an image of each of the first classes, and the test images with the most confident wrong predictions.

    Thumbnails show whole images where the network sees them whole.
    """
    names = dataset.class_names
    first_of_class = {record.label: record for record in reversed(dataset.part("train").records)}
    samples = [_shown(first_of_class[label], names, whole=whole) for label in sorted(first_of_class)[:SAMPLES_SHOWN]]
    test = dataset.part("test")
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != test.labels) if len(test) else np.empty(0, int)
    confidence = probabilities.max(axis=1)[wrong] if len(wrong) else np.empty(0)
    worst = [int(wrong[i]) for i in np.argsort(-confidence)[:MISTAKES_SHOWN]]
    mistakes = [
        _shown(test.records[i], names, names[probabilities[i].argmax()], float(probabilities[i].max()), whole=whole)
        for i in worst
    ]
    return [shown for shown in samples if shown], [shown for shown in mistakes if shown]


def _shown(
    record: Record,
    names: Sequence[str],
    predicted: str | None = None,
    score: float | None = None,
    *,
    whole: bool,
) -> Thumbnail | None:
    """Return an image with its labels; None where it can no longer be decoded, because a thumbnail never ends a fit."""
    try:
        image = record.decode(SHORT_SIDE).image
    except ImageError:
        return None
    return Thumbnail(record.name, thumbnail(image, whole=whole), names[record.label], predicted, score)
