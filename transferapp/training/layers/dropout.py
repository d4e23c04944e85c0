"""Inverted dropout whose rate may change between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

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
