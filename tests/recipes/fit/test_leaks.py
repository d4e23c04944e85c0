"""Overlap between test images and those trained on: counted, shown, and left out of the honest figure."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.numeric_trunk import numeric_trunk, paint_hues
from tests.recipes.fit.test_measure import Loader
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.sources import open_source
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.recipes.fit import leaks as leaks_module
from transferapp.recipes.fit.export import predict_test
from transferapp.recipes.fit.leaks import Leaks, find_leaks
from transferapp.recipes.fit.measure import Measurement, measure
from transferapp.recipes.fit.solve import choose_views, solve
from transferapp.system.progress import Silent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


def found_in(data: Path, **settings: Any) -> tuple[Measurement, np.ndarray, Leaks | None]:
    """Return the measurement, the probabilities on the test images, and the overlap."""
    config = make_config({"data": str(data), "backbone": DEFAULT_BACKBONE, "train_views": "0", **settings})
    loader: Any = Loader(**{DEFAULT_BACKBONE: numeric_trunk(DEFAULT_BACKBONE)})
    measurement = measure(config, open_source(str(data)), loader, Silent())
    classifier = solve(measurement, choose_views(measurement, config, Silent()), config, Silent()).classifier
    assert classifier is not None
    chosen, unused = measurement.chosen, cast(Any, None)  # a frozen classifier needs no exported network
    probabilities = predict_test(classifier, chosen, unused, measurement.dataset.part("test"), Silent())
    return measurement, probabilities, find_leaks(measurement, chosen, probabilities, Silent())


def pattern(path: Path, seed: int) -> None:
    """An image with shapes in it, so that it can be told from others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Train and test folders of two classes, without copies."""
    for number in range(48):
        pattern(tmp_path / "data" / ("train" if number < 32 else "test") / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "data"


def test_shared_images_are_counted_by_kind_and_the_honest_figure_leaves_them_out(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks_module, "COMPARED_AT_MOST", 0)  # to a network that sees color alone, much is alike
    shutil.copy(given / "train" / "a" / "0.png", given / "test" / "a" / "same.png")
    with Image.open(given / "train" / "b" / "1.png") as image:
        ImageOps.mirror(image).save(given / "test" / "b" / "mirrored.jpg", quality=80)
    measurement, probabilities, leaks = found_in(given)
    assert leaks is not None
    assert (leaks.overlap.num_images, leaks.overlap.exact, leaks.overlap.near) == (18, 1, 1)
    test = measurement.dataset.part("test")
    assert (leaks.num_similar, leaks.similar) == (None, ())
    shared = ("test/a/same.png", "test/b/mirrored.jpg")
    clean = [i for i, record in enumerate(test.records) if record.name not in shared]
    assert leaks.honest == measure_scores(probabilities[clean], test.labels[clean], test.class_names)
    assert leaks.honest.num_images == 16
    document = leaks.to_json()
    assert document["overlap"]["exact"] == 1
    assert document["honest"]["num_images"] == 16


def test_a_split_that_is_made_here_has_no_copies_on_both_sides(tmp_path: Path) -> None:
    for number in range(40):
        place = tmp_path / "data" / "ab"[number % 2]
        pattern(place / f"{number}.png", number)
        if number % 3 == 0:
            with Image.open(place / f"{number}.png") as image:
                ImageOps.mirror(image).save(place / f"{number} mirrored.jpg", quality=85)
    measurement, _, leaks = found_in(tmp_path / "data")
    assert leaks is not None
    assert leaks.overlap.total == 0
    splits: dict[str, set[str | None]] = {}
    for record in measurement.dataset.records:
        if record.cluster:
            splits.setdefault(record.cluster, set()).add(record.split)
    assert len(splits) >= 13
    assert all(len(found) == 1 for found in splits.values())


def test_without_a_test_split_there_is_nothing_to_compare(tmp_path: Path) -> None:
    paint_hues(tmp_path / "hues", {"red": 8, "blue": 8})
    _, _, leaks = found_in(tmp_path / "hues", test_fraction=0.0)
    assert leaks is None


def test_what_the_network_alone_sees_counts_too_and_is_named(tmp_path: Path) -> None:
    # Plain images have no signature; to this network, which sees color alone, those of one hue are all alike.
    paint_hues(tmp_path / "hues" / "train", {"red": 8, "blue": 8})
    paint_hues(tmp_path / "hues" / "test", {"red": 4, "blue": 4}, seed=1)
    _, _, leaks = found_in(tmp_path / "hues")
    assert leaks is not None
    assert leaks.overlap.total == 0
    assert leaks.num_similar == 8
    assert leaks.honest is None
    assert leaks.similar[0].first.name.startswith("test/")
    assert leaks.similar[0].second.name.startswith("train/")
