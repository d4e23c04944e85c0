"""Occlusion maps: their arithmetic, and brightness where covering lowers the score."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.bundle.occlusion import FORWARD_PASSES, GRID, explain, log_odds, saliency
from transferapp.bundle.predictor import Predictor
from transferapp.errors import UsageError
from transferapp.images.views import Geometry


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny"))


def halves(left: str, right: str, size: tuple[int, int] = (400, 300)) -> bytes:
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_the_map_is_bright_where_the_class_is(predictor: Predictor) -> None:
    found = explain(predictor, halves("red", "blue"), label="red")
    left, right = found.saliency[:, :3], found.saliency[:, 4:]
    assert left.min() > right.max()
    assert found.saliency.max() == 1
    assert found.lowest_score < found.center_score
    other = explain(predictor, halves("red", "blue"), label="blue")
    assert other.saliency[:, 4:].min() > other.saliency[:, :3].max()


def test_without_a_label_the_most_probable_class_is_explained(predictor: Predictor) -> None:
    image = halves("lime", "black")
    found = explain(predictor, image)
    expected = predictor.predict(image, views=10)
    assert (found.label, found.score) == ("green", pytest.approx(expected.scores[0].score))
    assert np.mean([crop.score for crop in found.crops]) == pytest.approx(found.score)


def test_boxes_are_in_the_pixels_of_the_image_as_a_person_sees_it(predictor: Predictor) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (4096, 2048), "red").save(stream, "JPEG", exif=exif)
    found = explain(predictor, stream.getvalue())
    assert found.size == (2048, 4096)
    side = 2048 * 224 / 256  # the ten crops' scale
    assert found.box == pytest.approx(((2048 - side) / 2, (4096 - side) / 2, (2048 + side) / 2, (4096 + side) / 2))
    assert len(found.crops) == 10
    assert max(crop.box[3] for crop in found.crops) == pytest.approx(4096)
    assert sum(crop.mirror for crop in found.crops) == 5


def test_the_map_covers_whole_images_where_the_network_sees_them(tmp_path: Path) -> None:
    image = Image.new("RGB", (800, 200), "blue")
    image.paste("red", (700, 0, 800, 200))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    boxes: dict[Geometry, tuple[float, ...]] = {"resize": (0, 0, 800, 200), "pad": (0, -300, 800, 500)}
    for geometry, box in boxes.items():
        predictor = Predictor.load(make_tiny_bundle(tmp_path / geometry, geometry=geometry))
        found = explain(predictor, stream.getvalue(), label="red")
        assert found.box == pytest.approx(box)
        assert found.saliency[3].argmax() == GRID - 1, "the red end, which the center crop does not see"


def test_its_cost_is_what_it_says(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    engine = predictor.engine

    def counting(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return engine(batch)

    monkeypatch.setattr(predictor, "engine", counting)
    explain(predictor, halves("red", "blue", (3000, 2000)))
    assert sum(seen) == FORWARD_PASSES == 74
    assert max(seen) == 10


def test_a_image_of_one_color_has_an_empty_map(predictor: Predictor) -> None:
    found = explain(predictor, halves("red", "red"))
    assert not found.saliency.any()
    assert found.lowest_score == pytest.approx(found.center_score)


def test_a_class_that_is_none(predictor: Predictor) -> None:
    with pytest.raises(UsageError) as refused:
        explain(predictor, halves("red", "blue"), label="mauve")
    assert refused.value.code == "label"


def test_the_arithmetic_by_hand() -> None:
    probability = np.full((GRID + 1, GRID + 1), 0.5, np.float32)
    probability[2, 3] = 0.2  # the patch that covers rows 1-2 and columns 2-3
    probability[0, 0] = 0.3  # overhangs: covers one cell
    probability[5, 5] = 0.9  # a rise counts as nothing
    occluded = np.stack([(1 - probability) / 2, probability, (1 - probability) / 2], axis=-1)
    cells = saliency(log_odds(np.array([0.25, 0.5, 0.25]), 1), log_odds(occluded, 1))
    largest, smaller = np.log(0.8 / 0.2), np.log(0.7 / 0.3)
    expected = np.zeros((GRID, GRID))
    expected[1:3, 2:4] = 1
    expected[0, 0] = smaller / largest
    np.testing.assert_allclose(cells, expected, rtol=1e-6)


def test_certainty_is_no_infinity() -> None:
    occluded = np.zeros((GRID + 1, GRID + 1, 2), np.float32)
    occluded[..., 1] = 1
    cells = saliency(log_odds(np.array([1.0, 0.0]), 0), log_odds(occluded, 0))
    assert np.isfinite(cells).all()
    assert cells.max() == 1


@pytest.mark.parametrize("index", [0, 1], ids=["the sure class", "the one that it is not"])
def test_scores_that_look_alike_near_one_are_told_apart(index: int) -> None:
    sure = np.array([1.0, 1e-8], np.float32)  # 1 - 1e-8 is 1 in single precision
    less, least = np.array([1.0, 1e-6], np.float32), np.array([1 - 1e-5, 1e-5], np.float32)
    order = [float(log_odds(scores, index)) for scores in (sure, less, least)]
    steps = np.diff(order if index else order[::-1])
    np.testing.assert_allclose(sorted(steps), [np.log(10), np.log(100)], rtol=1e-4)


def test_what_the_arithmetic_alone_makes_is_no_map() -> None:
    whole = log_odds(np.array([0.9, 0.1]), 0)
    assert not saliency(whole, np.full((GRID + 1, GRID + 1), whole - 1e-5)).any()
