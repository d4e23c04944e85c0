"""Number of crops that a bundle averages: what is tried, what counts as equal, and the decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pool_watch import PoolWatch
from transferapp.data.audit import audit
from transferapp.data.sources import open_source
from transferapp.evaluation.test_time_views import (
    averaged,
    choose_crops,
    compare,
    decide,
    measured_images,
    on_pixels,
)
from transferapp.images.views import Geometry
from transferapp.policy.reasons import Reason


def right(count: int, of: int = 100) -> np.ndarray:
    return np.arange(of) < count


def chosen(groups: np.ndarray | None = None, **correct: np.ndarray) -> tuple[int, Reason]:
    by_view = {int(name[1:]): answers for name, answers in correct.items()}
    labels = np.zeros(len(next(iter(by_view.values()))), int)
    means = {views: np.where(answers[:, None], [[0.9, 0.1]], [[0.1, 0.9]]) for views, answers in by_view.items()}
    groups = np.arange(len(labels)) if groups is None else groups
    return decide(compare(means, labels, groups, 100.0), by_view, groups)


def test_ten_crops_stay_where_they_are_no_worse() -> None:
    assert chosen(v1=right(90), v10=right(90))[0] == 10
    assert chosen(v1=right(90), v10=right(89))[0] == 10, "a single image is within its own standard error"
    views, why = chosen(v1=right(90), v10=right(95))
    assert views == 10
    assert why.values == {"views": 10, "num_images": 100, "gain_10": pytest.approx(0.05)}
    assert "+5.0 ± 2.2 points" in why.text


def test_the_center_view_is_served_where_ten_crops_do_worse() -> None:
    assert chosen(v1=right(90), v10=right(80))[0] == 1
    assert chosen(np.arange(100) // 10, v1=right(90), v10=right(80))[0] == 10, (
        "ten near-duplicates say as much as one image"
    )


def test_fifty_views_are_served_only_where_ten_fall_behind() -> None:
    assert chosen(v1=right(80), v10=right(90), v50=right(99))[0] == 50
    assert chosen(v1=right(80), v10=right(95), v50=right(96))[0] == 10, "within one standard error of the best"


def test_views_that_were_scored_serve_for_fewer() -> None:
    fifty = np.random.default_rng(0).random((3, 50, 2))
    np.testing.assert_allclose(averaged(fifty, 50), fifty.mean(axis=1))
    np.testing.assert_allclose(averaged(fifty, 10), fifty[:, 10:20].mean(axis=1))
    np.testing.assert_allclose(averaged(fifty, 1), fifty[:, 14])
    np.testing.assert_allclose(averaged(fifty[:, 10:20], 1), fifty[:, 14])


@pytest.mark.parametrize(
    ("work", "available", "expected"),
    [
        (600, 90, (24, (1, 10))),
        (600, 9, (9, (1, 10))),
        (9_000, 900, (100, (1, 10))),
        (20_000, 2_000, (40, (1, 10, 50))),
        (10_000_000, 5_000, (500, (1, 10, 50))),
    ],
)
def test_what_is_tried_is_a_small_share_of_the_fits_own_work(
    work: int, available: int, expected: tuple[int, tuple[int, ...]]
) -> None:
    assert measured_images(work, available) == expected


def test_crops_are_scored_as_they_are_served(tmp_path: Path) -> None:
    """The scorer looks at the brightest corner: the center view does not see it, ten crops do."""
    for name, shade in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = np.full((64, 64, 3), 90 + number, np.uint8)
            pixels[:4, :4] = shade
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    dataset = audit(open_source(str(tmp_path)), workers=1)

    def score(crops: np.ndarray) -> np.ndarray:
        assert crops.shape[1:] == (32, 32, 3)
        corner = crops[:, 0, 0, 0].astype(float)
        light = np.clip((corner - 90) / 165, -1, 1) / 2 + 0.5
        return np.stack([1 - light, light], axis=1).astype(np.float32)

    choice = choose_crops(dataset, on_pixels(score, (32, 32), "crop"), work=12, milliseconds=50.0, geometry="crop")
    assert choice.views == 10
    assert [tried.views for tried in choice.tried] == [1, 10]
    assert choice.tried[1].accuracy == 1.0
    assert choice.tried[0].accuracy < 1.0
    assert (choice.tried[0].milliseconds, choice.tried[1].milliseconds) == (5.0, 50.0)
    assert choice.num_images == 12
    assert [reason.topic for reason in choice.reasons] == ["crops", "crops"]
    assert "--views 50" in choice.reasons[1].text


@pytest.mark.parametrize(("geometry", "accuracy"), [("crop", 0.5), ("resize", 1.0), ("pad", 1.0)])
def test_crops_are_scored_in_the_geometry_of_the_bundle(tmp_path: Path, geometry: Geometry, accuracy: float) -> None:
    """The classes differ at the ends of long images, which the center crop does not see."""
    for name, shade in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = np.full((64, 256, 3), 120 + number, np.uint8)
            pixels[:, :16] = shade
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    dataset = audit(open_source(str(tmp_path)), workers=1)

    def score(crops: np.ndarray) -> np.ndarray:
        light = crops[:, 16, 0, 0] > 110  # the middle of the left edge
        return np.stack([~light, light], axis=1).astype(np.float32)

    choice = choose_crops(dataset, on_pixels(score, (32, 32), geometry), work=12, milliseconds=50.0, geometry=geometry)
    assert choice.tried[0].accuracy == accuracy


def test_few_images_are_in_hand_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(path)
    dataset = audit(open_source(str(tmp_path)), workers=1)
    monkeypatch.setattr("transferapp.evaluation.test_time_views.cpu_cores", lambda: 1)
    watch = PoolWatch(monkeypatch)
    scorer = on_pixels(lambda crops: np.full((len(crops), 2), 0.5), (32, 32), "crop")
    choose_crops(dataset, scorer, work=10_000, milliseconds=1.0, geometry="crop")
    assert 0 < watch.most <= 4


def test_without_validation_images_ten_crops_are_served(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "1.png")
    nobody = open_source(str(tmp_path)).with_records([])
    choice = choose_crops(nobody, lambda _records, _views: np.empty(0), work=0, milliseconds=1.0, geometry="crop")
    assert (choice.views, choice.tried) == (10, ())
    assert [reason.topic for reason in choice.reasons] == ["crops"]
