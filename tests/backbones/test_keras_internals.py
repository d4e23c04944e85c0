"""Copies of models: the same outputs, with weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers.networks import TINY_SIZE, enliven, noise_pixels, tiny_network
from transferapp.backbones.keras_internals import independent_copy


def nested(model: Any) -> Any:
    """The model as the only layer of another."""
    import keras

    pixels = keras.Input((*TINY_SIZE, 3))
    return keras.Model(pixels, model(pixels))


@pytest.mark.parametrize("within", [lambda model: model, nested])
def test_a_copy_scales_pixels_as_the_model_was_adapted_to(within: Callable[[Any], Any]) -> None:
    model, pixels = within(tiny_network(adapted=True)), noise_pixels(3).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(independent_copy(model)(pixels)), np.asarray(model(pixels)))


def test_a_copy_stays_as_it_is_whatever_becomes_of_the_model() -> None:
    model, pixels = tiny_network(), noise_pixels(3).astype(np.float32)
    copy, before = independent_copy(model), np.asarray(model(pixels))
    enliven(model, seed=1)
    np.testing.assert_array_equal(np.asarray(copy(pixels)), before)
    assert np.abs(np.asarray(model(pixels)) - before).max() > 0.1
