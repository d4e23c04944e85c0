"""DropConnect: a dense layer that trains with some of its weights left out (Wan et al., ICML 2013)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="transferapp")
class DropConnect(keras.layers.Dense):  # type: ignore[misc]  # Keras has no types
    """A `Dense` layer each of whose weights is left out of a training step with a given probability.

    The weights that stay are divided by the probability of staying, so that the expected sum is that of all weights, and
    prediction is an ordinary `Dense`. That is where it differs from the paper, which draws samples of the sum in prediction;
    and the paper draws a mask for each image of a batch, where here one holds for the whole batch: 64 masks of 1280 × 256
    weights cost more than the step itself. Biases always stay.

    Args:
        units: Width of the output.
        rate: Probability that a weight is left out, in [0, 1).
        seed: Decides which are.
        **options: As of `keras.layers.Dense`.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, units: int, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(units, **options)
        if not 0 <= rate < 1:
            raise ValueError(f"The rate of DropConnect must be at least 0 and less than 1, got {rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Tensor of shape (..., features) to (..., units)."""
        if not training or not self.rate:
            return super().call(inputs)
        kept = keras.random.uniform(self.kernel.shape, seed=self.seed_generator) >= self.rate
        x = ops.cast(inputs, self.compute_dtype)
        y = ops.matmul(x, ops.cast(kept, x.dtype) * ops.cast(self.kernel, x.dtype) / (1 - self.rate))
        if self.use_bias:
            y = ops.add(y, ops.cast(self.bias, x.dtype))
        return y if self.activation is None else self.activation(y)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
