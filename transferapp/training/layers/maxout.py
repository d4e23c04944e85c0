"""Maxout: an activation that is the largest of several linear functions (Goodfellow et al., ICML 2013)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

PIECES = 2
"""Linear functions to a unit: with two it can be ReLU, leaky ReLU or the absolute value, and neither saturates nor dies."""


@keras.saving.register_keras_serializable(package="transferapp")
class Maxout(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """The maximum over each `pieces` neighboring channels. After a `Dense` of units × pieces it is the paper's layer.

    Nothing is random in it: training and prediction are the same.

    Args:
        pieces: Channels that become one, at least 1; it divides the number of channels.

    Raises:
        ValueError: It does not, or is less than 1.
    """

    def __init__(self, pieces: int = PIECES, **options: Any) -> None:
        super().__init__(**options)
        if pieces < 1:
            raise ValueError(f"Maxout needs at least 1 piece, got {pieces}.")
        self.pieces = pieces

    def call(self, inputs: Any) -> Any:
        """Tensor of shape (..., units × pieces) to (..., units)."""
        return largest_of_pieces(inputs, self.pieces)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        channels = input_shape[-1]
        if channels is None or channels % self.pieces:
            raise ValueError(f"Maxout of {self.pieces} pieces needs a multiple of that many channels, got {channels}.")
        return (*input_shape[:-1], channels // self.pieces)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pieces": self.pieces}


def largest_of_pieces(inputs: Any, pieces: int) -> Any:
    """What `Maxout` computes, in Keras' own operations: on a symbolic tensor it leaves no layer of ours in the graph."""
    shape = tuple(-1 if size is None else size for size in inputs.shape[1:-1])
    return ops.max(ops.reshape(inputs, (-1, *shape, inputs.shape[-1] // pieces, pieces)), axis=-1)
