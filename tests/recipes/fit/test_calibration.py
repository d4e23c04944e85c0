"""Calibration of a network that was trained by steps: on the validation images, as it is served."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.tiny_bundle import SIZE, color_network
from transferapp.data.dataset import Dataset, Record
from transferapp.evaluation.prediction_sets import conformal_threshold
from transferapp.recipes.fit.calibration import calibrate
from transferapp.recipes.fit.export import Exported, run_exported
from transferapp.system.progress import Silent

COUNTS = {"train": 30, "val": 24, "test": 21}
EXPORTED = Exported(None, color_network(3), {}, "f32")


def tuned(folder: Path, counts: dict[str, int]) -> Any:
    """Return what a fit knows of a fine-tuned classifier: images near red, green and blue in each split."""
    rng, records = np.random.default_rng(0), []
    for split, count in counts.items():
        for index in range(count):
            path, label = folder / f"{split}{index}.png", index % 3
            color = rng.integers(0, 90, 3)
            color[label] = rng.integers(90, 255)
            Image.new("RGB", (240, 240), tuple(color.tolist())).save(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            records.append(Record(str(path), path.name, label, split, digest))  # type: ignore[arg-type]
    return SimpleNamespace(
        measurement=SimpleNamespace(dataset=Dataset("here", ("red", "green", "blue"), tuple(records))),
        classifier=SimpleNamespace(frozen=False, pooled=True, linear=None),
        winner=SimpleNamespace(name="last stage", held_out=None),
        backbone=SimpleNamespace(
            spec=SimpleNamespace(name="tiny"), trunk=SimpleNamespace(image_size=SIZE), geometry="crop"
        ),
    )


def outputs(fitted: Any, split: Any) -> tuple[np.ndarray, ...]:
    records = fitted.measurement.dataset.part(split).records
    return run_exported(EXPORTED, records, SIZE, "crop", lambda done: None)


def test_validation_images_calibrate_what_training_images_shaped(tmp_path: Path) -> None:
    fitted = tuned(tmp_path, COUNTS)
    dataset, probabilities = fitted.measurement.dataset, outputs(fitted, "test")[0]
    found = calibrate(fitted, EXPORTED, probabilities, 0.8, Silent())
    assert found.novelty is not None
    assert found.sets is not None
    assert found.figures is not None
    assert (found.figures.num_images, found.figures.num_held_out, found.figures.num_test) == (30, 24, 21)
    similarities = found.novelty.similarity(outputs(fitted, "val")[1])
    np.testing.assert_allclose(np.sort(similarities), found.novelty.held_out, atol=1e-6)
    assert (found.sets.coverage, found.sets.num_held_out, found.sets.num_test) == (0.8, 24, 21)
    labels = dataset.part("val").labels
    assert found.sets.threshold == conformal_threshold(outputs(fitted, "val")[0], labels, 0.8)


def test_without_validation_images_nothing_is_promised(tmp_path: Path) -> None:
    fitted = tuned(tmp_path, {"train": 30, "val": 0, "test": 6})
    found = calibrate(fitted, EXPORTED, outputs(fitted, "test")[0], 0.9, Silent())
    assert (found.novelty, found.figures, found.sets) == (None, None, None)
