"""Stochastic depth: residual branches left out at random in training (Huang et al., 2016)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from transferapp.training.layers.dropout import checked_rate


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
