"""Training views: each setting can be switched off by itself, and the defaults are those of `views.training_view`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from transferapp.errors import UsageError
from transferapp.images.augment import (
    LECTURE_AUGMENTATION,
    Augmentation,
    ColorJitter,
    PCAColor,
    augmented_pixels,
    jitter,
    seeded_generator,
)
from transferapp.images.views import center_view, render, ten_crops, training_view

SIZE = (32, 32)
PLAIN = ColorJitter(0, 0, 0)
FIXED = Augmentation(flip=False, short_sides=(256, 256), random_crop=False, color=PLAIN)
PCA = PCAColor(np.eye(3), np.array([0.3, 0.2, 0.1]), np.full(3, 0.5))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def views(image: Image.Image, augmentation: Augmentation, count: int = 30) -> list[bytes]:
    return [
        augmented_pixels(image, seeded_generator(index), SIZE, augmentation, PCA).tobytes() for index in range(count)
    ]


def test_the_default_is_the_lectures_view_and_then_its_colors(image: Image.Image) -> None:
    for seed in range(10):
        got = augmented_pixels(image, np.random.default_rng(seed), SIZE, LECTURE_AUGMENTATION, PCA)
        rng = np.random.default_rng(seed)
        pixels = render(image, training_view(rng, image.size, SIZE), SIZE)
        np.testing.assert_array_equal(got, jitter(pixels, rng, ColorJitter(), PCA))


def test_with_all_settings_off_every_view_is_the_center_view(image: Image.Image) -> None:
    expected = render(image, center_view(image.size, SIZE), SIZE).tobytes()
    assert set(views(image, FIXED)) == {expected}


def test_a_flip_alone_gives_two_views_about_as_often(image: Image.Image) -> None:
    found = views(image, Augmentation(flip=True, short_sides=(256, 256), random_crop=False, color=PLAIN), 200)
    crops = ten_crops(image.size, SIZE)
    straight, mirrored = (render(image, view, SIZE).tobytes() for view in (crops[4], crops[9]))
    assert set(found) == {straight, mirrored}
    assert 70 <= found.count(mirrored) <= 130


def test_without_flips_the_other_choices_are_the_same(image: Image.Image) -> None:
    flipping = Augmentation(color=PLAIN)
    straight = Augmentation(flip=False, color=PLAIN)
    mirrored = 0
    for index in range(30):
        one, other = (augmented_pixels(image, seeded_generator(index), SIZE, a, None) for a in (flipping, straight))
        if not np.array_equal(one, other):
            np.testing.assert_array_equal(one[:, ::-1], other)
            mirrored += 1
    assert 5 <= mirrored <= 25


def test_scales_and_places_vary_by_themselves(image: Image.Image) -> None:
    scales = Augmentation(flip=False, short_sides=(256, 480), random_crop=False, color=PLAIN)
    places = Augmentation(flip=False, short_sides=(480, 480), color=PLAIN)
    assert len(set(views(image, scales))) == len(set(views(image, places))) == 30


def test_a_larger_short_side_shows_less_of_the_image() -> None:
    ramp = np.tile(np.arange(240, dtype=np.uint8), (240, 1))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))

    def seen(short_side: float) -> float:
        settings = Augmentation(flip=False, short_sides=(short_side, short_side), random_crop=False, color=PLAIN)
        pixels = augmented_pixels(image, seeded_generator(0), SIZE, settings, None)
        return float(np.ptp(pixels.astype(float)))

    assert seen(448) == pytest.approx(seen(224) / 2, abs=8)


def test_a_view_depends_on_its_generator_alone(image: Image.Image) -> None:
    assert views(image, LECTURE_AUGMENTATION) == views(image, LECTURE_AUGMENTATION)
    assert len(set(views(image, LECTURE_AUGMENTATION))) == 30


def test_generators_of_different_keys_differ_and_of_the_same_key_agree() -> None:
    keys = [("view", 0, 1), ("view", 1, 0), ("view", 0, 11), ("order", 0, 1), ("view", 0, "1", "")]
    draws = [tuple(seeded_generator(*key).random(3)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(seeded_generator(*key).random(3)) for key in keys]


@pytest.mark.parametrize("short_sides", [(480, 256), (200, 256), (256, float("inf")), (float("nan"), 256)])
def test_scales_that_make_no_sense_are_refused(short_sides: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="scales"):
        Augmentation(short_sides=short_sides)
