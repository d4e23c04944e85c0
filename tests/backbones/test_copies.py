"""Copies of models: the same answers, weights of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.networks import TINY_SIZE, enliven, noise_pixels, tiny_network
from transferapp.backbones.copies import independent_copy


def adapted() -> Any:
    """A small network, nested in one that scales its input by what pictures it was shown."""
    import keras

    scale = keras.layers.Normalization()
    scale.adapt(noise_pixels(8).astype(np.float32))
    pixels = keras.Input((*TINY_SIZE, 3))
    scaled = keras.Model(pixels, scale(pixels))
    outer = keras.Input((*TINY_SIZE, 3))
    return keras.Model(outer, tiny_network()(scaled(outer)))


def test_a_copy_gives_the_same_answers_where_the_input_is_scaled_by_what_was_adapted() -> None:
    model, pixels = adapted(), noise_pixels(3).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(independent_copy(model)(pixels)), np.asarray(model(pixels)))


def test_a_copy_stays_as_it_is_whatever_becomes_of_the_model() -> None:
    model, pixels = tiny_network(), noise_pixels(3).astype(np.float32)
    copy, before = independent_copy(model), np.asarray(model(pixels))
    enliven(model, seed=1)
    np.testing.assert_array_equal(np.asarray(copy(pixels)), before)
    assert np.abs(np.asarray(model(pixels)) - before).max() > 0.1
