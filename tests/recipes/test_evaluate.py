"""A bundle measured on labeled images: which of them count, and what the figures are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pool_watch import PoolWatch
from tests.helpers.tiny_bundle import SIZE, color_network, make_tiny_bundle
from transferapp.backbones.engine import save_converted
from transferapp.bundle.format import write_manifest, writing
from transferapp.bundle.predictor import Predictor
from transferapp.errors import DataError, UsageError
from transferapp.evaluation.metrics import measure
from transferapp.recipes.evaluate import evaluate
from transferapp.system.progress import Silent
from transferapp.system.storage import sha256_file

CLASSES = ("red", "green", "blue")
HUES = {"red": (250, 20, 30), "green": (10, 240, 20), "blue": (20, 30, 250)}


def paint(path: Path, color: str, number: int) -> Path:
    """An image of one color; its number makes it unlike any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 40), HUES[color])
    image.putpixel((number % 40, number // 40), (0, 0, 0))
    image.save(path)
    return path


def folder(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Class folders of images of that color."""
    for name, count in counts.items():
        for number in range(start, start + count):
            paint(root / name / f"{number}.png", name.split("/")[-1], number)
    return root


def bundle(path: Path, class_names: Sequence[str] = CLASSES, learned: Iterable[tuple[Path, str]] | None = None) -> Path:
    """A bundle that tells colors apart and, where `learned` is given, says which images it has used for what."""
    with writing(path) as staging:
        save_converted(color_network(len(class_names)), staging / "model.xml")
        if learned is not None:
            with (staging / "split.csv").open("w", newline="") as stream:
                table = csv.writer(stream)
                table.writerow(["sha256", "split", "class_name", "name"])
                table.writerows([sha256_file(image), split, "any", image.name] for image, split in learned)
        write_manifest(
            staging, {"name": path.name, "class_names": list(class_names), "input": {"image_size": list(SIZE)}}
        )
    return path


def test_figures_are_those_of_the_predictions(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 3, "green": 2, "blue": 2})
    paint(data / "blue" / "really red.png", "red", 99)
    found = evaluate(bundle(tmp_path / "tiny"), str(data), views=1)
    predictor = Predictor.load(tmp_path / "tiny")
    images = sorted(data.rglob("*.png"), key=lambda path: (CLASSES.index(path.parent.name), path.as_posix()))
    scores = np.array([predictor.average(predictor.decode(path, 1), 1) for path in images])
    labels = np.array([CLASSES.index(path.parent.name) for path in images])
    expected = measure(scores, labels, CLASSES)
    assert found.metrics.accuracy == pytest.approx(7 / 8)
    assert found.metrics.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.metrics.confusion == expected.confusion == ((3, 0, 0), (0, 2, 0), (1, 0, 2))
    assert (found.bundle, found.views, found.split, found.metrics.num_images) == ("tiny", 1, "all", 8)


def test_few_images_are_in_hand_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = folder(tmp_path / "data", {"red": 20, "green": 20}), bundle(tmp_path / "tiny")
    monkeypatch.setattr("transferapp.recipes.evaluate.cpu_cores", lambda: 1)
    watch = PoolWatch(monkeypatch)
    assert evaluate(path, str(data), views=1).metrics.num_images == 40
    assert 0 < watch.most <= 8


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train"), ("test", "val")])
def test_an_image_that_is_in_several_splits_was_trained_on(splits: tuple[str, str], tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 2, "green": 2})
    copied = data / "red" / "0.png"
    found = evaluate(bundle(tmp_path / "tiny", learned=[(copied, split) for split in splits]), str(data), views=1)
    assert (found.metrics.num_images, found.num_seen) == (3, 1)


def test_labels_go_by_name_whatever_the_order_of_the_bundle(tmp_path: Path) -> None:
    # The bundle's first class is what its network sees in red images: here that folder is called "zebra".
    data = tmp_path / "data"
    for number, (name, color) in enumerate([("zebra", "red"), ("ant", "green"), ("moth", "blue")]):
        paint(data / name / "a.png", color, number)
    found = evaluate(bundle(tmp_path / "tiny", ("zebra", "ant", "moth")), str(data), views=1)
    assert found.metrics.accuracy == 1
    assert [c.name for c in found.metrics.classes] == ["zebra", "ant", "moth"]


def test_classes_of_the_bundle_may_be_missing_from_the_data(tmp_path: Path) -> None:
    found = evaluate(bundle(tmp_path / "tiny"), str(folder(tmp_path / "data", {"blue": 2})), views=1)
    assert found.metrics.accuracy == 1
    assert [c.num_images for c in found.metrics.classes] == [0, 0, 2]


def test_a_class_that_the_bundle_does_not_know_is_told_by_name(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 1})
    paint(data / "zebra" / "a.png", "red", 5)
    with pytest.raises(DataError, match=r"a class that the bundle does not know: 'zebra'.*red, green, blue") as caught:
        evaluate(bundle(tmp_path / "tiny"), str(data))
    assert caught.value.exit_code == 3


def test_of_split_data_the_test_folder_alone_counts(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"train/red": 3, "train/green": 3, "test/red": 1, "test/green": 2})
    paint(data / "train" / "zebra" / "a.png", "red", 77)  # unknown, and not asked about
    found = evaluate(bundle(tmp_path / "tiny"), str(data), views=1)
    assert (found.split, found.metrics.num_images) == ("test", 3)


def test_a_test_folder_can_be_named_itself_or_stand_alone(tmp_path: Path) -> None:
    folder(tmp_path / "data", {"test/red": 1, "test/green": 2})
    for name, split in (("data", "test"), ("data/test", "all")):
        found = evaluate(bundle(tmp_path / "tiny"), str(tmp_path / name), views=1)
        assert (found.split, found.metrics.num_images) == (split, 3)


def test_images_that_were_learned_from_are_left_out_by_content(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 4, "green": 4})
    for color, number in (("red", 0), ("green", 1)):  # the same bytes under another name
        paint(tmp_path / "old" / f"{color}.png", color, number)
    learned = [
        (tmp_path / "old" / "red.png", "train"),
        (tmp_path / "old" / "green.png", "val"),
        (data / "red" / "3.png", "test"),  # kept for the final figure, not learned from
    ]
    path = bundle(tmp_path / "tiny", learned=learned)
    found = evaluate(path, str(data), views=1)
    assert (found.metrics.num_images, found.num_seen, found.seen_included) == (6, 2, False)
    assert [c.num_images for c in found.metrics.classes] == [3, 3, 0]
    everything = evaluate(path, str(data), views=1, include_seen=True)
    assert (everything.metrics.num_images, everything.num_seen, everything.seen_included) == (8, 2, True)


@pytest.mark.parametrize(
    ("bits", "peaks", "said"),
    [(None, (4095, 900), True), (16, (4095, 900), True), (12, (4095, 900), False), (12, (60000, 9), True)],
)
def test_16_bit_images_of_another_depth_are_told_of(
    tmp_path: Path, bits: int | None, peaks: tuple[int, int], said: bool
) -> None:
    for name, peak in zip(("red", "green"), peaks, strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.full((40, 40), peak, np.uint16)).save(tmp_path / "data" / name / "1.png")
    notes: list[str] = []
    progress = Silent()
    progress.note = notes.append  # type: ignore[method-assign]
    evaluate(make_tiny_bundle(tmp_path / "tiny", sample_bits=bits), str(tmp_path / "data"), views=1, progress=progress)
    assert (len(notes) == 1) == said


def test_where_everything_was_learned_from_it_counts_and_is_said_to(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 2, "green": 2})
    found = evaluate(bundle(tmp_path / "tiny", learned=[(p, "train") for p in data.rglob("*.png")]), str(data), views=1)
    assert (found.metrics.num_images, found.num_seen, found.seen_included) == (4, 4, True)


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 25, "green": 25})
    (data / "red" / "bad.png").write_bytes(b"no image")
    found = evaluate(bundle(tmp_path / "tiny"), str(data), views=1)
    assert (found.metrics.num_images, found.num_ignored) == (50, 1)


def test_a_image_that_a_fit_would_take_is_measured_though_it_is_too_large_for_an_upload(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"red": 1})
    Image.new("L", (6000, 5000), 0).save(data / "red" / "large.png")
    assert evaluate(bundle(tmp_path / "tiny"), str(data), views=1).metrics.num_images == 2


@pytest.mark.parametrize("views", [None, 1, 10, 50])
def test_views_are_averaged_as_they_are_served(tmp_path: Path, views: int | None) -> None:
    data = folder(tmp_path / "data", {"red": 1})
    found = evaluate(bundle(tmp_path / "tiny"), str(data), views=views)
    predictor = Predictor.load(tmp_path / "tiny")
    (red,) = (s.score for s in predictor.predict(data / "red" / "0.png", views=views).scores if s.label == "red")
    assert found.views == views or (views is None and found.views == 10)
    assert found.metrics.loss == pytest.approx(-np.log(red), rel=1e-5)


def test_a_number_of_views_that_there_is_not_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown number of views"):
        evaluate(bundle(tmp_path / "tiny"), str(tmp_path / "nowhere"), views=3)


def test_data_without_a_usable_image_are_told_of(tmp_path: Path) -> None:
    path = bundle(tmp_path / "tiny")
    (tmp_path / "data" / "red").mkdir(parents=True)
    with pytest.raises(DataError, match="no class folders with images"):
        evaluate(path, str(tmp_path / "data"))
    (tmp_path / "data" / "red" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="has no usable images"):
        evaluate(path, str(tmp_path / "data"))


def test_the_outcome_is_one_object_of_plain_json(tmp_path: Path) -> None:
    document = evaluate(bundle(tmp_path / "tiny"), str(folder(tmp_path / "data", {"red": 2})), views=1).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {"accuracy", "top5_accuracy", "loss", "num_images", "per_class"} <= set(document)
    assert {"bundle", "views", "split", "num_seen", "seen_included", "num_ignored"} <= set(document)
