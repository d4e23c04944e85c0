"""Sizes of a few images before the audit, and the colors that the audit samples."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferapp.data.audit import COLOR_GRID, audit, peek_sizes
from transferapp.data.dataset import Dataset, Record


def dataset(*paths: Path) -> Dataset:
    return Dataset("here", ("a", "b"), tuple(Record(str(p), p.name, i % 2) for i, p in enumerate(paths)))


def image(path: Path, size: tuple[int, int] = (40, 30), color: tuple[int, int, int] = (200, 10, 90)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_sizes_are_width_and_height_as_a_person_sees_them(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    Image.new("RGB", (60, 20)).save(turned, exif=exif)
    assert peek_sizes(dataset(image(tmp_path / "a.png"), turned)) == ((40, 30), (20, 60))


def test_a_large_set_is_looked_at_here_and_there(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{i:03}.png", (20 + i, 20)) for i in range(100)]
    sizes = peek_sizes(dataset(*paths), count=10)
    assert sizes == tuple((20 + i, 20) for i in range(0, 100, 10))


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>")
    paths = [
        tmp_path / "empty.png",
        tmp_path / "gone.png",
        tmp_path / "page.jpg",
        tmp_path,
        image(tmp_path / "b.png"),
    ]
    assert peek_sizes(dataset(*paths)) == ((40, 30),)
    assert peek_sizes(dataset()) == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    found: list[object] = []
    looking = threading.Thread(
        target=lambda: found.append(peek_sizes(dataset(tmp_path / "pipe.png", image(tmp_path / "a.png")))),
        daemon=True,
    )
    looking.start()
    looking.join(60)
    assert found == [((40, 30),)]


def test_colors_are_pixels_of_the_images(tmp_path: Path) -> None:
    paths = [image(tmp_path / "a.png", color=(200, 10, 90)), image(tmp_path / "b.png", color=(0, 255, 7))]
    audited = audit(dataset(*paths), min_per_class=1)
    for record, color in zip(audited.records, ((200, 10, 90), (0, 255, 7)), strict=True):
        pixels = np.frombuffer(record.colors, np.uint8).reshape(-1, 3)
        assert len(pixels) == COLOR_GRID[0] * COLOR_GRID[1]
        assert (pixels == color).all()
    assert [record.size for record in audited.records] == [(40, 30), (40, 30)]


def test_of_a_large_set_a_sample_gives_its_colors_whatever_its_files_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferapp.data.audit.COLOR_IMAGES", 15)
    paths = []
    for i in range(60):
        Image.new("RGB", (20, 20), (i, 2 * i, 200)).save(tmp_path / f"{i:02}.png")
        paths.append(tmp_path / f"{i:02}.png")
    sampled = {record.sha256 for record in audit(dataset(*paths), min_per_class=1).records if record.colors}
    assert 5 <= len(sampled) <= 30  # 15 of 60 are to be expected
    renamed = [path.rename(tmp_path / f"{59 - i:02} again.png") for i, path in enumerate(paths)]
    again = audit(dataset(*sorted(renamed)), min_per_class=1)
    assert {record.sha256 for record in again.records if record.colors} == sampled
