"""Fractional max-pooling: regions of one or two pixels, mixed so that maps shrink by less than half (Graham, 2014).

arXiv:1412.6071. Along each side the boundaries of the regions are a sequence whose steps are 1 and 2. It is drawn anew in each
training step: `random` shuffles the steps, `pseudo_random` takes ceil(alpha (i + u)) with one random u, which spreads them
evenly. In prediction u is one half, the middle of its range: the same image always gives the same answer.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

ALPHA = math.sqrt(2)
"""By how much a map shrinks: two poolings then do what one of 2 × 2 does, but more gently."""

SEQUENCES = ("random", "pseudo_random")

_GRAIN = 1024
"""u is a multiple of 1 / 1024, so that boundaries are exact in whole numbers."""


def pooled_size(size: int, alpha: float, *, overlapping: bool) -> int:
    """How many regions a side of `size` pixels has: size / alpha, as nearly as steps of 1 and 2 allow; 1 for a side of 1.

    Args:
        size: Pixels, at least 1.
        alpha: In (1, 2].
        overlapping: Whether a region has its first pixel in common with the one before.
    """
    if size == 1:
        return 1
    span = _span(size, overlapping)
    return min(max(math.floor(size / alpha), -(-span // 2)), span)


@keras.saving.register_keras_serializable(package="transferapp")
class FractionalMaxPooling2D(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Max-pooling that makes maps smaller by a factor alpha, between 1 and 2, over regions drawn at random in training.

    One drawing holds for all images of a batch; rows and columns are drawn apart.

    Args:
        alpha: By how much maps shrink, in (1, 2].
        sequence: One of `SEQUENCES`.
        overlapping: Whether neighboring regions have a row or column in common; the paper finds it better so.
        seed: Decides the regions.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        alpha: float = ALPHA,
        sequence: str = "pseudo_random",
        overlapping: bool = True,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 1 < alpha <= 2:
            raise ValueError(f"The ratio of fractional pooling must be more than 1 and at most 2, got {alpha}.")
        if sequence not in SEQUENCES:
            raise ValueError(f"Unknown sequence {sequence!r}, expected one of {', '.join(SEQUENCES)}.")
        self.alpha = alpha
        self.sequence = sequence
        self.overlapping = overlapping
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Maps of shape (batch, height, width, channels), channels last, with known height and width, made smaller."""
        if not training:
            return evenly_pooled(inputs, self.alpha, overlapping=self.overlapping)
        for axis in (1, 2):
            inputs = _pooled(inputs, axis, self._drawn(inputs.shape[axis]), overlapping=self.overlapping)
        return inputs

    def _drawn(self, size: int) -> Any:
        """Boundaries along a side: int32, shape (regions + 1,)."""
        regions = pooled_size(size, self.alpha, overlapping=self.overlapping)
        span = _span(size, self.overlapping)
        if self.sequence == "pseudo_random":
            u = keras.random.randint((), 0, _GRAIN, seed=self.seed_generator, dtype="int32")
            return _even_boundaries(ops.arange(regions + 1, dtype="int32"), u, span, regions)
        steps = np.ones(regions, np.int32)
        steps[: span - regions] = 2
        shuffled = keras.random.shuffle(ops.convert_to_tensor(steps), seed=self.seed_generator)
        return ops.concatenate([ops.zeros(1, dtype="int32"), ops.cumsum(shuffled)])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        if height is None or width is None:
            raise ValueError("Fractional pooling needs maps of known height and width.")
        sides = (pooled_size(size, self.alpha, overlapping=self.overlapping) for size in (height, width))
        return (batch, *sides, channels)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("alpha", "sequence", "overlapping", "seed")}
        return {**super().get_config(), **own}


def evenly_pooled(inputs: Any, alpha: float = ALPHA, *, overlapping: bool = True) -> Any:
    """What `FractionalMaxPooling2D` computes in prediction, in Keras' own operations, so that no layer of ours is in a graph.

    Args:
        inputs: Tensor of shape (batch, height, width, channels) with known height and width.
        alpha: In (1, 2].
        overlapping: As of the layer.
    """
    for axis in (1, 2):
        size = inputs.shape[axis]
        regions = pooled_size(size, alpha, overlapping=overlapping)
        bounds = _even_boundaries(np.arange(regions + 1), _GRAIN // 2, _span(size, overlapping), regions)
        inputs = _pooled(inputs, axis, bounds, overlapping=overlapping)
    return inputs


def _span(size: int, overlapping: bool) -> int:
    """What the steps add up to. Where regions overlap, the last boundary is the last pixel; otherwise it lies beyond it."""
    return max(1, size - 1) if overlapping else size


def _even_boundaries(index: Any, u: Any, span: int, regions: int) -> Any:
    """floor(alpha (i + u)) - floor(alpha u) with alpha = span / regions: from 0 to span in steps of 1 and 2."""
    return (index * _GRAIN + u) * span // (regions * _GRAIN) - u * span // (regions * _GRAIN)


def _pooled(inputs: Any, axis: int, bounds: Any, *, overlapping: bool) -> Any:
    """The maximum over each region along one axis.

    Args:
        inputs: Maps.
        axis: Which side.
        bounds: int, shape (regions + 1,): tensor, or array where they are known beforehand.
        overlapping: Whether a region holds its upper boundary.
    """
    size = inputs.shape[axis]
    first, last = bounds[:-1], bounds[1:] - (0 if overlapping else 1)
    known = isinstance(bounds, np.ndarray)
    largest = None
    for offset in range(3 if overlapping else 2):
        index = first + offset
        # A region that has no such pixel takes its last once more.
        index = np.minimum(np.minimum(index, last), size - 1).tolist() if known else ops.minimum(index, last)
        if not known:
            index = ops.minimum(index, size - 1)
        taken = ops.take(inputs, index, axis=axis)
        largest = taken if largest is None else ops.maximum(largest, taken)
    return largest
