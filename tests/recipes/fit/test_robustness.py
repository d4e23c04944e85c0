"""Accuracy of an exported network on changed test images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from tests.helpers.numeric_trunk import numeric_trunk
from tests.helpers.tiny_bundle import SIZE, color_network
from transferapp.backbones.feature_store import FeatureStore
from transferapp.backbones.stages import Tap
from transferapp.data.dataset import Dataset, Record
from transferapp.images.changes import CONDITIONS
from transferapp.recipes.fit.candidate import Classifier
from transferapp.recipes.fit.export import Exported
from transferapp.recipes.fit.robustness import MEASURED_AT_LEAST, MEASURED_AT_MOST, measure_robustness
from transferapp.system.progress import Silent
from transferapp.training.head_spec import Head, HeadSpec

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def painted(folder: Path, count: int, wrong: int) -> Any:
    """Return what a fit knows of `count` test images, the last `wrong` of which have a wrong label."""
    records = []
    for index in range(count):
        path, label = folder / f"{index}.png", index % 3
        # One pixel differs, so that no two are duplicates.
        image = Image.new("RGB", (260, 240), list(COLORS.values())[(label + (index >= count - wrong)) % 3])
        image.putpixel((index % 200, 0), (index, index, index))
        image.save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        records.append(Record(str(path), path.name, label, "test", digest))
    dataset = Dataset("here", tuple(COLORS), tuple(records))
    trunk, spec = SimpleNamespace(image_size=SIZE), SimpleNamespace(name="tiny")
    backbone = SimpleNamespace(trunk=trunk, spec=spec, geometry="crop")
    classifier = SimpleNamespace(frozen=False)
    return SimpleNamespace(measurement=SimpleNamespace(dataset=dataset), backbone=backbone, classifier=classifier)


EXPORTED = Exported(None, color_network(3), {}, "f32")


def test_each_image_is_compared_with_its_own_label(tmp_path: Path) -> None:
    found = measure_robustness(painted(tmp_path, 30, 3), EXPORTED, Silent())
    assert found is not None
    assert (found.num_images, found.accuracy) == (30, 0.9)
    assert len(found.conditions) == len(CONDITIONS)
    # The network sees the mean color, which none of the changes turns into another.
    assert {each.accuracy for each in found.conditions} == {0.9}


def test_a_change_that_misleads_the_network_costs_accuracy(tmp_path: Path) -> None:
    fitted = painted(tmp_path, 30, 0)
    for record in fitted.measurement.dataset.records:
        width = 150  # of 260: the class has the larger part in sum, by a little
        image = Image.new("RGB", (260, 240), (0, 0, 0))
        bright = [0, 0, 0]
        bright[record.label] = 255
        other = [0, 0, 0]
        other[(record.label + 1) % 3] = 255
        image.paste(tuple(bright), (0, 0, width, 240))
        image.paste(tuple(other), (width, 0, 260, 240))
        image.save(record.path)
    found = measure_robustness(fitted, EXPORTED, Silent())
    assert found is not None
    drops = {(each.name, each.strength): each.drop for each in found.conditions}
    assert found.accuracy == 1.0
    assert drops["rotation", "strong"] == 0
    assert drops["occlusion", "strong"] > 0.1  # where the gray square lies on the class


def test_a_frozen_backbone_gives_the_same_figures_and_computes_changed_images_once(tmp_path: Path) -> None:
    fitted = painted(tmp_path, 30, 3)
    trunk = numeric_trunk("tiny")
    store = FeatureStore(trunk, folder=tmp_path / "store")
    fitted.backbone.trunk, fitted.backbone.store = trunk, store
    num_features = trunk.stages[0].shape[2]
    zeros, ones = np.zeros(num_features, np.float32), np.ones(num_features, np.float32)
    head = Head(HeadSpec(), zeros, ones, 3, (np.eye(3, dtype=np.float32), zeros))
    fitted.classifier = Classifier((Tap("early"),), head, 1.0, "early")
    found = measure_robustness(fitted, EXPORTED, Silent())
    assert found is not None
    assert (found.num_images, found.accuracy) == (30, 0.9)
    assert {each.accuracy for each in found.conditions} == {0.9}
    with patch.object(FeatureStore, "_compute", side_effect=AssertionError("computed again")):
        assert measure_robustness(fitted, EXPORTED, Silent()) == found


def test_few_images_say_nothing_and_of_many_some_are_changed(tmp_path: Path) -> None:
    assert measure_robustness(painted(tmp_path, MEASURED_AT_LEAST - 1, 0), EXPORTED, Silent()) is None
    many = measure_robustness(painted(tmp_path, MEASURED_AT_MOST + 20, 0), EXPORTED, Silent())
    assert many is not None
    assert many.num_images == MEASURED_AT_MOST
