"""The program `export`: what it compares on, what it keeps, and what it refuses without a trace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.recipes.test_evaluate import bundle, folder, paint
from transferapp.bundle.exports import formats
from transferapp.bundle.exports.formats import Format
from transferapp.bundle.exports.networks import Answers, Job, Opened, Run
from transferapp.bundle.predictor import Predictor
from transferapp.data.dataset import Record
from transferapp.errors import DataError, ResourceError, TransferAppError, UsageError
from transferapp.recipes import export as recipe
from transferapp.recipes.export import batches, export

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def use_format(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[np.ndarray]]:
    """Put a format in the place of all, which gives the bundle's probabilities after a change."""

    def put(
        path: Path, change: Change = np.copy, files: Change | None = None, file: str = "net", **options: Any
    ) -> list[np.ndarray]:
        calibrated: list[np.ndarray] = []

        def write(job: Job) -> None:
            calibrated.extend(job.calibration)
            (job.folder / "net").write_bytes(b"weights")

        @contextlib.contextmanager
        def opened(written: Path) -> Iterator[Opened]:
            assert (written / "net").is_file()
            predictor = Predictor.load(path, precision="f32")

            def changed(by: Change) -> Run:
                return lambda batch: Answers(by(predictor.probabilities(batch.pixels)))

            yield Opened(changed(change), changed(files) if files else None)

        monkeypatch.setattr(recipe, "find_format", lambda _: Format("fake", file, (), write, opened, **options))
        return calibrated

    return put


def swapped(share: float) -> Change:
    """Give the first two classes each other's probability in a share of the images."""
    seen = 0

    def change(probabilities: np.ndarray) -> np.ndarray:
        nonlocal seen
        given = probabilities.copy()
        for row in given:
            seen += 1
            if int(seen * share) > int((seen - 1) * share):
                row[:] = np.roll(row, 1)
        return given

    return change


def test_an_export_that_agrees_is_kept_with_its_metadata(tmp_path: Path, use_format: Any) -> None:
    data, path = folder(tmp_path / "data", {"red": 4, "green": 3, "blue": 3}), bundle(tmp_path / "tiny")
    use_format(path)
    result = export(path, "fake", tmp_path / "out" / "tiny", data=str(data))
    assert (result.parity.num_images, result.parity.agreement, result.parity.max_difference) == (10, 1, 0)
    assert (result.parity.accuracy, result.parity.bundle_accuracy) == (1, 1)
    assert sorted(file.name for file in result.path.iterdir()) == ["metadata.json", "net"]
    assert result.num_bytes == sum(file.stat().st_size for file in result.path.iterdir())
    metadata = json.loads((result.path / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["class_names"] == ["red", "green", "blue"]
    assert metadata["input"]["shape"] == [None, 224, 224, 3]
    assert metadata["preparation"]["crop_share"] == pytest.approx(224 / 256)
    assert metadata["compared"]["agreement"] == 1
    assert [file.name for file in result.path.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("change", "quantized", "kept"),
    [
        (lambda p: p + 0.019 * np.array([[1, -1, 0]]), False, True),
        (lambda p: p + 0.021 * np.array([[1, -1, 0]]), False, False),
        (lambda p: p * np.nan, False, False),
        (lambda p: p * np.nan, True, False),
        (lambda p: p + 0.1 * np.array([[1, -1, 0]]), True, True),
        (swapped(0.01), True, True),
        (swapped(0.02), True, False),
    ],
    ids=["within", "beyond", "nan", "quantized-nan", "quantized-differs", "quantized-one-point", "quantized-worse"],
)
def test_an_export_that_differs_leaves_nothing(
    change: Change, quantized: bool, kept: bool, tmp_path: Path, use_format: Any
) -> None:
    data = folder(tmp_path / "data", {"red": 100, "green": 100})
    learned = [paint(tmp_path / "data" / "blue" / "learned.png", "blue", 300)]
    path = bundle(tmp_path / "tiny", learned=[(image, "train") for image in learned])
    use_format(path, change, quantized=quantized)
    out = tmp_path / "out" / "tiny"
    if kept:
        assert export(path, "fake", out, data=str(data)).parity.num_images == 200
        return
    with pytest.raises(TransferAppError) as caught:
        export(path, "fake", out, data=str(data))
    assert (caught.value.code, caught.value.exit_code) == ("export_differs", 6)
    assert list(out.parent.iterdir()) == []


def test_one_label_in_two_hundred_may_change(tmp_path: Path, use_format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = folder(tmp_path / "data", {"red": 100, "green": 100}), bundle(tmp_path / "tiny")
    monkeypatch.setattr("transferapp.evaluation.parity.EXPORT_MAX_DIFFERENCE", 1)
    use_format(path, swapped(0.005))
    assert export(path, "fake", tmp_path / "a", data=str(data)).parity.agreement == pytest.approx(0.995)
    use_format(path, swapped(0.01))
    with pytest.raises(TransferAppError) as caught:
        export(path, "fake", tmp_path / "b", data=str(data))
    assert caught.value.code == "export_differs"


def test_images_that_the_bundle_was_trained_on_calibrate_and_others_compare(tmp_path: Path, use_format: Any) -> None:
    data = folder(tmp_path / "data", {"red": 5, "green": 5})
    images = sorted(data.rglob("*.png"))
    path = bundle(tmp_path / "tiny", learned=[(image, "train" if i < 6 else "val") for i, image in enumerate(images)])
    calibrated = use_format(path, quantized=True)
    moved = tmp_path / "elsewhere"
    data.rename(moved)
    assert export(path, "fake", tmp_path / "out", data=str(moved)).parity.num_images == 4
    assert [crop.shape for crop in calibrated] == [(1, 224, 224, 3)] * 6


def test_it_is_compared_on_validation_images_only_where_there_are_no_others(tmp_path: Path, use_format: Any) -> None:
    """The linear classifier that ships is solved on training and validation images together."""
    data = folder(tmp_path / "data", {"red": 5, "green": 5})
    images, parts = sorted(data.rglob("*.png")), ["train"] * 5 + ["val"] * 3 + ["test"] * 2
    path = bundle(tmp_path / "tiny", learned=list(zip(images, parts, strict=True)))
    use_format(path)
    assert export(path, "fake", tmp_path / "out", data=str(data)).parity.num_images == 2
    for image in images[8:]:
        image.unlink()
    assert export(path, "fake", tmp_path / "out", data=str(data)).parity.num_images == 3


@pytest.mark.parametrize("learned", ["train", "test"])
def test_without_held_out_or_training_images_it_asks_for_data(learned: str, tmp_path: Path, use_format: Any) -> None:
    data = folder(tmp_path / "data", {"red": 2, "green": 2})
    path = bundle(tmp_path / "tiny", learned=[(image, learned) for image in data.rglob("*.png")])
    use_format(path, quantized=True)
    with pytest.raises(DataError) as caught:
        export(path, "fake", tmp_path / "out", data=str(data))
    assert "--data" in str(caught.value)
    with pytest.raises(DataError) as caught:
        export(path, "fake", tmp_path / "out")  # this bundle does not say what it was made from
    assert "--data" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_and_anything_else_left_alone(tmp_path: Path, use_format: Any) -> None:
    data, path = folder(tmp_path / "data", {"red": 2, "green": 2}), bundle(tmp_path / "tiny")
    use_format(path)
    out = tmp_path / "out"
    for _ in range(2):
        export(path, "fake", out, data=str(data))
    (out / "metadata.json").write_text("{}", encoding="utf-8")
    for other in (out, path, data / "red" / "0.png"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError):
            export(path, "fake", other, data=str(data))
        assert sorted(tmp_path.rglob("*")) == before


def test_the_name_of_a_file_is_refused_where_a_folder_is_written(tmp_path: Path, use_format: Any) -> None:
    data, path = folder(tmp_path / "data", {"red": 2, "green": 2}), bundle(tmp_path / "tiny")
    use_format(path, file="net.onnx")
    with pytest.raises(UsageError) as caught:
        export(path, "fake", tmp_path / "a.onnx", data=str(data))
    assert str(tmp_path / "a" / "net.onnx") in str(caught.value)
    assert not list(tmp_path.glob("*a*.onnx"))


def test_damaged_images_are_left_out_and_batches_keep_images_and_labels_together(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 3, "green": 3})
    images = sorted(data.rglob("*.png"))
    for image in (images[1], images[-1]):
        image.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    records = [Record(str(image), image.name, int(image.parent.name == "red")) for image in images]
    found = list(batches(Predictor.load(bundle(tmp_path / "tiny")), records, 3))
    assert [len(batch.files) for batch, _ in found] == [3, 1]
    kept = [records[i] for i in (0, 2, 3, 4)]
    assert [file for batch, _ in found for file in batch.files] == [record.path for record in kept]
    assert np.concatenate([labels for _, labels in found]).tolist() == [record.label for record in kept]
    for batch, labels in found:
        assert (batch.pixels.mean(axis=(1, 2)).argmax(axis=1) == 1 - labels).all()


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    form = Format("fake", "net", ("numpy", "no_such_package"), formats.FORMATS[0].write, formats.FORMATS[0].opened)
    monkeypatch.setattr(recipe, "find_format", lambda _: form)
    with pytest.raises(ResourceError) as caught:
        export(tmp_path / "no bundle", "fake")
    assert caught.value.code == "missing_package"
    assert "no_such_package" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(tmp_path, "tf1")
    assert caught.value.code == "format"


def test_an_export_that_reads_files_must_give_the_label_from_them_too(tmp_path: Path, use_format: Any) -> None:
    data, path = folder(tmp_path / "data", {"red": 100, "green": 100}), bundle(tmp_path / "tiny")
    use_format(path, files=swapped(0.005))
    parity = export(path, "fake", tmp_path / "out", data=str(data)).parity
    assert (parity.agreement, parity.max_difference) == (1, 0)
    assert parity.file_agreement == pytest.approx(0.995)
    assert parity.file_difference == pytest.approx(1, abs=0.01)
    use_format(path, files=swapped(0.01))
    with pytest.raises(TransferAppError) as caught:
        export(path, "fake", tmp_path / "other", data=str(data))
    assert caught.value.code == "export_differs"
    assert not (tmp_path / "other").exists()


def test_a_runtime_belongs_to_pages_alone(tmp_path: Path, use_format: Any) -> None:
    path = bundle(tmp_path / "tiny")
    use_format(path)
    with pytest.raises(UsageError):
        export(path, "fake", runtime=tmp_path)
