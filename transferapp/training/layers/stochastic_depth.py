"""Stochastic depth: residual branches left out at random while training (Huang et al., ECCV 2016)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="transferapp")
class StochasticDepth(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Stands in the place of a residual block's sum: shortcut + branch, where in training the branch is sometimes left out.

    Each image of a batch draws for itself. A branch that stays is divided by the probability of staying, so that the sum
    is right on average and prediction is the plain sum (the paper multiplies in prediction instead, which comes to the same).

    Args:
        rate: Probability that a branch is left out, in [0, 1).
        seed: Decides which are.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= rate < 1:
            raise ValueError(f"The rate of StochasticDepth must be at least 0 and less than 1, got {rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """[shortcut, branch], two tensors of the same shape (batch, ...), to their sum."""
        shortcut, branch = inputs
        if not training or not self.rate:
            return ops.add(shortcut, branch)
        shape = (ops.shape(branch)[0],) + (1,) * (len(branch.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return ops.add(shortcut, branch * ops.cast(kept, branch.dtype) / (1 - self.rate))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
