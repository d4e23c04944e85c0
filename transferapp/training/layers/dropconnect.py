"""DropConnect: a dense layer that trains with some of its weights left out (Wan et al., 2013)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from transferapp.training.layers.dropout import Rate, checked_rate, dropped


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
