"""The geometry of a fit: tried where images are long, one for all backbones, and stored for serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.numeric_trunk import HUES, Colors, numeric_trunk
from tests.recipes.fit.test_measure import Loader, loader_of
from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.registry import EMBEDDED
from transferapp.config import make_config
from transferapp.data.sources import open_source
from transferapp.images.views import Geometry
from transferapp.recipes.fit.measure import Measurement, measure
from transferapp.system.progress import Silent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


def paint_ends(root: Path, count: int, size: tuple[int, int], *, ends: bool = True) -> Path:
    """Write images with the hue of their class at both ends, or all over, and otherwise of a random gray."""
    rng = np.random.default_rng(0)
    width, height = size
    for name, hue in HUES.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((height, width, 3), rng.uniform(60, 200)) + rng.normal(size=(height, width, 3)) * 20
            shown = np.array(hue) + rng.normal(size=3) * 10 + rng.normal(size=(height, width, 3)) * 8
            edge = width // 4 if ends else width
            pixels[:, :edge], pixels[:, -edge:] = shown[:, :edge], shown[:, -edge:]
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root


def measured(data: Path, loader: Loader, **settings: Any) -> Measurement:
    config = make_config({"data": str(data), **settings})
    return measure(config, open_source(str(data)), loader, Silent())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_ends(tmp_path_factory.mktemp("long"), 20, (160, 40))


def test_long_images_with_the_label_at_their_ends_are_seen_whole(long: Path) -> None:
    cropped, found = measured(long, loader_of(), geometry="crop"), measured(long, loader_of())
    assert found.geometry.elongated == 1
    assert found.geometry.geometry != "crop"
    assert found.chosen.accuracy > 0.9 > 0.6 > cropped.chosen.accuracy
    assert [each.geometry for each in found.geometry.tried] == ["crop", "resize", "pad"]
    assert found.geometry.tried[0].loss == pytest.approx(cropped.chosen.loss)
    best = next(each for each in found.geometry.tried if each.geometry == found.geometry.geometry)
    assert best.loss == pytest.approx(found.chosen.loss)


def test_every_backbone_sees_the_same_geometry_and_its_plan_says_so(long: Path) -> None:
    found = measured(long, loader_of())
    assert [each.spec.name for each in found.backbones] == list(EMBEDDED)
    for backbone in found.backbones:
        assert backbone.geometry == found.geometry.geometry
        assert backbone.plan.reasons[0] == found.geometry.reason
        assert backbone.milliseconds > 0
    chosen = found.chosen
    train = found.dataset.part("train")
    features = chosen.trunk.features(chosen.store.collect(train.records, [CENTER])[:, 0], [chosen.members[0][0]])
    assert features.shape[0] == chosen.logits.shape[0] == len(train)


def test_d_is_measured_on_what_the_network_sees(long: Path) -> None:
    """The numeric trunk's ImageNet classes are hues, of which center crops have none."""
    cropped, found = measured(long, loader_of(), geometry="crop"), measured(long, loader_of())
    assert found.plan.divergence < 0.55 < cropped.plan.divergence
    alone = measured(long, loader_of(), backbone=EMBEDDED[-1])
    assert alone.plan.divergence == pytest.approx(found.plan.divergence)


class Counting(Colors):
    """The engine of the numeric trunk, with the number of views that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.seen += len(batch)
        return super().__call__(batch)


@pytest.mark.parametrize("ends", [False, True])
def test_images_of_usual_shape_cost_no_further_pass(tmp_path: Path, ends: bool) -> None:
    data = paint_ends(tmp_path / "usual", 20, (60, 40), ends=ends)
    trunk, engine = numeric_trunk(EMBEDDED[0]), Counting()
    object.__setattr__(trunk, "engine", engine)
    found = measured(data, Loader(**{EMBEDDED[0]: trunk}), backbone=EMBEDDED[0])
    assert (found.geometry.geometry, found.geometry.tried, found.geometry.elongated) == ("crop", (), 0)
    # The split looks at all images; and three requests are timed.
    assert engine.seen == len(found.dataset) + 3 * 10


def test_long_images_of_one_hue_keep_the_center_crop(tmp_path: Path) -> None:
    found = measured(paint_ends(tmp_path / "plain", 20, (160, 40), ends=False), loader_of())
    assert found.geometry.geometry == "crop"
    assert len(found.geometry.tried) == 3
    assert {each.geometry for each in found.backbones} == {"crop"}


@pytest.mark.parametrize("geometry", ["crop", "resize", "pad"])
def test_the_user_decides(long: Path, geometry: Geometry) -> None:
    found = measured(long, loader_of(), geometry=geometry)
    assert (found.geometry.geometry, found.geometry.tried) == (geometry, ())
    assert {each.geometry for each in found.backbones} == {geometry}
