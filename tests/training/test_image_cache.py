"""Decoded images in bounded memory: made once where there is room, and the same pixels where there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferapp.data.dataset import Record
from transferapp.errors import DataError
from transferapp.images import decode_image
from transferapp.images.augment import Augmentation
from transferapp.images.views import center_view, render
from transferapp.training.batches import DecodedCache, center_views, training_images

SIZE = (32, 32)
SHORT_SIDE = 69  # ceil(480 · 32 / 224)


def record_of(path: Path, label: int = 0) -> Record:
    return Record(str(path), path.name, label, "train", hashlib.sha256(path.read_bytes()).hexdigest())


def saved(path: Path, size: tuple[int, int], seed: int = 0) -> Record:
    """An image of smooth colors that fills `size` (width, height)."""
    seeds = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(seeds).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return record_of(path)


class Counting:
    """Makes 100-byte-wide arrays out of nothing, and counts how often."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> np.ndarray:
        with self._lock:
            self.made[record.name] += 1
        return np.full((10, 10, 3), record.label, np.uint8)  # 300 bytes


def named(*names: str) -> list[Record]:
    return [Record(name, name, label, "train", f"sha-{name}") for label, name in enumerate(names)]


# ----------------------------------------------------------------------------------------------------------- what is kept


def test_an_image_is_made_once_and_kept_read_only() -> None:
    make = Counting()
    cache = DecodedCache(make)
    (record,) = named("a")
    first = cache.get(record)
    assert cache.get(record) is first
    assert make.made == {"a": 1}
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_images_of_the_same_content_share_one_entry() -> None:
    make = Counting()
    cache = DecodedCache(make)
    (record,) = named("a")
    twin = dataclasses.replace(record, location="b", name="b")
    assert cache.get(twin) is cache.get(record)
    assert len(cache) == 1


def test_images_without_a_hash_are_distinguished_by_path() -> None:
    cache = DecodedCache(Counting())
    records = [dataclasses.replace(record, sha256="") for record in named("a", "b")]
    assert [cache.get(record)[0, 0, 0] for record in records] == [0, 1]


def test_what_came_first_is_kept_and_the_bound_is_never_passed() -> None:
    make = Counting()
    cache = DecodedCache(make, max_bytes=1000)  # three of 300 bytes
    records = named(*"abcdef")
    for _ in range(4):
        for record in records:
            assert cache.get(record)[0, 0, 0] == record.label
            assert cache.nbytes <= 1000
    assert cache.nbytes == 900
    assert make.made == {"a": 1, "b": 1, "c": 1, "d": 4, "e": 4, "f": 4}


def test_without_room_nothing_is_kept() -> None:
    cache = DecodedCache(Counting(), max_bytes=0)
    assert cache.get(named("a")[0]).shape == (10, 10, 3)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_many_threads_get_the_right_images_within_the_bound() -> None:
    cache = DecodedCache(Counting(), max_bytes=20 * 300)
    records = named(*map(str, range(40)))
    order = np.random.default_rng(0).integers(40, size=4000)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: int(cache.get(records[i])[0, 0, 0]), order))
    assert values == order.tolist()
    assert (len(cache), cache.nbytes) == (20, 20 * 300)


def test_an_image_made_twice_at_the_same_moment_is_kept_and_counted_once() -> None:
    both = threading.Barrier(2, timeout=60)

    def make(record: Record) -> np.ndarray:
        both.wait()  # until the other thread is here as well
        return np.zeros((10, 10, 3), np.uint8)

    cache = DecodedCache(make)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cache.get, named("a") * 2))
    assert (len(cache), cache.nbytes) == (1, 300)


# ------------------------------------------------------------------------------------------------------ what is made of it


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_large_images_are_reduced_to_what_training_needs(tmp_path: Path, name: str) -> None:
    record = saved(tmp_path / name, (400, 300))
    cache = training_images(SIZE)
    pixels = cache.get(record)
    assert pixels.shape == (SHORT_SIDE, 92, 3)  # 400 · 69 / 300
    assert pixels.dtype == np.uint8
    assert cache.nbytes == SHORT_SIDE * 92 * 3
    expected = decode_image(record.path).image.resize((92, SHORT_SIDE), Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 1


def test_upright_images_are_reduced_by_their_width(tmp_path: Path) -> None:
    assert training_images(SIZE).get(saved(tmp_path / "a.png", (300, 400))).shape == (92, SHORT_SIDE, 3)


def test_small_images_keep_every_pixel(tmp_path: Path) -> None:
    record = saved(tmp_path / "small.png", (60, 40))
    np.testing.assert_array_equal(training_images(SIZE).get(record), np.asarray(decode_image(record.path).image))


def test_smaller_training_scales_keep_smaller_images(tmp_path: Path) -> None:
    record = saved(tmp_path / "a.png", (300, 300))
    assert training_images(SIZE, Augmentation(short_sides=(224, 224))).get(record).shape == (32, 32, 3)


def test_center_views_are_the_pixels_that_a_served_model_sees(tmp_path: Path) -> None:
    record = saved(tmp_path / "a.jpg", (400, 300))
    image = decode_image(record.path, min_short_side=37).image
    np.testing.assert_array_equal(
        center_views(SIZE, "crop").get(record), render(image, center_view(image.size, SIZE), SIZE)
    )


@pytest.mark.parametrize("make_cache", [training_images, partial(center_views, geometry="crop")])
def test_a_file_that_vanished_is_named_and_its_error_kept(
    tmp_path: Path, make_cache: Callable[..., DecodedCache]
) -> None:
    record = saved(tmp_path / "gone.png", (60, 40))
    record.path.unlink()
    with pytest.raises(DataError, match=r"gone\.png could be read when .* cannot be read") as caught:
        make_cache(SIZE).get(record)
    assert caught.value.code == "unreadable"
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_a_kept_image_outlives_its_file(tmp_path: Path) -> None:
    record = saved(tmp_path / "a.png", (60, 40))
    cache = training_images(SIZE)
    before = cache.get(record)
    record.path.unlink()
    assert cache.get(record) is before


# ------------------------------------------------------------------------------------------------------------ samples
