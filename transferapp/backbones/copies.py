"""Copies of Keras models that have weights of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transferapp.backbones.keras_internals import all_layers

if TYPE_CHECKING:
    import keras


def independent_copy(model: keras.Model) -> keras.Model:
    """A copy that computes what the model computes now, whatever becomes of the model's weights later."""
    import keras

    copy = keras.models.clone_model(model)
    give_weights(copy, model.get_weights())
    return copy


def give_weights(copy: keras.Model, weights: Sequence[np.ndarray]) -> None:
    """Set the weights of a model that was made anew from another's layers to that one's.

    A `Normalization` that was adapted, as EfficientNet's is, computes with constants made of its weights, and `set_weights`
    leaves those as they were.
    """
    import keras

    copy.set_weights(list(weights))
    for layer in all_layers(copy):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
