"""Copies of models that compute in mixed precision.

Training in mixed precision happens on a copy. The original stays in float32, as it is exported; weights go back and forth as
arrays, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from transferapp.backbones.keras_internals import give_weights
from transferapp.training.tail import InferenceMode, TrainingMode


def in_precision(
    model: keras.Model, multipliers: Mapping[str, float], dtype_policy: str
) -> tuple[keras.Model, dict[str, float]]:
    """Return a model to train that computes in a given precision, and its learning-rate multipliers.

    The networks nested in the model (the tail's body) compute in that precision. The layers around them stay in float32:
    pooling sums many numbers, and a softmax over half-precision logits would be coarse.

    Args:
        model: Functional, not wrapped in anything but `InferenceMode` or `TrainingMode`; what is nested in it likewise.
        multipliers: Learning-rate multipliers by paths of `model`'s variables.
        dtype_policy: Keras' name for the precision, such as `mixed_float16`.

    Returns:
        The model itself for `float32`. Otherwise a copy that is not compiled, with the same weights in the same order, and
        the multipliers by paths of the copy's variables.
    """
    if dtype_policy == "float32":
        return model, dict(multipliers)

    def inner(layer: Any) -> Any:
        config = layer.get_config()
        if layer.dtype_policy.name == "float32":
            config["dtype"] = dtype_policy
        return type(layer).from_config(config)

    def outer(layer: Any) -> Any:
        if isinstance(layer, InferenceMode | TrainingMode):
            return layer.like(outer(layer.network))
        if isinstance(layer, keras.Model):
            return _cloned(layer, inner)
        return type(layer).from_config(layer.get_config())

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)  # Keras scales the loss by the policy that the model itself has
    try:
        copy = _cloned(model, outer)
    finally:
        keras.config.set_dtype_policy(before)
    give_weights(copy, model.get_weights())
    pairs = zip(model.trainable_variables, copy.trainable_variables, strict=True)
    return copy, {theirs.path: multipliers[own.path] for own, theirs in pairs if own.path in multipliers}


def _cloned(model: keras.Model, clone_layer: Any) -> keras.Model:
    bare = keras.Model(
        model.inputs[0], model.outputs[0], name=model.name
    )  # cloning `model` would copy how it was compiled
    return keras.models.clone_model(bare, clone_function=clone_layer)
