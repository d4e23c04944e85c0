"""Accuracy of an exported network on changed test images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from tests.helpers.tiny_bundle import SIZE, color_network
from transferapp.data.dataset import Dataset, Record
from transferapp.evaluation.robustness import CONDITIONS
from transferapp.recipes.fit.export import Exported
from transferapp.recipes.fit.robustness import MEASURED_AT_LEAST, MEASURED_AT_MOST, measure_robustness
from transferapp.system.progress import Silent

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
    backbone = SimpleNamespace(trunk=SimpleNamespace(image_size=SIZE), geometry="crop")
    return SimpleNamespace(measurement=SimpleNamespace(dataset=dataset), backbone=backbone)


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


def test_few_images_say_nothing_and_of_many_some_are_changed(tmp_path: Path) -> None:
    assert measure_robustness(painted(tmp_path, MEASURED_AT_LEAST - 1, 0), EXPORTED, Silent()) is None
    many = measure_robustness(painted(tmp_path, MEASURED_AT_MOST + 20, 0), EXPORTED, Silent())
    assert many is not None
    assert many.num_images == MEASURED_AT_MOST
