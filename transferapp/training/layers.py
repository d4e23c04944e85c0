"""Layers of the lecture that Keras lacks. In prediction each is an ordinary function of its input, without randomness.

Importing this package registers them for loading under the package name `transferapp`. Bundles do without them: see
`transferapp.training.heads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["DropConnect", "Dropout", "FractionalMaxPooling2D", "Maxout", "StochasticDepth"]


@keras.saving.register_keras_serializable(package="transferapp")
class DropConnect(keras.layers.Dense):  # type: ignore[misc]  # Keras has no types
    """A `Dense` layer that leaves each weight out of a training step with a given probability.

    Remaining weights are divided by the probability of remaining, so that the expected sum is that of all weights, and
    prediction is an ordinary `Dense`. The paper samples the sum in prediction instead. It also draws a mask for each image;
    here a batch shares one mask, because 64 masks of 1280 × 256 weights cost more than the step itself. Biases always remain.

    Args:
        units: Size of the output.
        rate: Probability that a weight is left out; a number in [0, 1), or a function that returns it as a variable.
        seed: Seed of the masks.
        **options: Arguments of `keras.layers.Dense`.

    Input shape:
        (batch, ..., features).

    Output shape:
        (batch, ..., units).

    Example:

    >>> layer = DropConnect(10, rate=0.5, seed=0)
    >>> layer(keras.ops.ones((4, 32)), training=True).shape
    (4, 10)

    Reference:
        [Wan et al., ICML 2013](https://proceedings.mlr.press/v28/wan13.html)
    """

    def __init__(self, units: int, rate: Rate, seed: int | None = None, **options: Any) -> None:
        super().__init__(units, **options)
        self.rate = checked_rate("DropConnect", rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training or not self.rate:
            return super().call(inputs)
        x = ops.cast(inputs, self.compute_dtype)
        y = ops.matmul(x, dropped(ops.cast(self.kernel, x.dtype), self.rate, self.seed_generator))
        if self.use_bias:
            y = ops.add(y, ops.cast(self.bias, x.dtype))
        return y if self.activation is None else self.activation(y)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


Rate = float | Callable[[], Any]
"""A probability in [0, 1), or a function that returns a variable with it, which every step reads."""


@keras.saving.register_keras_serializable(package="transferapp")
class Dropout(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Keras' `Dropout`, with a rate that a compiled step reads from a variable where it is given as a function.

    Args:
        rate: Probability that an input is set to 0 in a training step, in [0, 1), or a function that returns it.
        seed: Seed of the masks.
        **options: Arguments of `keras.layers.Layer`.

    Input shape:
        Any.

    Output shape:
        That of the input.

    Example:

    >>> Dropout(0.5, seed=0)(keras.ops.ones((4, 32)), training=True).shape
    (4, 32)

    Reference:
        [Srivastava et al., JMLR 2014](https://jmlr.org/papers/v15/srivastava14a.html)
    """

    def __init__(self, rate: Rate, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.rate = checked_rate("Dropout", rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return dropped(inputs, self.rate, self.seed_generator) if training else inputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def checked_rate(layer: str, rate: Rate) -> Rate:
    """Return the rate unless it is a number outside [0, 1)."""
    if not callable(rate) and not 0 <= rate < 1:
        raise ValueError(f"The rate of {layer} must be at least 0 and less than 1, got {rate}.")
    return rate


def dropped(values: Any, rate: Rate, seed: keras.random.SeedGenerator) -> Any:
    """Set each number to 0 with probability `rate`, and scale the others so that the expected sum is the same."""
    share = rate() if callable(rate) else rate
    kept = keras.random.uniform(ops.shape(values), seed=seed) >= share
    return values * ops.cast(kept, values.dtype) / ops.cast(1 - share, values.dtype)


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


PIECES = 2
"""Linear functions per unit: with two it can be ReLU, leaky ReLU or the absolute value, and neither saturates nor dies."""


@keras.saving.register_keras_serializable(package="transferapp")
class Maxout(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """The maximum over each `pieces` neighboring channels. After a `Dense` of units × pieces it is the paper's layer.

    Args:
        pieces: Channels that become one, at least 1; must divide the number of channels.

    Input shape:
        (batch, ..., units × pieces).

    Output shape:
        (batch, ..., units).

    Example:

    >>> Maxout(2)(keras.ops.convert_to_tensor([[1.0, 5.0, -3.0, -1.0]]))
    [[5.0, -1.0]]

    Reference:
        [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    """

    def __init__(self, pieces: int = PIECES, **options: Any) -> None:
        super().__init__(**options)
        if pieces < 1:
            raise ValueError(f"Maxout needs at least 1 piece, got {pieces}.")
        self.pieces = pieces

    def call(self, inputs: Any) -> Any:
        return largest_of_pieces(inputs, self.pieces)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        channels = input_shape[-1]
        if channels is None or channels % self.pieces:
            raise ValueError(f"Maxout of {self.pieces} pieces needs a multiple of that many channels, got {channels}.")
        return (*input_shape[:-1], channels // self.pieces)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pieces": self.pieces}


def largest_of_pieces(inputs: Any, pieces: int) -> Any:
    """Compute `Maxout` in Keras' own operations: on a symbolic tensor this leaves no custom layer in the graph."""
    shape = tuple(-1 if size is None else size for size in inputs.shape[1:-1])
    return ops.max(ops.reshape(inputs, (-1, *shape, inputs.shape[-1] // pieces, pieces)), axis=-1)


@keras.saving.register_keras_serializable(package="transferapp")
class StochasticDepth(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """The sum of a residual block, shortcut + branch, whose branch is sometimes left out in training.

    Each image of a batch draws separately. Remaining branches are divided by the probability of remaining, so that prediction
    is the plain sum; the paper multiplies in prediction instead, which is equivalent.

    Args:
        rate: Probability that a branch is left out, in [0, 1).
        seed: Seed of the draws.

    Input shape:
        [shortcut, branch], two tensors of one shape (batch, ...).

    Output shape:
        That of the shortcut.

    Example:

    >>> shortcut, branch = keras.ops.zeros((4, 7, 7, 8)), keras.ops.ones((4, 7, 7, 8))
    >>> StochasticDepth(0.2, seed=0)([shortcut, branch], training=True).shape
    (4, 7, 7, 8)

    Reference:
        [Huang et al., ECCV 2016](https://arxiv.org/abs/1603.09382)
    """

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        checked_rate("StochasticDepth", rate)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        shortcut, branch = inputs
        if not training or not self.rate:
            return ops.add(shortcut, branch)
        shape = (ops.shape(branch)[0],) + (1,) * (len(branch.shape) - 1)
        remains = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return ops.add(shortcut, branch * ops.cast(remains, branch.dtype) / (1 - self.rate))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
