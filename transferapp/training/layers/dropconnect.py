"""DropConnect: a dense layer that trains with some of its weights left out (Wan et al., 2013)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="transferapp")
class DropConnect(keras.layers.Dense):  # type: ignore[misc]  # Keras has no types
    """A `Dense` layer that leaves each weight out of a training step with a given probability.

    Remaining weights are divided by the probability of remaining, so that the expected sum is that of all weights, and
    prediction is an ordinary `Dense`. The paper samples the sum in prediction instead. It also draws a mask for each image;
    here a batch shares one mask, because 64 masks of 1280 × 256 weights cost more than the step itself. Biases always remain.

    Args:
        units: Size of the output.
        rate: Probability that a weight is left out, in [0, 1).
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

    def __init__(self, units: int, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(units, **options)
        if not 0 <= rate < 1:
            raise ValueError(f"The rate of DropConnect must be at least 0 and less than 1, got {rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training or not self.rate:
            return super().call(inputs)
        remains = keras.random.uniform(self.kernel.shape, seed=self.seed_generator) >= self.rate
        x = ops.cast(inputs, self.compute_dtype)
        y = ops.matmul(x, ops.cast(remains, x.dtype) * ops.cast(self.kernel, x.dtype) / (1 - self.rate))
        if self.use_bias:
            y = ops.add(y, ops.cast(self.bias, x.dtype))
        return y if self.activation is None else self.activation(y)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
