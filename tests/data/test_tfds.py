"""Datasets of tensorflow-datasets, prepared by the tests and read without a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transferapp.data import tfds as source
from transferapp.data.dataset import Dataset
from transferapp.data.options import SourceOptions
from transferapp.data.sources import open_source
from transferapp.errors import DataError

NAMES = ["zebra", "ant", "empty", "Größe 12 🐕"]


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


def prepare(
    data_dir: Path,
    counts: dict[str, int],
    name: str = "Pets",
    features: dict[str, Any] | None = None,
    supervised: tuple[str, str] | None = ("image", "label"),
    example: dict[str, Any] | None = None,
    unlabeled: tuple[str, ...] = (),
) -> None:
    """Prepare a dataset with tensorflow-datasets itself, as its users do.

    Args:
        data_dir: Where.
        counts: Images of each split; labels go round through zebra, ant and the last.
        name: The builder's class.
        features: More than the image and its label, or in their place.
        supervised: The keys that it is to be learned with.
        example: What each example has of those other features.
        unlabeled: Splits without labels.
    """
    import tensorflow_datasets as tfds

    def info(self: Any) -> Any:
        both = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=NAMES),
            **{key: make() for key, make in (features or {}).items()},
        }
        both = {key: feature for key, feature in both.items() if feature is not None}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(both), supervised_keys=supervised
        )

    def examples(split: str, first: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(first, first + count):
            label = -1 if split in unlabeled else (0, 1, 3)[number % 3]
            whole = {"image": io.BytesIO(encoded(number)), "label": label, **(example or {})}
            yield number, {key: value for key, value in whole.items() if value is not None}

    def splits(self: Any, _: Any) -> dict[str, Any]:
        firsts = dict(zip(counts, range(0, 1000, 100), strict=False))
        return {split: examples(split, firsts[split], count) for split, count in counts.items()}

    body = {
        "VERSION": tfds.core.Version("1.2.3"),
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": examples,
        "__module__": __name__,
        "pkg_dir_path": data_dir,
    }
    with tfds.core.registered.skip_registration():  # as a dataset of which only the data are here
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)(data_dir=data_dir)
    tfds.disable_progress_bar()
    builder.download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with `pets` in it: 9 images to train on, 4 to validate, 3 to test, and 2 without a use."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, {"train": 9, "validation": 4, "test": 3, "extra": 2})
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(folder))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return folder / "sources"


def read(data: str, data_dir: Path) -> Dataset:
    return open_source(data, options=SourceOptions(data_dir=str(data_dir)))


@pytest.mark.parametrize("data", ["tfds:pets", "tfds:pets:1.2.3"])
def test_a_prepared_dataset_is_read_with_its_classes_and_splits(data_dir: Path, data: str) -> None:
    dataset = read(data, data_dir)
    assert dataset.origin == data
    assert dataset.class_names == ("zebra", "ant", "Größe 12 🐕"), "in the dataset's own order, less the empty one"
    assert dataset.given_splits == ("train", "val", "test")
    assert [len(dataset.part(split)) for split in dataset.given_splits] == [9, 4, 3]
    assert dataset.counts() == [5, 6, 5]
    assert [(item.name, item.code) for item in dataset.ignored] == [("extra", "unknown_split")]


def test_images_are_the_bytes_that_went_in(data_dir: Path) -> None:
    dataset = read("tfds:pets", data_dir)
    numbers = [*range(9), *range(100, 104), *range(200, 203)]
    wanted = {encoded(number): ((0, 1, 3)[number % 3]) for number in numbers}
    for record in dataset.records:
        assert record.path.suffix == ".jpg"
        assert NAMES[wanted.pop(record.path.read_bytes())] == dataset.class_names[record.label]
    assert not wanted


def test_the_directory_is_found_by_its_variable_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets

    monkeypatch.setattr(tensorflow_datasets.core.constants, "DATA_DIR", str(data_dir))  # read when it is imported
    assert len(open_source("tfds:pets")) == 16


def test_a_second_time_nothing_is_written_until_the_data_change(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_dir, tmp_path / "copy")
    first = read("tfds:pets", tmp_path / "copy")
    write = source._write
    monkeypatch.setattr(source, "_write", None)
    assert read("tfds:pets", tmp_path / "copy") == first
    monkeypatch.setattr(source, "_write", write)
    shutil.rmtree(tmp_path / "copy" / "pets")
    prepare(tmp_path / "copy", {"train": 12})
    assert len(read("tfds:pets", tmp_path / "copy")) == 12


def test_train_alone_is_no_split_and_raw_pixels_come_as_png(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    prepare(
        tmp_path,
        {"train": 6},
        features={"image": lambda: tfds.features.Image(shape=(20, 20, 1)), "id": tfds.features.Text},
        supervised=None,
        example={"image": rng.integers(0, 255, (20, 20, 1), dtype=np.uint8), "id": "x"},
    )
    dataset = read("tfds:pets", tmp_path)
    assert dataset.given_splits == ()
    assert {record.path.suffix for record in dataset.records} == {".png"}
    assert {record.split for record in dataset.records} == {None}


def test_images_without_a_label_are_counted_and_left_out(tmp_path: Path) -> None:
    prepare(tmp_path, {"train": 6, "test": 4}, unlabeled=("test",))
    dataset = read("tfds:pets", tmp_path)
    assert len(dataset) == 6
    assert dataset.given_splits == ()
    (item,) = dataset.ignored
    assert (item.name, item.code, item.reason) == ("test", "no_label", "has 4 images without a label")


def test_two_labels_are_not_one(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    prepare(
        tmp_path,
        {"train": 3},
        features={"color": lambda: tfds.features.ClassLabel(num_classes=2)},
        supervised=None,
        example={"color": 1},
    )
    with pytest.raises(DataError, match=r"not a set of images with one label each.*got color, image, label"):
        read("tfds:pets", tmp_path)


def test_a_damaged_shard_is_told_of(data_dir: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "copy")
    shard = next((tmp_path / "copy").rglob("pets-train.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"pets/1\.2\.3 in .* cannot be read .*Delete that folder") as caught:
        read("tfds:pets", tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("tfds*.json"))
    assert not list(cache.glob("*.part"))


def test_a_dataset_that_nobody_knows_is_told_of_with_similar_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"knows no dataset 'mnits'.*Names like it: mnist") as caught:
        read("tfds:mnits", tmp_path)
    assert len(str(caught.value)) < 400
    with pytest.raises(DataError, match="names no dataset"):
        read("tfds:", tmp_path)
    with pytest.raises(DataError, match=r"'mnist:9\.9\.9' cannot be opened"):
        read("tfds:mnist:9.9.9", tmp_path)


def test_a_download_that_cannot_be_made_says_what_to_do_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(host: str, port: int) -> None:
        raise OSError("Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(source.socket, "getaddrinfo", nowhere)
    with pytest.raises(
        DataError, match=r"mnist is not prepared in .*no connection.*--data-dir or TFDS_DATA_DIR"
    ) as caught:
        read("tfds:mnist", tmp_path)
    assert caught.value.exit_code == 3


def test_a_download_that_fails_says_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets

    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("the server hung up\nand more")

    monkeypatch.setattr(source, "_offline", lambda _: False)
    monkeypatch.setattr(tensorflow_datasets.download.DownloadManager, "download", fails)
    monkeypatch.setattr(tensorflow_datasets.download.DownloadManager, "download_and_extract", fails)
    with pytest.raises(DataError, match=r"could not be downloaded or prepared \(ConnectionError: the server hung up\)"):
        read("tfds:mnist", tmp_path)


def test_nothing_of_it_is_imported_for_other_sources() -> None:
    import subprocess
    import sys

    code = "import sys, transferapp.data.sources, transferapp.data.tfds; print('tensorflow_datasets' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
