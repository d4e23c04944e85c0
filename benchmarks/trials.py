"""Pieces that the lecture's benchmark compares with: update rules step by step, and the points of a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transferapp.recipes.search.space import Dimension
from transferapp.recipes.search.trials import Phase
from transferapp.training.optimizers import make_optimizer

Update = Callable[[np.ndarray, np.ndarray, float], None]
"""Changes weights in place, given their gradient and the rate."""


def make_update(optimizer: str) -> Update:
    """Return the update rule of an optimizer of `transferapp.training.optimizers`, with a new state."""
    import keras

    rule: Any = make_optimizer(optimizer, 1.0, weight_decay=0.0)
    variables: list[Any] = []

    def update(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        if not variables:
            variables.append(keras.Variable(weights))
            rule.build(variables)
        variables[0].assign(weights)
        rule.learning_rate.assign(rate)
        rule.apply([keras.ops.convert_to_tensor(gradient)], variables)
        weights[...] = keras.ops.convert_to_numpy(variables[0])

    return update


def batches(num_images: int, num_views: int, batch_size: int, epoch: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield (images, views) of each step of an epoch, in the order of `CachedBatches`."""
    order = np.random.default_rng([seed, 1, epoch]).permutation(num_images)
    offset = np.random.default_rng([seed, 0]).permutation(num_images) % num_views
    for start in range(0, num_images, batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, (epoch + offset[chosen]) % num_views


@dataclass(frozen=True)
class GridPhase(Phase):
    """A phase whose trials are the points of a grid; `trials` is their largest number."""

    def draws(self) -> list[dict[str, Any]]:
        return grid(self.space, self.trials)


def grid(space: Sequence[Dimension], trials: int) -> list[dict[str, Any]]:
    """Return the points of the largest evenly spaced grid of at most `trials` points, the ends of ranges included."""
    fixed = math.prod(len(dimension.choices) for dimension in space if dimension.choices)
    levels = iter(_levels(sum(not dimension.choices for dimension in space), trials // fixed))
    axes: list[list[Any]] = []
    for dimension in space:
        if dimension.choices:
            axes.append(list(dimension.choices))
            continue
        count = next(levels)
        axes.append(list(dict.fromkeys(dimension.value_at(index / (count - 1)) for index in range(count))))
    names = [dimension.name for dimension in space]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*axes)]


def _levels(ranges: int, points: int) -> tuple[int, ...]:
    """Return the number of points along each range: at least two each, as many as allowed in all, as even as possible."""
    if ranges == 0:
        return ()
    even = int(points ** (1 / ranges) + 1e-9)
    if even < 2:
        raise ValueError(f"A grid over {ranges} ranges needs at least {2**ranges} points, got {points}.")
    near = range(max(2, even // 2), 2 * even + 1)
    fitting = (levels for levels in itertools.product(near, repeat=ranges) if math.prod(levels) <= points)
    return max(fitting, key=lambda levels: (math.prod(levels), -max(levels)))
