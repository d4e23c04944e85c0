"""Contract of every custom layer: shapes, configuration, saving, export, seeds, and prediction as the average of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import draws_in_training
from transferapp.backbones.engine import OpenVINOEngine, convert
from transferapp.training.layers import DropConnect, Dropout, FractionalMaxPooling2D, Maxout, StochasticDepth

SIZE = (9, 7, 4)
"""Size of the test maps: sides that do not divide evenly."""

Make = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """How to make a layer and what to make of its output.

    Attributes:
        make: From a seed to the layer.
        shape: Its input's, without the batch.
        wanted: Its output's.
        random: Whether training differs from prediction.
        two: Whether it takes two tensors of that shape.
        summary: What of the output is the same on average in training as in prediction; over images of noise.
    """

    make: Make
    shape: tuple[int, ...]
    wanted: tuple[int, ...]
    random: bool = True
    two: bool = False
    summary: Callable[[np.ndarray], np.ndarray] = np.asarray

    def on(self, x: np.ndarray) -> Any:
        """What the layer is called with."""
        return [x, x[::-1] * 2 + 1] if self.two else x


def each_channel(y: np.ndarray) -> np.ndarray:
    """Where regions lie is random, so a single pixel's mean is not that of prediction; over all of them it is."""
    return y.mean(axis=(0, 1, 2))


CASES = {
    "dropconnect": Case(lambda seed: DropConnect(5, 0.3, seed=seed), (6,), (5,)),
    "dropconnect, activated": Case(
        lambda seed: DropConnect(5, 0.6, seed=seed, use_bias=False, name="mine"), SIZE, (9, 7, 5)
    ),
    "dropout": Case(lambda seed: Dropout(0.3, seed=seed), SIZE, SIZE),
    "stochastic depth": Case(lambda seed: StochasticDepth(0.4, seed=seed), SIZE, SIZE, two=True),
    "stochastic depth, vectors": Case(lambda seed: StochasticDepth(0.7, seed=seed), (6,), (6,), two=True),
    "maxout": Case(lambda seed: Maxout(2), SIZE, (9, 7, 2), random=False),
    "maxout of four": Case(lambda seed: Maxout(4), (8,), (2,), random=False),
    "fractional pooling": Case(lambda seed: FractionalMaxPooling2D(seed=seed), SIZE, (6, 4, 4), summary=each_channel),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def noise(case: Case, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, *case.shape)).astype(np.float32)


def model_of(case: Case, layer: Any) -> Any:
    """The layer within a functional model, as it stands in a head or a tail."""
    start = keras.Input(case.shape)
    inputs = [start, keras.layers.Rescaling(2.0, offset=1.0)(start)] if case.two else start
    return keras.Model(start, layer(inputs))


@every_case
def test_shapes_are_known_before_and_right_after(case: Case) -> None:
    layer = case.make(0)
    shape: Any = (None, *case.shape)
    assert tuple(layer.compute_output_shape([shape, shape] if case.two else shape)) == (None, *case.wanted)
    assert model_of(case, case.make(0)).output_shape == (None, *case.wanted)
    x = noise(case, 3)
    for training in (False, True):
        assert layer(case.on(x), training=training).shape == (3, *case.wanted)


@every_case
def test_a_layer_is_remade_from_its_configuration(case: Case) -> None:
    layer = case.make(5)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = case.on(noise(case, 4))
    layer(x)
    again(x)
    again.set_weights(layer.get_weights())
    for training in (False, True):
        np.testing.assert_array_equal(again(x, training=training), layer(x, training=training))


@every_case
def test_a_model_with_it_is_saved_and_loaded_safely(case: Case, tmp_path: Path) -> None:
    model = model_of(case, case.make(1))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = noise(case, 4)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert keras.saving.get_registered_name(type(model.layers[-1])).startswith("transferapp>")


@every_case
def test_it_is_exported_as_it_predicts(case: Case) -> None:
    if len(case.shape) == 3:
        start = keras.Input((*case.shape[:2], 3))
        x = keras.layers.Conv2D(case.shape[2], 1)(start)
    else:
        start = keras.Input((4, 4, 3))
        x = keras.layers.Dense(case.shape[0])(keras.layers.Flatten()(start))
    inputs = [x, keras.layers.Rescaling(0.5)(x)] if case.two else x
    model = keras.Model(start, keras.layers.Flatten()(case.make(2)(inputs)))
    pixels = np.random.default_rng(0).integers(0, 256, (3, *start.shape[1:])).astype(np.uint8)
    expected = np.asarray(model(pixels.astype(np.float32), training=False))
    exported = OpenVINOEngine(convert(model), precision="f32")(pixels)
    np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-3)


@every_case
def test_the_seed_decides_what_is_left_to_chance(case: Case) -> None:
    x = case.on(noise(case, 4))
    outputs = {}
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        layer = case.make(seed)
        layer(x)
        if layer.weights:
            layer.set_weights([np.full(w.shape, 0.5, np.float32) for w in layer.get_weights()])
        outputs[name] = [np.asarray(layer(x, training=True)) for _ in range(8)]
    np.testing.assert_array_equal(outputs["first"], outputs["second"])
    differs = any(np.abs(a - b).max() > 0 for a, b in zip(outputs["first"], outputs["other"], strict=True))
    assert differs == case.random
    drawn_anew = any(np.abs(outputs["first"][0] - later).max() > 0 for later in outputs["first"][1:])
    assert drawn_anew == case.random


@every_case
def test_on_average_training_gives_what_prediction_gives(case: Case) -> None:
    model, x = model_of(case, case.make(7)), noise(case, 64)
    predicted = case.summary(np.asarray(model(x, training=False)))
    trained = np.stack([case.summary(given) for given in draws_in_training(model, x, 300)]).astype(np.float64)
    if not case.random:
        np.testing.assert_allclose(trained.mean(axis=0), predicted, rtol=1e-5, atol=1e-6)
        return
    assert trained.std(axis=0).max() > 0
    error = trained.std(axis=0, ddof=1) / np.sqrt(len(trained)) + 1e-6
    # Where regions lie by chance, prediction takes one way of laying them: it has an error of its own over these images.
    own = trained.std(axis=0, ddof=1) if case.summary is each_channel else 0.0
    away = np.abs(trained.mean(axis=0) - predicted) / np.hypot(error, own)
    assert away.max() < 5, "five standard errors"


@every_case
def test_prediction_is_the_same_every_time(case: Case) -> None:
    layer = case.make(None)
    x = case.on(noise(case, 4))
    np.testing.assert_array_equal(layer(x), layer(x))


@every_case
def test_gradients_come_through_to_what_lies_below(case: Case) -> None:
    start = keras.Input(case.shape)
    below = keras.layers.Dense(case.shape[-1], name="below")(start)
    model = keras.Model(start, case.make(0)([below, below * 2] if case.two else below))
    model.compile("sgd", "mse")
    before = [np.array(w) for w in model.get_weights()]
    model.train_on_batch(noise(case, 8), np.ones((8, *case.wanted), np.float32))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True))


# ------------------------------------------------------------------------------------------- what is worked out by hand


def test_dropconnect_without_training_is_the_dense_layer() -> None:
    x = np.array([[1.0, 2.0]], np.float32)
    layer = DropConnect(1, 0.5, activation="relu", seed=0)
    layer(x)
    layer.set_weights([np.array([[3.0], [-1.0]], np.float32), np.array([0.5], np.float32)])
    assert float(layer(x)[0, 0]) == 1.5
    # Each weight is dropped or doubled: 0.5, 0.5 + 6, 0.5 - 4 (0 after ReLU), 0.5 + 6 - 4.
    assert {float(layer(x, training=True)[0, 0]) for _ in range(40)} == {0.5, 6.5, 0.0, 2.5}


def test_a_rate_may_be_a_variable_that_steps_read() -> None:
    rate = keras.Variable(0.0)
    x = np.ones((4, 50), np.float32)
    layers = [Dropout(lambda: rate, seed=0), DropConnect(5, lambda: rate, seed=0)]
    plain = [np.asarray(layer(x)) for layer in layers]
    for layer, expected in zip(layers, plain, strict=True):
        np.testing.assert_allclose(layer(x, training=True), expected, rtol=1e-6)
    rate.assign(0.5)
    for layer, expected in zip(layers, plain, strict=True):
        assert np.abs(np.asarray(layer(x, training=True)) - expected).max() > 0


def test_stochastic_depth_drops_branches_of_whole_images() -> None:
    shortcut, branch = np.zeros((200, 2, 2, 1), np.float32), np.ones((200, 2, 2, 1), np.float32)
    given = np.asarray(StochasticDepth(0.25, seed=1)([shortcut, branch], training=True))
    per_image = given.reshape(200, -1)
    assert (per_image == per_image[:, :1]).all(), "a branch goes or stays as a whole"
    np.testing.assert_allclose(np.unique(given), [0.0, 4 / 3], rtol=1e-6)
    assert 25 <= (per_image[:, 0] == 0).sum() <= 75


def test_maxout_takes_the_largest_of_neighbors() -> None:
    given = Maxout(3)(np.array([[1.0, 5.0, 2.0, -3.0, -1.0, -2.0]], np.float32))
    np.testing.assert_array_equal(given, [[5.0, -1.0]])


@pytest.mark.parametrize("size", [2, 3, 5, 7, 14, 27])
def test_pooling_regions_cover_a_side_in_steps_of_one_and_two(size: int) -> None:
    layer = FractionalMaxPooling2D(seed=0)
    for _ in range(20):
        bounds = np.asarray(layer._drawn(size))
        assert bounds[0] == 0
        assert bounds[-1] == size - 1
        assert set(np.diff(bounds)) <= {1, 2}


def test_pooling_gives_the_maximum_of_each_region() -> None:
    # A side of 7, overlapping: 4 regions over 6 steps, with u = 1/2 boundaries at 0, 2, 3, 5, 6 (floor(1.5 i + .75)).
    row = np.array([4, 1, 3, 2, 0, 6, 5], np.float32).reshape(1, 1, 7, 1)
    given = FractionalMaxPooling2D()(row)
    np.testing.assert_array_equal(np.asarray(given).ravel(), [4, 3, 6, 6])


def test_pooling_shrinks_by_the_root_of_two() -> None:
    assert FractionalMaxPooling2D().compute_output_shape((None, 10, 13, 3)) == (None, 7, 9, 3)


def test_one_pixel_stays_one_pixel() -> None:
    x = np.ones((2, 1, 1, 3), np.float32)
    for training in (False, True):
        np.testing.assert_array_equal(FractionalMaxPooling2D()(x, training=training), x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DropConnect(3, 1.0), "rate"),
        (lambda: StochasticDepth(-0.1), "rate"),
        (lambda: Dropout(1.5), "rate"),
        (lambda: Maxout(0), "at least 1"),
        (lambda: Maxout(2).compute_output_shape((None, 5)), "multiple"),
        (lambda: FractionalMaxPooling2D().compute_output_shape((None, None, 7, 3)), "known height"),
    ],
)
def test_what_is_invalid_is_refused(make: Make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
