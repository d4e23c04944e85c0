"""Duplicates and near-duplicates: found, told apart from other images, and clustered."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from transferapp.data.audit import audit, summarize
from transferapp.data.dataset import Dataset, Record, connected_groups
from transferapp.data.folder import read_folder
from transferapp.data.near_duplicates import (
    CHANGES,
    MAX_HASH_DISTANCE,
    MIN_COSINE,
    SIGNATURE_BYTES,
    Change,
    hashes,
    near_duplicates,
    near_pairs,
    read_signatures,
    signature,
    similar_rows,
    too_uniform,
    with_clusters,
    with_similar,
)


def photo(seed: int, side: int = 160) -> Image.Image:
    """An image with the statistics of a photograph: noise whose strength falls with its frequency, in color."""
    rng = np.random.default_rng(seed)
    down, across = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(down, across), 1 / side) ** 1.5
    spectrum = falloff[..., None] * (rng.normal(size=(side, side, 3)) + 1j * rng.normal(size=(side, side, 3)))
    pixels = np.fft.ifft2(spectrum, axes=(0, 1)).real
    pixels = 128 + 45 * (pixels - pixels.mean(axis=(0, 1))) / pixels.std(axis=(0, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def saved(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": lambda image: saved(image, 40),
    "half the size": lambda image: image.resize((80, 80), Image.Resampling.LANCZOS),
    "stretched": lambda image: image.resize((200, 120)),
    "cropped": lambda image: ImageOps.crop(image, border=4),
    "turned a little": lambda image: ImageOps.crop(image.rotate(2, Image.Resampling.BICUBIC), border=4),
    "cropped by 15 %": lambda image: ImageOps.crop(image, border=12),
    "cut at a corner": lambda image: image.crop((24, 0, 160, 136)),
    "cut at one side": lambda image: image.crop((0, 0, 160, 136)),
    "turned by 5 degrees": lambda image: ImageOps.crop(image.rotate(5, Image.Resampling.BICUBIC), border=8),
    "turned the other way": lambda image: ImageOps.crop(image.rotate(-5, Image.Resampling.BICUBIC), border=8),
    "mirrored": ImageOps.mirror,
    "mirrored and saved": lambda image: saved(ImageOps.mirror(image), 60),
    "brighter": lambda image: image.point(lambda value: min(255, int(1.2 * value))),
    "in CMYK": lambda image: image.convert("CMYK").convert("RGB"),
    "black and white": lambda image: image.convert("L").convert("RGB"),
}


def pairs(images: list[Image.Image]) -> set[tuple[int, int]]:
    return set(near_duplicates(read_signatures([signature(image) for image in images])))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_however_it_was_made(how: str) -> None:
    originals = [photo(seed) for seed in range(12)]
    found = pairs([*originals, *(COPIES[how](image) for image in originals)])
    assert len(found & {(i, i + 12) for i in range(12)}) >= 11
    assert len(found) <= 12, "no image is taken for another"


def test_images_of_the_same_shapes_in_other_colors_are_not_copies() -> None:
    image = photo(3)
    red, green, blue = image.split()
    other = Image.merge("RGB", (green, blue, ImageOps.invert(red)))
    assert pairs([image, other]) == set()


def test_what_is_all_of_one_color_has_no_signature() -> None:
    assert signature(Image.new("RGB", (50, 50), (90, 20, 30))) == b""
    assert len(signature(photo(0))) == SIGNATURE_BYTES


def test_the_hash_after_a_change_is_that_of_the_changed_image() -> None:
    changed: dict[Change, Callable[[Image.Image], Image.Image]] = {
        Change(): lambda image: image,
        Change(mirrored=True): ImageOps.mirror,
        Change((0.25, 0, 1, 0.75)): lambda image: image.crop((40, 0, 160, 120)),
        Change((0.1, 0.1, 0.9, 0.9), 10): lambda image: ImageOps.crop(image.rotate(10, Image.Resampling.BICUBIC), 16),
        Change((0, 0, 1, 0.5), mirrored=True): lambda image: ImageOps.mirror(image.crop((0, 0, 160, 80))),
    }
    for change, make in changed.items():
        for seed in range(5):
            image, other = (read_signatures([signature(each)]) for each in (photo(seed), make(photo(seed))))
            assert np.bitwise_count(hashes(image, change) ^ hashes(other))[0] <= 4
            assert change == Change() or np.bitwise_count(hashes(image) ^ hashes(other))[0] > 10


def test_changes_that_undo_themselves_are_tried_once() -> None:
    assert [change.reversible for change in CHANGES].count(True) == 2
    assert not Change((0, 0, 1, 0.5), mirrored=True).reversible


def test_images_that_are_cropped_or_turned_further_are_other_images() -> None:
    image = photo(1)
    assert pairs([image, image.rotate(90)]) == set()
    assert pairs([image, ImageOps.crop(image, border=50)]) == set()


def clustered(root: Path) -> Dataset:
    return with_clusters(audit(read_folder(str(root)), min_per_class=1))


def clusters(dataset: Dataset) -> set[frozenset[str]]:
    names = {record.cluster for record in dataset.records} - {""}
    return {frozenset(record.name for record in dataset.records if record.cluster == name) for name in names}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    for seed in range(6):
        photo(seed).save(tmp_path / ("cats" if seed < 3 else "dogs") / f"{seed}.png")
    return tmp_path


def test_copies_of_copies_are_one_cluster_whatever_their_class(folder: Path) -> None:
    assert clusters(clustered(folder)) == set()
    photo(0).save(folder / "dogs" / "copy.bmp")
    saved(ImageOps.mirror(photo(0)), 90).save(folder / "cats" / "mirrored.png")
    (folder / "dogs" / "same.png").write_bytes((folder / "dogs" / "3.png").read_bytes())
    dataset = clustered(folder)
    assert clusters(dataset) == {
        frozenset(["cats/0.png", "dogs/copy.bmp", "cats/mirrored.png"]),
        frozenset(["dogs/3.png", "dogs/same.png"]),
    }
    assert all(record.signature == b"" for record in dataset.records)
    groups = dict(zip((record.name for record in dataset.records), dataset.groups().tolist(), strict=True))
    assert groups["cats/0.png"] == groups["dogs/copy.bmp"] == groups["cats/mirrored.png"] != groups["dogs/3.png"]
    assert len(set(groups.values())) == 6


def test_plain_images_are_copies_only_of_the_same_bytes(tmp_path: Path) -> None:
    for name, paint in (("cats", (9, 9, 9)), ("dogs", (9, 9, 10))):
        (tmp_path / name).mkdir()
        for copy in "ab":
            Image.new("RGB", (30, 30), paint).save(tmp_path / name / f"{copy}.png")
    assert clusters(clustered(tmp_path)) == {
        frozenset(["cats/a.png", "cats/b.png"]),
        frozenset(["dogs/a.png", "dogs/b.png"]),
    }


# Features


@pytest.mark.parametrize("count", [40, 9000], ids=["compared in full", "by projections first"])
def test_rows_that_point_the_same_way_are_found_most_alike_first(count: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 256)).astype(np.float32)
    rows[7] = 3 * rows[2]
    rows[30] = rows[11] + 0.3 * rng.normal(size=256)
    found = similar_rows(rows)
    assert [pair[:2] for pair in found] == [(2, 7), (11, 30)]
    assert found[0][2] == pytest.approx(1)
    assert MIN_COSINE < found[1][2] < 1


# Hashes


def hashes_with_near_ones(count: int, seed: int, flips: int) -> np.ndarray:
    """Random hashes, and as many with up to `flips` bits of those changed."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**64, count // 2, dtype=np.uint64)
    second = first.copy()
    for flip in range(flips):
        bits = np.left_shift(np.uint64(1), rng.integers(0, 64, len(second)).astype(np.uint64))
        second[flip * len(second) // flips :] ^= bits[flip * len(second) // flips :]
    return np.concatenate([first, second])


def one_by_one(queries: np.ndarray, held: np.ndarray, radius: int) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, query in enumerate(queries.tolist())
        for j, other in enumerate(held.tolist())
        if i < j and (query ^ other).bit_count() <= radius
    ]


def listed(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    return [pair for i, j in blocks for pair in zip(i.tolist(), j.tolist(), strict=True)]


@pytest.mark.parametrize("radius", [0, 5, MAX_HASH_DISTANCE])
@pytest.mark.parametrize(("rows", "columns"), [(16, 4096), (7, 16), (64, 5), (400, 400)])
def test_every_near_pair_is_found_once_and_no_other(radius: int, rows: int, columns: int) -> None:
    held = hashes_with_near_ones(300, seed=1, flips=12)
    expected = one_by_one(held, held, radius)
    assert (len(expected) > 20) == (radius > 0)
    assert sorted(listed(near_pairs(held, held, radius, rows=rows, columns=columns))) == expected


def test_other_hashes_than_those_that_are_held_can_be_asked_for() -> None:
    held = hashes_with_near_ones(200, seed=2, flips=9)
    queries = held[::-1].copy()
    found = listed(near_pairs(queries, held, MAX_HASH_DISTANCE, rows=16, columns=32))
    assert sorted(found) == one_by_one(queries, held, MAX_HASH_DISTANCE)


def test_thousands_of_equal_hashes_are_connected_without_all_their_pairs() -> None:
    equal = np.full(3000, 7, np.uint64)
    found = listed(near_pairs(equal, equal, MAX_HASH_DISTANCE))
    assert len(found) <= 3000 * 64
    assert set(connected_groups(3000, found)) == {0}


def test_what_is_connected_through_others_is_one_group() -> None:
    assert connected_groups(7, [(4, 2), (2, 6), (5, 5)]).tolist() == [0, 1, 2, 3, 2, 5, 2]
    assert connected_groups(3, []).tolist() == [0, 1, 2]
    assert connected_groups(0, []).tolist() == []


@pytest.mark.parametrize(("spread", "uniform"), [(1.0, False), (0.05, True)])
def test_a_set_is_too_uniform_where_images_of_different_classes_look_the_same(spread: float, uniform: bool) -> None:
    rng = np.random.default_rng(0)
    features = np.ones((200, 64), np.float32) + spread * rng.normal(size=(200, 64)).astype(np.float32)
    features -= (not uniform) * features.mean(axis=0)
    assert too_uniform(features, np.arange(200) % 4) == uniform


def test_duplicates_within_a_class_do_not_make_a_set_uniform() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(50, 64)).astype(np.float32), 4, axis=0)
    assert not too_uniform(features, np.repeat(np.arange(50) % 5, 4))
    assert not too_uniform(features[:4], np.zeros(4, int))


def featured(clusters: dict[int, str] | None = None, **settings: Any) -> tuple[Dataset, np.ndarray]:
    """Sixty images of two classes, and features of which 0 and 10, 5 and 6, and 6 and 7 are nearly the same."""
    features = np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32)
    for copy, original in ((10, 0), (6, 5), (7, 6)):
        features[copy] = features[original] + 0.1 * features[copy]
    records = [
        Record(f"{i}.png", f"{i}.png", i // 30, None, f"{i:02}" * 32, cluster=(clusters or {}).get(i, ""))
        for i in range(60)
    ]
    return Dataset("here", ("a", "b"), tuple(records), **settings), features


def test_images_with_similar_features_stay_together() -> None:
    dataset, features = featured({7: "old", 8: "old", 0: "same", 10: "same"})
    found = with_similar(dataset, features)
    assert [i for i, record in enumerate(found.records) if record.similar] == [5, 6, 7]
    assert len({found.records[i].similar for i in (5, 6, 7)}) == 1
    assert dataset.with_records([replace(record, similar="") for record in found.records]) == dataset
    groups = found.groups()
    assert len({groups[i] for i in (5, 6, 7, 8)}) == 1
    assert groups[0] == groups[10] != groups[5]


def test_features_that_do_not_tell_duplicates_join_nothing() -> None:
    dataset, features = featured(alike=True)
    assert with_similar(dataset, features) == dataset
    dataset, features = featured()
    assert with_similar(dataset, features + 10) == dataset, "too uniform"
    features[:20] = features[0] + 0.1 * features[:20]
    assert with_similar(dataset, features) == dataset, "most of a class"


def digit(number: int, seed: int) -> Image.Image:
    """A seven-segment digit on white, shifted and bent a little, as handwriting is."""
    rng = np.random.default_rng([number, seed])
    ends = {"a": (4, 4, 16, 4), "b": (16, 4, 16, 14), "c": (16, 14, 16, 24), "d": (4, 24, 16, 24)}
    ends |= {"e": (4, 14, 4, 24), "f": (4, 4, 4, 14), "g": (4, 14, 16, 14)}
    segments = ("abcdef", "bc", "abged", "abgcd", "fgbc")[number]
    image = Image.new("L", (28, 28), 255)
    draw = ImageDraw.Draw(image)
    shift = rng.integers(0, 4, 2)
    for segment in segments:
        left, top, right, bottom = (
            int(p) for p in np.array(ends[segment]) + np.tile(shift, 2) + rng.integers(-1, 2, 4)
        )
        draw.line((left, top, right, bottom), fill=0, width=3)
    return image.convert("RGB")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        for seed in range(40):
            digit(number, seed).save(tmp_path / str(number) / f"{seed}.png")
    return tmp_path


def test_where_different_images_look_alike_only_those_saved_again_are_copies(digits: Path) -> None:
    saved(digit(2, 0).resize((56, 56)), 95).save(digits / "2" / "again.png")
    ImageOps.mirror(digit(3, 0)).save(digits / "3" / "mirrored.png")
    dataset = clustered(digits)
    assert dataset.alike
    found = clusters(dataset)
    assert len(found) < 20, "each class would be a chain or two otherwise"
    assert max(map(len, found)) <= 4
    assert any({"2/0.png", "2/again.png"} <= names for names in found)
    assert any({"3/0.png", "3/mirrored.png"} <= names for names in found)
    assert summarize(dataset).alike


def test_photographs_and_frames_of_one_object_are_not_alike(folder: Path) -> None:
    for seed in range(6, 26):
        photo(seed).save(folder / "dogs" / f"{seed}.png")
    for name, make in COPIES.items():  # fifteen of one image, but not most of the class
        make(photo(9)).save(folder / "dogs" / f"copy {name}.png")
    dataset = clustered(folder)
    assert not dataset.alike
    assert not summarize(dataset).alike
    assert max(map(len, clusters(dataset))) >= 12
