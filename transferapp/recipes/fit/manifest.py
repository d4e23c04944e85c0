"""What a bundle says of itself: its manifest and tables, put together from what the fit found."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferapp.backbones.registry import weights_fingerprint
from transferapp.backbones.stages import stage_named
from transferapp.config import FitConfig
from transferapp.data.dataset import SPLITS, Dataset
from transferapp.evaluation.parity import Parity
from transferapp.evaluation.test_time_views import CropChoice
from transferapp.images.views import SHORT_SIDE, short_side_to_decode
from transferapp.recipes.fit.leaks import Leaks
from transferapp.recipes.fit.measure import Candidate, Measurement
from transferapp.recipes.fit.random_views import ViewChoice
from transferapp.recipes.fit.solve import Solved
from transferapp.system.backend import keras_backend
from transferapp.system.hardware import detect
from transferapp.training.head_spec import HeadSpec
from transferapp.training.settings import Epoch

if TYPE_CHECKING:
    from transferapp.recipes.fit.bench import Contender
    from transferapp.recipes.fit.fine_tune import BakeOff


def describe(
    config: FitConfig,
    measurement: Measurement,
    choice: ViewChoice,
    solved: Solved,
    tuned: BakeOff | None,
    leaks: Leaks | None,
    parity: dict[str, Parity],
    served: str,
    test_views: CropChoice,
) -> dict[str, Any]:
    """The bundle's manifest, all but the checksums."""
    chosen, dataset = measurement.chosen, measurement.dataset
    height, width = chosen.trunk.image_size
    weights = Path(config.weights) if config.weights else None
    ships = tuned if tuned is not None and tuned.head is not None else None
    head_stage = chosen.cut if ships is None else stage_named(chosen.trunk.stages, ships.stage)
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
            "resample": "bicubic",
            "default_views": test_views.views,
        },
        "backbone": {
            "name": chosen.spec.name,
            "source": chosen.spec.source,
            "parameters": chosen.spec.parameters,
            "weights_sha256": weights_fingerprint(chosen.spec, weights),
            "image_size": [height, width],
            "cut": head_stage.name,
            "cut_shape": list(head_stage.shape),
        },
        "head": _head(solved, ships, choice),
        "color": chosen.store.chance.pca.to_json() if chosen.store.chance.pca else None,
        "plan": measurement.plan.to_json(),
        "contenders": [contender_json(contender) for contender in tuned.contenders] if tuned else [],
        "candidates": [
            candidate_json(c, c is chosen, c.spec.name in measurement.passed_over) for c in measurement.candidates
        ],
        "views_tried": [asdict(tried) for tried in choice.tried],
        "views_reason": choice.reason,
        "test_views": test_views.to_json(),
        "data": {
            "origin": dataset.origin,
            "fingerprint": dataset.fingerprint(),
            "counts": {
                split: dict(zip(dataset.class_names, dataset.part(split).counts(), strict=True)) for split in SPLITS
            },
            "ignored": [asdict(item) for item in dataset.ignored],
            "given_splits": list(dataset.given_splits),
            "findings": measurement.findings.to_json(),
        },
        "class_weights": measurement.weighting.to_json(),
        "leaks": leaks.to_json() if leaks else None,
        "metrics": {
            "validation": solved.validation.to_json() if solved.validation else None,
            "test": solved.test.to_json() if solved.test else None,
        },
        "parity": {precision: figures.to_json() for precision, figures in parity.items()},
        "precision": {"served": served},
        "config": config.to_json(),
        "hardware": {**detect(config.training_precision).to_json(), "backend": keras_backend()},
        "versions": library_versions(),
    }


def _head(solved: Solved, ships: BakeOff | None, choice: ViewChoice) -> dict[str, Any]:
    """What stands on the backbone, and how it came to be."""
    described: dict[str, Any] = {"temperature": solved.temperature, "train_views": choice.views}
    if ships is None:
        probe = solved.probe
        form = HeadSpec(l2=probe.l2)
        return {"kind": "linear", "form": form.to_json(), "l2": probe.l2, "iterations": probe.iterations, **described}
    assert ships.head is not None
    spec = ships.head.spec
    kind = "trained" if ships.winner.head_only else "fine-tuned"
    return {
        "kind": kind,
        "description": spec.describe(),
        "form": spec.to_json(),
        "l2": spec.l2,
        "iterations": 0,
        **described,
    }


def candidate_json(candidate: Candidate, chosen: bool, passed_over: bool = False) -> dict[str, Any]:
    """A backbone that was tried, as a plain dictionary; `passed_over` as of `Measurement`."""
    return {
        "backbone": candidate.spec.name,
        "cut": candidate.plan.cut,
        "accuracy": candidate.accuracy,
        "loss": candidate.loss,
        "milliseconds": round(candidate.milliseconds, 1),
        "chosen": chosen,
        "passed_over": passed_over,
        "stages": [
            {**asdict(score), "shape": list(stage.shape)}
            for stage, score in zip(candidate.trunk.stages, candidate.scores, strict=True)
        ],
    }


def library_versions() -> dict[str, str]:
    found = {}
    for package in ("transferapp", "tensorflow", "jax", "keras", "openvino", "numpy", "scipy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def contender_json(contender: Contender) -> dict[str, Any]:
    """What the bake-off compared, as a plain dictionary; a loss that is no number becomes None, for JSON has no word for it."""
    return {
        **vars(contender),
        "history": [
            {name: value if value is None or math.isfinite(value) else None for name, value in vars(epoch).items()}
            for epoch in contender.history
        ],
        "findings": [{**vars(finding), "evidence": dict(finding.evidence)} for finding in contender.findings],
    }


def history_table(chosen: Candidate, tuned: BakeOff | None) -> str:
    """How training went: every epoch of every contender, or of a solved classifier how its strength was searched.

    A convex problem has no epochs to show; what there is to see of it is the loss at each strength, stage by stage.
    """
    if tuned is not None:
        return _epochs_table(tuned)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["stage", "l2", "cross_validated_loss", "best"])
    for stage, validation in zip(chosen.trunk.stages, chosen.validations, strict=True):
        for l2, loss in zip(validation.path, validation.losses, strict=False):
            writer.writerow([stage.name, f"{l2:.6g}", f"{loss:.6f}", int(l2 == validation.l2)])
    return table.getvalue()


def _epochs_table(tuned: BakeOff) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = [field.name for field in fields(Epoch)]
    writer.writerow(["contender", *names])
    for contender in tuned.contenders:
        for epoch in contender.history:
            values = [getattr(epoch, name) for name in names]
            writer.writerow([contender.name, *("" if v is None else f"{v:.6g}" for v in values)])
    return table.getvalue()


def split_table(dataset: Dataset) -> str:
    """Which image, by content, was used for what."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["sha256", "split", "class_name", "name"])
    for record in dataset.records:
        writer.writerow([record.sha256, record.split, dataset.class_names[record.label], record.name])
    return table.getvalue()
