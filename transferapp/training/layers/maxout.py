"""Maxout: an activation that is the largest of several linear functions (Goodfellow et al., 2013)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

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
