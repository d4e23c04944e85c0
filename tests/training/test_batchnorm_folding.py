"""BatchNorm folded into convolutions: the same outputs, the same gradients, the same variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import enliven, noise_pixels, tiny_network
from transferapp.training.tail import InferenceMode, foldable

layers = keras.layers
SIZE = (12, 10, 3)


class AsItIs(keras.layers.Layer):
    """The reference: the network in inference mode, layer by layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def call(self, inputs: Any) -> Any:
        return self.network(inputs, training=False)


def network_of(build: Callable[[Any], Any]) -> Any:
    pixels = keras.Input(SIZE)
    return enliven(keras.Model(pixels, build(pixels)))


def conv_then_norm(conv: Any, **norm: Any) -> Callable[[], Any]:
    """A layer may be built once only, so each test makes its own."""
    return lambda: network_of(lambda x: layers.ReLU()(layers.BatchNormalization(**norm)(conv()(x))))


FOLDED = {
    "plain": conv_then_norm(lambda: layers.Conv2D(6, 3, padding="same", use_bias=False)),
    "with a bias": conv_then_norm(lambda: layers.Conv2D(6, 3, strides=2)),
    "groups": conv_then_norm(lambda: layers.Conv2D(6, 3, groups=3)),
    "dilated": conv_then_norm(lambda: layers.Conv2D(4, 3, dilation_rate=2)),
    "depthwise": conv_then_norm(lambda: layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False)),
    "depthwise, two each": conv_then_norm(lambda: layers.DepthwiseConv2D(5, padding="same", depth_multiplier=2)),
    "no gamma": conv_then_norm(lambda: layers.Conv2D(6, 1), scale=False),
    "no beta": conv_then_norm(lambda: layers.Conv2D(6, 1), center=False, epsilon=0.1),
    "1 x 1 in groups": conv_then_norm(lambda: layers.Conv2D(6, 1, groups=3)),
    "1 x 1 in strides": conv_then_norm(lambda: layers.Conv2D(6, 1, strides=2)),
    "1 x 1 depthwise": conv_then_norm(lambda: layers.DepthwiseConv2D(1)),
}
"""Networks of one convolution with its BatchNorm."""


def used_twice(x: Any) -> Any:
    y = layers.Conv2D(3, 3, padding="same")(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def shared(x: Any) -> Any:
    conv, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    return norm(conv(norm(conv(x))))


LEFT = {
    "activation between": lambda x: layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x)),
    "another axis": lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x)),
    "used twice": used_twice,
    "shared": shared,
    "no convolution": lambda x: layers.BatchNormalization()(layers.AveragePooling2D(2)(x)),
    "separable": lambda x: layers.BatchNormalization()(layers.SeparableConv2D(4, 3)(x)),
}
"""Convolutions that must not be folded."""


def half(network: Any) -> Any:
    return InferenceMode(network, pointwise="bfloat16")


def product(network: Any) -> Any:
    return InferenceMode(network, pointwise="product")


def step(wrapper: Any, network: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs before, and all variables after, one step of plain gradient descent."""
    inputs = keras.Input(network.inputs[0].shape[1:])
    outputs = wrapper(network)(inputs)
    head = layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=1))
    model = keras.Model(inputs, head(layers.GlobalAveragePooling2D()(outputs)))
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (6, *network.inputs[0].shape[1:])).astype(np.float32)
    before = np.asarray(keras.Model(inputs, outputs)(x, training=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(x, np.arange(6) % 3, batch_size=6, verbose=0)
    return before, [np.asarray(weight) for weight in model.get_weights()]


@pytest.mark.parametrize("wrapper", [InferenceMode, product])
@pytest.mark.parametrize("name", [*FOLDED, *LEFT])
def test_outputs_and_gradients_are_those_of_the_layers_one_by_one(name: str, wrapper: Any) -> None:
    network = FOLDED[name]() if name in FOLDED else network_of(LEFT[name])
    assert len(foldable(network)) == (name in FOLDED)
    start = network.get_weights()
    expected = step(AsItIs, network)
    network.set_weights(start)
    outputs, weights = step(wrapper, network)
    np.testing.assert_allclose(outputs, expected[0], rtol=1e-4, atol=1e-5)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(start, network.get_weights(), strict=True))
    for ours, theirs in zip(weights, expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_network_may_deliver_what_a_convolution_gives() -> None:
    pixels = keras.Input(SIZE)
    conv = layers.Conv2D(4, 3, name="conv")(pixels)
    both = keras.Model(pixels, [conv, layers.BatchNormalization()(conv)])
    assert foldable(both) == {}


def test_dropout_stays_off_and_statistics_stand_still() -> None:
    def build(x: Any) -> Any:
        return layers.Dropout(0.9)(layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3)(x)))

    network = network_of(build)
    norm = network.get_layer("norm")
    before = [np.array(norm.moving_mean), np.array(norm.moving_variance)]
    outputs, _ = step(InferenceMode, network)
    assert (outputs != 0).all()
    np.testing.assert_array_equal(before, [np.array(norm.moving_mean), np.array(norm.moving_variance)])


def test_the_weights_keep_their_order() -> None:
    network = tiny_network()
    wrapped = keras.Model(network.inputs[0], InferenceMode(network)(network.inputs[0]))
    assert [v.path for v in wrapped.weights] == [v.path for v in network.weights]
    assert len(foldable(network)) == 2


def test_half_precision_stays_half_between_the_layers() -> None:
    pixels = keras.Input(SIZE)
    conv = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(pixels)
    network = keras.Model(pixels, layers.BatchNormalization(dtype="mixed_bfloat16")(conv))
    assert len(foldable(network)) == 1
    x = noise_pixels(2)[:, : SIZE[0], : SIZE[1]].astype(np.float32) / 255
    out = InferenceMode(network)(x)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    reference = np.asarray(keras.ops.cast(network(x, training=False), "float32"))
    np.testing.assert_allclose(np.asarray(keras.ops.cast(out, "float32")), reference, atol=0.02)


@pytest.mark.parametrize("name", [*FOLDED, *LEFT])
def test_in_half_precision_outputs_and_gradients_are_nearly_those(name: str) -> None:
    network = FOLDED[name]() if name in FOLDED else network_of(LEFT[name])
    start = network.get_weights()
    expected = step(AsItIs, network)
    network.set_weights(start)
    outputs, weights = step(half, network)
    pointwise = name in ("no gamma", "no beta")
    assert outputs.dtype == np.float32
    assert all(weight.dtype == np.float32 for weight in weights)
    difference = np.abs(outputs - expected[0]).max()
    assert (1e-4 < difference < 0.05) if pointwise else (difference < 1e-5)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(start, network.get_weights(), strict=True))
    for ours, theirs in zip(weights, expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 if pointwise else 1e-5, rtol=1e-3)


def test_a_network_in_another_precision_keeps_to_it() -> None:
    pixels = keras.Input(SIZE)
    conv = layers.Conv2D(4, 1, dtype="float64")(pixels)
    network = enliven(keras.Model(pixels, layers.BatchNormalization(dtype="float64")(conv)))
    x = np.random.default_rng(0).normal(0, 1, (2, *SIZE))
    out = half(network)(x)
    assert keras.backend.standardize_dtype(out.dtype) == "float64"
    np.testing.assert_allclose(np.asarray(out), np.asarray(network(x, training=False)), rtol=1e-9)
