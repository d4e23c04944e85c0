"""Batches of whole-network training: every image once per epoch, and views that depend on seed and epoch alone."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from transferapp.backbones.feature_store import RandomViews
from transferapp.data.dataset import Record
from transferapp.errors import DataError
from transferapp.images import decode_image
from transferapp.images.augment import (
    LECTURE_AUGMENTATION,
    Augmentation,
    ColorJitter,
    PCAColor,
    augmented_pixels,
    fit_pca_color,
    seeded_generator,
)
from transferapp.images.views import Geometry, center_view, render
from transferapp.training.batches import (
    CenterBatches,
    DecodedCache,
    FollowEpochs,
    ImageBatches,
    center_views,
    original_errors,
    training_images,
)

SIZE = (24, 16)
COUNT, BATCH = 22, 4
NUM_BATCHES = 6  # five of four, one of two


def save_images(folder: Path, count: int) -> list[Record]:
    """Images that are all different; most are larger than training needs, and one in three is a JPEG."""
    records = []
    for number in range(count):
        seeds = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = folder / f"{number:02}.{'png' if number % 3 else 'jpg'}"
        Image.fromarray(seeds).resize((50 + 3 * number, 80), Image.Resampling.BICUBIC).save(path)
        records.append(Record(str(path), path.name, number % 2, "train", hashlib.sha256(path.read_bytes()).hexdigest()))
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return save_images(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(scope="module")
def pca(records: list[Record]) -> PCAColor:
    return colors_of(records)


def colors_of(records: list[Record]) -> PCAColor:
    """The color components of all their pixels."""
    images = [np.asarray(Image.open(record.path).convert("RGB")).reshape(-1, 3) for record in records]
    return fit_pca_color(np.concatenate(images))


@pytest.fixture
def batches(records: list[Record], pca: PCAColor) -> ImageBatches:
    return make(records, pca)


def make(records: list[Record], pca: PCAColor | None, **settings: Any) -> ImageBatches:
    """Batches whose labels are the images' positions, so that a label tells which image it is."""
    epoch = settings.pop("epoch", 0)
    random_views = RandomViews(
        settings.pop("augmentation", LECTURE_AUGMENTATION), pca, settings.pop("geometry", "crop")
    )
    defaults: dict[str, Any] = {"image_size": SIZE, "batch_size": BATCH, "seed": 0, "random_views": random_views}
    batches = ImageBatches(numbered(records), **(defaults | settings))
    batches.epoch = epoch
    return batches


def numbered(records: list[Record]) -> list[Record]:
    """The images, labeled with their positions."""
    return [dataclasses.replace(record, label=position) for position, record in enumerate(records)]


def read(batches: ImageBatches | CenterBatches) -> list[tuple[bytes, list[int]]]:
    return [(pixels.tobytes(), labels.tolist()) for pixels, labels in batches]


class Recorder(keras.Model):  # type: ignore[misc]
    """A model that learns nothing and remembers what it was given, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[tuple[bytes, list[int]]]] = []
        self.compile(optimizer="sgd", loss="mse", run_eagerly=True)

    def train_step(self, *arguments: Any) -> Any:
        """(data) to logs, or with JAX (state, data) to (logs, state)."""
        pixels, labels = (np.asarray(part) for part in arguments[-1])
        self.epochs[-1].append((pixels.tobytes(), labels.tolist()))
        return ({"loss": 0.0}, arguments[0]) if len(arguments) == 2 else {"loss": 0.0}

    def call(self, inputs: Any) -> Any:
        return keras.ops.mean(inputs, axis=(1, 2, 3))


class NewEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.epochs.append([])


def given_to_model(batches: ImageBatches, **fit: Any) -> list[list[tuple[bytes, list[int]]]]:
    """What `fit` gives the model, epoch by epoch."""
    model = Recorder()
    callbacks = [NewEpoch(), FollowEpochs(batches)]
    model.fit(batches, verbose=0, callbacks=callbacks, **({"shuffle": False} | fit))
    return model.epochs


# ------------------------------------------------------------------------------------------------------------- one epoch


def test_every_image_comes_exactly_once_an_epoch_and_the_last_batch_is_smaller(batches: ImageBatches) -> None:
    assert len(batches) == NUM_BATCHES
    for epoch in range(3):
        batches.epoch = epoch
        items = list(batches)
        assert [len(labels) for _, labels in items] == [4, 4, 4, 4, 4, 2]
        assert sorted(np.concatenate([labels for _, labels in items]).tolist()) == list(range(COUNT))
        for pixels, labels in items:
            assert (pixels.dtype, pixels.shape) == (np.uint8, (len(labels), *SIZE, 3))
            assert labels.dtype == np.int32


def test_a_whole_number_of_batches_leaves_no_empty_one(records: list[Record], pca: PCAColor) -> None:
    assert [len(labels) for _, labels in make(records[:8], pca)] == [4, 4]


def test_a_view_is_what_the_augmentation_makes_of_the_reduced_image(
    batches: ImageBatches, records: list[Record], pca: PCAColor
) -> None:
    cache = training_images(SIZE)
    batches.epoch = 3
    pixels, labels = batches[1]
    for got, position in zip(pixels, labels.tolist(), strict=True):
        rng = seeded_generator("view", 0, 3, position, records[position].sha256)
        image = Image.fromarray(cache.get(records[position]))
        np.testing.assert_array_equal(got, augmented_pixels(image, rng, SIZE, LECTURE_AUGMENTATION, pca))


def test_settings_reach_the_views(records: list[Record]) -> None:
    still = Augmentation(
        flip=False, short_sides=(256, 256), random_crop=False, color=ColorJitter(contrast=0, brightness=0, pca_std=0)
    )
    batches = make(records, None, augmentation=still)
    views = dict(zip(batches[0][1].tolist(), batches[0][0], strict=True))
    position = next(iter(views))
    decoded = Image.fromarray(training_images(SIZE, still).get(records[position]))
    np.testing.assert_array_equal(views[position], render(decoded, center_view(decoded.size, SIZE), SIZE))


@pytest.mark.parametrize("geometry", ["resize", "pad"])
def test_training_and_validation_see_whole_images_where_the_geometry_says_so(
    records: list[Record], geometry: Geometry
) -> None:
    whole = Augmentation(
        flip=False, short_sides=(256, 256), random_crop=False, color=ColorJitter(contrast=0, brightness=0, pca_std=0)
    )
    batches = make(records, None, augmentation=whole, geometry=geometry)
    views = dict(zip(batches[0][1].tolist(), batches[0][0], strict=True))
    centers = np.concatenate(
        [pixels for pixels, _ in CenterBatches(records, image_size=SIZE, batch_size=BATCH, geometry=geometry)]
    )
    for position, pixels in views.items():
        reduced = Image.fromarray(training_images(SIZE, whole).get(records[position]))
        np.testing.assert_array_equal(pixels, render(reduced, center_view(reduced.size, SIZE, geometry), SIZE))
        image = decode_image(records[position].path, min_short_side=28).image  # ceil(256 · 24 / 224)
        expected = render(image, center_view(image.size, SIZE, geometry), SIZE)
        np.testing.assert_array_equal(centers[position], expected)


# -------------------------------------------------------------------------------------------------------- reproducibility


def test_the_same_seed_and_epoch_give_the_same_bytes(records: list[Record], pca: PCAColor) -> None:
    assert read(make(records, pca, epoch=2)) == read(make(records, pca, epoch=2))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_another_order_and_other_views(
    records: list[Record], pca: PCAColor, change: dict[str, int]
) -> None:
    one, other = make(records, pca), make(records, pca, **change)
    views = [
        dict(zip(np.concatenate([y for _, y in b]).tolist(), np.concatenate([x for x, _ in b]), strict=True))
        for b in (one, other)
    ]
    assert list(views[0]) != list(views[1])
    assert not any(np.array_equal(views[0][position], views[1][position]) for position in range(COUNT))


def test_batches_do_not_depend_on_threads_memory_or_order(records: list[Record], pca: PCAColor) -> None:
    expected = read(make(records, pca, workers=1))
    assert read(make(records, pca, workers=4)) == expected
    for max_bytes in (0, 50_000):
        cache = training_images(SIZE, max_bytes=max_bytes)
        assert read(make(records, pca, workers=3, cache=cache)) == expected
        assert cache.nbytes <= max_bytes
    batches = make(records, pca)
    backwards = [batches[index] for index in reversed(range(NUM_BATCHES))]
    assert [(x.tobytes(), y.tolist()) for x, y in reversed(backwards)] == expected


def test_global_random_states_are_neither_read_nor_moved(records: list[Record], pca: PCAColor) -> None:
    expected = read(make(records, pca))
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert read(make(records, pca)) == expected
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_duplicates_get_different_views(records: list[Record], pca: PCAColor) -> None:
    (pixels, _labels) = make([records[0], records[0]], pca)[0]
    assert not np.array_equal(pixels[0], pixels[1])


def test_changing_the_epoch_drops_what_was_prepared_for_the_old_one(records: list[Record], pca: PCAColor) -> None:
    batches = make(records, pca)
    batches[0]  # prepares 1 and 2
    batches.epoch = 1
    assert read(batches) == read(make(records, pca, epoch=1))


# -------------------------------------------------------------------------------------------------------------------- fit


def test_fit_gives_the_model_each_epochs_own_batches_in_order(records: list[Record], pca: PCAColor) -> None:
    given = given_to_model(make(records, pca), epochs=3)
    assert given == [read(make(records, pca, epoch=epoch)) for epoch in range(3)]


def test_a_resumed_fit_sees_what_the_uninterrupted_one_saw(records: list[Record], pca: PCAColor) -> None:
    whole = given_to_model(make(records, pca), epochs=4)
    resumed = given_to_model(make(records, pca), epochs=4, initial_epoch=2)
    assert resumed == whole[2:]


def test_a_second_fit_after_one_broken_off_begins_anew(records: list[Record], pca: PCAColor) -> None:
    class StopAt(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 1

    batches = make(records, pca)
    model = Recorder()
    for epochs, extra in ((1, [StopAt()]), (2, [])):
        model.fit(
            batches, verbose=0, shuffle=False, epochs=epochs, callbacks=[NewEpoch(), FollowEpochs(batches), *extra]
        )
    expected = [read(make(records, pca, epoch=epoch)) for epoch in range(2)]
    assert model.epochs == [expected[0][:2], *expected]


@pytest.mark.parametrize("count", [3, 6])
def test_one_or_two_batches_are_an_epoch_too(records: list[Record], pca: PCAColor, count: int) -> None:
    given = given_to_model(make(records[:count], pca), epochs=2)
    assert given == [read(make(records[:count], pca, epoch=epoch)) for epoch in range(2)]


def test_a_network_learns_from_it_with_two_workers(tmp_path: Path) -> None:
    records = []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        color = (170, 70, 80) if number % 2 else (70, 80, 170)
        noise = np.random.default_rng(number).integers(-40, 40, (40, 40, 3))
        Image.fromarray((noise + color).astype(np.uint8)).save(path)
        records.append(Record(str(path), path.name, number % 2, "train", hashlib.sha256(path.read_bytes()).hexdigest()))
    labels = [record.label for record in records]
    pca = colors_of(records)
    train = ImageBatches(records, image_size=SIZE, batch_size=8, seed=0, random_views=RandomViews(pca=pca), workers=2)
    validation = CenterBatches(records, image_size=SIZE, batch_size=8, geometry="crop", workers=2)
    layers = [keras.layers.Rescaling(1 / 127.5, -1), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((*SIZE, 3)), *layers])
    model.compile(
        keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    with original_errors(train, validation):
        history = model.fit(
            train, validation_data=validation, epochs=4, shuffle=False, verbose=0, callbacks=[FollowEpochs(train)]
        ).history
    assert history["val_accuracy"][-1] == 1
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(validation, verbose=0)[1] == 1
    assert model.predict(validation, verbose=0).argmax(axis=1).tolist() == labels


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def fragile(tmp_path: Path) -> list[Record]:
    """Images of which one vanished after it was checked."""
    records = save_images(tmp_path, COUNT)
    records[7].path.unlink()
    return records


def test_an_image_that_vanished_stops_its_batch_and_no_other(fragile: list[Record]) -> None:
    batches = make(fragile, None, augmentation=Augmentation(color=ColorJitter(0, 0, 0)))
    failed = []
    for index in range(NUM_BATCHES):
        try:
            batches[index]
        except DataError as error:
            failed.append(error)
    assert len(failed) == 1
    assert fragile[7].name in str(failed[0])
    assert batches.error is failed[0]


def test_a_vanished_image_comes_out_of_fit_as_the_error_it_is(fragile: list[Record]) -> None:
    batches = make(fragile, None, augmentation=Augmentation(color=ColorJitter(0, 0, 0)))
    with pytest.raises(DataError, match=r"07\.png could be read"), original_errors(batches):
        given_to_model(batches, epochs=1)


def test_validation_errors_come_out_too(records: list[Record], pca: PCAColor, fragile: list[Record]) -> None:
    train, validation = make(records, pca), CenterBatches(fragile, image_size=SIZE, batch_size=BATCH, geometry="crop")
    with pytest.raises(DataError, match=r"07\.png"), original_errors(train, validation):
        Recorder().evaluate(validation, verbose=0)


def test_errors_that_are_none_of_the_images_pass_unchanged(batches: ImageBatches) -> None:
    batches.error = DataError("of an earlier run")
    with pytest.raises(ZeroDivisionError), original_errors(batches):
        1 / 0  # noqa: B018


def test_no_images_are_refused(records: list[Record], pca: PCAColor) -> None:
    with pytest.raises(DataError, match="no images"):
        make([], pca)


@pytest.mark.parametrize("index", [-1, NUM_BATCHES])
def test_there_are_no_batches_beyond_the_last(batches: ImageBatches, index: int) -> None:
    with pytest.raises(IndexError):
        batches[index]


def test_only_a_few_batches_are_prepared_ahead(records: list[Record], pca: PCAColor) -> None:
    made = []
    inner = training_images(SIZE)

    def counted(record: Record) -> np.ndarray:
        made.append(record.name)
        return inner.get(record).copy()

    batches = make(records, pca, batch_size=2, cache=DecodedCache(counted))
    batches[0]
    time.sleep(0.2)
    assert 2 <= len(made) <= 6


# ------------------------------------------------------------------------------------------------------------- validation


def test_center_batches_are_the_center_views_in_order_every_time(records: list[Record]) -> None:
    batches = CenterBatches(numbered(records), image_size=SIZE, batch_size=BATCH, geometry="crop")
    assert len(batches) == NUM_BATCHES
    for _ in range(2):
        items = list(batches)
        assert np.concatenate([labels for _, labels in items]).tolist() == list(range(COUNT))
        for got, record in zip(np.concatenate([pixels for pixels, _ in items]), records, strict=True):
            image = decode_image(record.path, min_short_side=28).image  # ceil(256 · 24 / 224)
            np.testing.assert_array_equal(got, render(image, center_view(image.size, SIZE), SIZE))


def test_center_views_are_rendered_once(records: list[Record]) -> None:
    cache = center_views(SIZE, "crop")
    batches = CenterBatches(numbered(records), image_size=SIZE, batch_size=BATCH, geometry="crop", cache=cache)
    first = read(batches)
    assert len(cache) == COUNT
    assert cache.nbytes == COUNT * SIZE[0] * SIZE[1] * 3
    assert read(batches) == first
