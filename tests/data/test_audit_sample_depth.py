"""The depth of 16-bit samples: one for a set, found by the audit, and what it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferapp.data.audit import DARK, FEATURELESS, audit, sample_depth, summarize
from transferapp.data.dataset import Dataset, Record
from transferapp.errors import DataError


def scenes(folder: Path, count: int, white: int, suffix: str = ".png") -> list[Path]:
    """Gray images whose brightest sample is `white`, or a little less."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((40, 30))
        samples = (np.asarray(coarse, np.float64) * (white - 20 * number) / np.asarray(coarse).max()).astype(np.uint16)
        paths.append(folder / f"{number}{suffix}")
        Image.fromarray(samples).save(paths[-1])
    return paths


def dataset(paths: list[Path]) -> Dataset:
    return Dataset("here", ("a", "b"), tuple(Record(str(p), p.name, i % 2) for i, p in enumerate(paths)))


def decoded(record: Record) -> np.ndarray:
    return np.asarray(record.decode(256).image)


@pytest.mark.parametrize(
    ("peaks", "bits"),
    [
        ([], 16),
        ([0, 0], 16),
        ([1], 8),
        ([255], 8),
        ([256], 10),
        ([900, 1023], 10),
        ([1024], 12),
        ([3000, 4095, 12], 12),
        ([4096], 14),
        ([16383], 14),
        ([16384], 16),
        ([100, 65535], 16),
    ],
)
def test_the_depth_holds_every_sample(peaks: list[int], bits: int) -> None:
    assert sample_depth(peaks) == bits


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_12_bit_samples_in_16_bit_files_become_as_bright_as_they_are(tmp_path: Path, suffix: str) -> None:
    (record, *others) = audit(dataset(scenes(tmp_path, 4, 4095, suffix)), min_per_class=1).records
    assert [each.sample_bits for each in (record, *others)] == [12] * 4
    assert decoded(record).max() == 255
    assert all(200 < decoded(each).max() <= 255 for each in others)
    assert FEATURELESS not in record.notes
    assert max(record.colors) > 200, "the color components are of the scaled image"


def test_images_keep_their_brightness_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    dark = scenes(tmp_path / "dark", 2, 1000)
    records = audit(dataset([*scenes(tmp_path, 2, 4095), *dark]), min_per_class=1).records
    assert {record.sample_bits for record in records} == {12}
    assert decoded(records[-2]).max() == round(1000 * 255 / 4095)


def test_images_of_a_lower_depth_than_the_set_are_named(tmp_path: Path) -> None:
    for name in ("deep", "full"):
        (tmp_path / name).mkdir()
    records = audit(dataset([*scenes(tmp_path / "deep", 2, 4095), *scenes(tmp_path / "full", 2, 65535)])).records
    assert [DARK in record.notes for record in records] == [True, True, False, False]
    alone = audit(dataset(scenes(tmp_path / "deep", 4, 4095))).records
    assert not any(DARK in record.notes for record in alone)


def test_one_depth_for_gray_and_none_for_8_bits(tmp_path: Path) -> None:
    paths = scenes(tmp_path, 3, 4095)
    Image.new("RGB", (40, 30), (9, 200, 30)).save(tmp_path / "plain.png")
    audited = audit(dataset([*paths, tmp_path / "plain.png"]), min_per_class=1)
    assert [record.sample_bits for record in audited.records] == [12, 12, 12, 0]
    assert audited.sample_bits == 12
    assert (decoded(audited.records[-1])[0, 0] == (9, 200, 30)).all()


@pytest.mark.parametrize(("white", "bits"), [(65535, 16), (20000, 16)])
def test_the_full_range_stays_as_it_was(tmp_path: Path, white: int, bits: int) -> None:
    audited = audit(dataset(scenes(tmp_path, 2, white)), min_per_class=1)
    assert audited.sample_bits == bits
    assert decoded(audited.records[0]).max() == round(white / 257)
    assert summarize(audited).sample_depth is None


def test_a_set_without_such_files_has_no_depth(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("L", (40, 30), number).save(tmp_path / f"{number}.png")
    audited = audit(dataset([tmp_path / "0.png", tmp_path / "1.png"]), min_per_class=1)
    assert audited.sample_bits is None
    assert summarize(audited).sample_depth is None


def test_the_findings_give_the_reason(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (9, 200, 30)).save(tmp_path / "plain.png")
    reason = summarize(
        audit(dataset([*scenes(tmp_path, 3, 4095), tmp_path / "plain.png"]), min_per_class=1)
    ).sample_depth
    assert reason is not None
    assert dict(reason.values) == {"sample_bits": 12, "white": 4095, "num_images": 3}


def test_a_file_that_goes_between_the_two_readings_ends_the_audit(tmp_path: Path) -> None:
    paths = scenes(tmp_path, 3, 4095)

    def remove(done: int) -> None:
        if done == len(paths):
            paths[1].unlink()

    with pytest.raises(DataError, match=r"1\.png has changed"):
        audit(dataset(paths), progress=remove)
