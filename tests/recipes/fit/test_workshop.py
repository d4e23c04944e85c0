"""Where backbones are built, and which images the measuring looks at."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.networks import tiny_network
from transferapp.backbones.registry import BACKBONES, backbone_spec
from transferapp.config import make_config
from transferapp.data.dataset import Dataset, Record
from transferapp.errors import UsageError
from transferapp.recipes.fit.measure import MEASURED_AT_MOST, Workshop, measured_sample


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbones") / "tiny.keras"
    tiny_network().save(path)
    return path


def workshop(file: Path, **changes: Any) -> Workshop:
    return Workshop(make_config({"data": "images", "backbone": str(file), **changes}))


def test_a_backbone_is_built_once_whoever_asks_first(file: Path) -> None:
    shop, spec = workshop(file), backbone_spec(str(file))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(shop.model(spec))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(model) for model in found}) == 1, "what is tuned must be what is exported"


def test_tiny_images_shrink_the_input_of_a_backbone_but_not_of_a_file(file: Path) -> None:
    shop = workshop(file)
    shop.peeked = ((32, 32), (40, 40))
    assert shop.image_size(BACKBONES["efficientnet_lite0"]) == (128, 128)
    assert shop.image_size(backbone_spec(str(file))) == (32, 32)
    shop.peeked = ((640, 480),)
    assert shop.image_size(BACKBONES["efficientnet_lite0"]) == (224, 224)
    assert workshop(file, image_size=64).image_size(BACKBONES["efficientnet_lite0"]) == (64, 64)


def test_a_size_that_a_file_does_not_take_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes images of one size only\. Expected --image-size 32, or none, got 64"):
        workshop(file, image_size=64).model(backbone_spec(str(file)))
    tiny_network((None, None)).save(tmp_path / "any.keras")
    model = workshop(tmp_path / "any.keras", image_size=64).model(backbone_spec(str(tmp_path / "any.keras")))
    assert model.inputs[0].shape[1:3] == (64, 64)


def dataset(counts: list[int]) -> Dataset:
    rng = np.random.default_rng(0)
    records = [
        Record("x", f"{label}-{i}", label, "train", sha256=rng.bytes(32).hex())
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    return Dataset("here", tuple("abcdefgh"[: len(counts)]), tuple(records))


def test_a_set_of_usual_size_is_measured_whole() -> None:
    train = dataset([2000, 2000])
    assert measured_sample(train) is train


def test_of_a_large_set_every_class_gives_its_share() -> None:
    train = dataset([6000, 3000, 997, 3])
    sample = measured_sample(train)
    assert Counter(record.label for record in sample.records) == {0: 2400, 1: 1200, 2: 399, 3: 2}
    assert abs(len(sample) - MEASURED_AT_MOST) <= 2
    order = {record.name: position for position, record in enumerate(train.records)}
    positions = [order[record.name] for record in sample.records]
    assert positions == sorted(positions)
    assert np.std(np.diff(positions[:2400])) > 0.5, "chosen here and there"


def test_which_are_chosen_follows_from_their_content() -> None:
    train = dataset([5000, 1000])
    turned = train.with_records(train.records[::-1])
    chosen = {record.name for record in measured_sample(train).records}
    assert {record.name for record in measured_sample(turned).records} == chosen
    fewer = train.with_records(train.records[:100] + train.records[101:])
    assert len(chosen & {record.name for record in measured_sample(fewer).records}) > 3990
