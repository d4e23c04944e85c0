"""Fractional max-pooling: maps shrink by less than half, over regions drawn at random (Graham, 2014)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

ALPHA = math.sqrt(2)
"""Ratio by which a map shrinks: two poolings then do what one of 2 × 2 does, but more gently."""

_GRAIN = 1024
"""u is a multiple of 1 / 1024, so that boundaries are exact in integers."""


@keras.saving.register_keras_serializable(package="transferapp")
class FractionalMaxPooling2D(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Max-pooling that shrinks maps by the root of 2, over regions drawn at random in training.

    Regions overlap by a row or column, which the paper found better. Their boundaries along a side are a sequence with steps
    of 1 and 2: the paper's pseudo-random ``ceil(alpha * (i + u))`` with one random u in (0, 1), which spreads the steps
    evenly. A batch shares the regions; rows and columns draw separately. In prediction u is one half: the same image always
    gives the same answer.

    Args:
        seed: Seed of the regions.

    Input shape:
        (batch, height, width, channels), with known height and width.

    Output shape:
        (batch, pooled height, pooled width, channels), each side divided by the root of 2.

    Example:

    >>> FractionalMaxPooling2D()(keras.ops.ones((2, 10, 7, 3))).shape
    (2, 7, 4, 3)

    Reference:
        [Graham, 2014](https://arxiv.org/abs/1412.6071)
    """

    def __init__(self, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return evenly_pooled(inputs)
        for axis in (1, 2):
            inputs = _pooled(inputs, axis, self._drawn(inputs.shape[axis]))
        return inputs

    def _drawn(self, size: int) -> Any:
        """Return boundaries along a side: int32, shape (regions + 1,)."""
        u = keras.random.randint((), 0, _GRAIN, seed=self.seed_generator, dtype="int32")
        return _boundaries(ops.arange(_pooled_size(size) + 1, dtype="int32"), u, size)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        if height is None or width is None:
            raise ValueError("Fractional pooling needs maps of known height and width.")
        return (batch, _pooled_size(height), _pooled_size(width), channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}


def evenly_pooled(inputs: Any) -> Any:
    """Pool as `FractionalMaxPooling2D` does in prediction, in Keras' own operations.

    On a symbolic tensor this leaves no custom layer in the graph, so the model loads without this package.

    Args:
        inputs: Tensor of shape (batch, height, width, channels) with known height and width.
    """
    for axis in (1, 2):
        size = inputs.shape[axis]
        inputs = _pooled(inputs, axis, _boundaries(np.arange(_pooled_size(size) + 1), _GRAIN // 2, size))
    return inputs


def _pooled_size(size: int) -> int:
    """Return the number of regions along a side: size / alpha, as nearly as steps of 1 and 2 allow; 1 for a side of 1."""
    return 1 if size == 1 else min(max(math.floor(size / ALPHA), size // 2), size - 1)


def _boundaries(index: Any, u: Any, size: int) -> Any:
    """Return floor(alpha (i + u)) - floor(alpha u) with alpha = (size - 1) / regions: from 0 to the last pixel."""
    span, regions = max(1, size - 1), _pooled_size(size)
    return (index * _GRAIN + u) * span // (regions * _GRAIN) - u * span // (regions * _GRAIN)


def _pooled(inputs: Any, axis: int, bounds: Any) -> Any:
    """Return the maximum over each region along one axis.

    Args:
        inputs: Maps.
        axis: 1 or 2.
        bounds: int, shape (regions + 1,), tensor or array: the first pixel of each region, which is the last of the one before.
    """
    last_pixel = inputs.shape[axis] - 1
    known = isinstance(bounds, np.ndarray)
    minimum = np.minimum if known else ops.minimum
    largest = None
    for offset in range(3):
        index = minimum(minimum(bounds[:-1] + offset, bounds[1:]), last_pixel)  # short regions repeat their last pixel
        taken = ops.take(inputs, index.tolist() if known else index, axis=axis)
        largest = taken if largest is None else ops.maximum(largest, taken)
    return largest
