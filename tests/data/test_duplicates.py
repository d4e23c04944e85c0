"""Copies: what is found, what is told apart, and what belongs together because of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from transferapp.data.audit import audit
from transferapp.data.dataset import Dataset
from transferapp.data.duplicates import MIN_COSINE, near_copies, similar_rows, with_clusters
from transferapp.data.folder import read_folder
from transferapp.data.neighbors import hamming_distance
from transferapp.data.signature import SIGNATURE_BYTES, read_signatures, signature


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
    "mirrored": ImageOps.mirror,
    "mirrored and saved": lambda image: saved(ImageOps.mirror(image), 60),
    "brighter": lambda image: image.point(lambda value: min(255, int(1.2 * value))),
    "in CMYK": lambda image: image.convert("CMYK").convert("RGB"),
    "black and white": lambda image: image.convert("L").convert("RGB"),
}


def pairs(images: list[Image.Image]) -> set[tuple[int, int]]:
    return set(near_copies(read_signatures([signature(image) for image in images])))


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


def test_the_hash_of_a_mirror_image_is_the_mirrored_hash() -> None:
    one, mirrored = (read_signatures([signature(image)]) for image in (photo(5), ImageOps.mirror(photo(5))))
    assert hamming_distance(one.mirrored().hashes, mirrored.hashes)[0] <= 1  # a frequency that is all but absent
    assert hamming_distance(one.hashes, mirrored.hashes)[0] > 20
    np.testing.assert_allclose(one.mirrored().glances.astype(int), mirrored.glances, atol=1)
    assert one.mirrored().mirrored().hashes.tolist() == one.hashes.tolist()


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
    kin = dict(zip((record.name for record in dataset.records), dataset.kin().tolist(), strict=True))
    assert kin["cats/0.png"] == kin["dogs/copy.bmp"] == kin["cats/mirrored.png"] != kin["dogs/3.png"]
    assert len(set(kin.values())) == 6


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
