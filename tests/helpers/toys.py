"""Toy data and a small network for training loops: points in eight dimensions, of three classes.

The data have the classes that tails are trained with, as activations of shape (1, 1, 8).
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPE = (1, 1, 8)
CLASSES = 3
VIEWS = 2


def points(count: int, seed: int, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32 (count, 8), int64 labels): noisy copies of three corners."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    corners = np.eye(CLASSES, SHAPE[-1], dtype=np.float32) * 2
    return corners[labels] + rng.normal(0, noise, (count, SHAPE[-1])).astype(np.float32), labels


def toy_data(count: int = 48, noise: float = 0.7) -> tuple[Any, Any, np.ndarray]:
    """Return (make_batches, validation, validation labels)."""
    from transferapp.training.batches import CachedBatches, CachedCenters

    rows, labels = points(count * VIEWS, 0, noise)
    positions = np.arange(count * VIEWS).reshape(VIEWS, count).T  # both views of an image are of its class
    val_rows, val_labels = points(30, 1, noise)

    def make(batch_size: int) -> Any:
        return CachedBatches(rows, positions, labels[:count], SHAPE, batch_size=batch_size, seed=5)

    return make, CachedCenters(val_rows, np.arange(30), SHAPE, batch_size=16), val_labels


def toy_model(seed: int = 0, *, dropout: float = 0.0, batch_norm: bool = False) -> Any:
    """Build a small network whose initial weights follow from the seed."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(seed)
    start = keras.Input(SHAPE)
    x = layers.Dense(16, name="hidden")(layers.Flatten()(start))
    if batch_norm:
        x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    if dropout:
        x = layers.Dropout(dropout, seed=seed)(x)
    return keras.Model(start, layers.Dense(CLASSES, name="logits")(x))
